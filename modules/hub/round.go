package hub

import (
	"sync"
	"time"
)

// roundSlots is how many times a ping interval has a visit.
const roundSlots = 32

// round visits each session once every interval, all of them by one timer: its slots are
// the interval in equal parts, and a session stays in the slot that it came into. There
// is a timer only while there are sessions.
type round struct {
	step time.Duration
	// each is called on each visit, before the sessions.
	each func(now time.Time)

	mu    sync.Mutex
	slots [roundSlots][]*session
	count int
	// hand is the slot that is visited next, and next is when.
	hand  int
	next  time.Time
	timer *time.Timer
	// spare is what the last visit copied its slots into.
	spare []*session
}

func newRound(interval time.Duration, each func(now time.Time)) *round {
	return &round{step: max(interval/roundSlots, 1), each: each}
}

// add makes the session one that is visited, for the first time in an interval from now,
// or up to a slot sooner. The caller holds session.mu.
func (r *round) add(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count == 0 {
		r.next = time.Now().Add(r.step)
		r.timer = time.AfterFunc(r.step, r.visit)
	}
	r.count++
	s.slot = (r.hand + roundSlots - 1) % roundSlots // the one that was visited last
	s.place = len(r.slots[s.slot])
	r.slots[s.slot] = append(r.slots[s.slot], s)
}

// remove takes the session, which was added, off the round. A visit that has begun may
// still reach it.
func (r *round) remove(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slot := r.slots[s.slot]
	last := len(slot) - 1
	slot[s.place], slot[last].place = slot[last], s.place
	slot[last] = nil
	r.slots[s.slot] = slot[:last]
	if r.count--; r.count == 0 {
		r.timer.Stop()
		// What grew for a crowd goes with it.
		r.slots, r.spare = [roundSlots][]*session{}, nil
	}
}

// visit runs in the goroutine of the timer.
func (r *round) visit() {
	r.mu.Lock()
	now := time.Now()
	due := r.spare[:0]
	r.spare = nil // a visit that is late may meet the next one
	if late := now.Sub(r.next); late > r.step {
		r.next = now // one slot; who was not run heard nobody
	}
	for r.count > 0 && !r.next.After(now) {
		due = append(due, r.slots[r.hand]...)
		r.hand = (r.hand + 1) % roundSlots
		r.next = r.next.Add(r.step)
	}
	if r.count > 0 {
		r.timer.Reset(time.Until(r.next))
	}
	r.mu.Unlock()
	r.each(now)
	for _, s := range due {
		s.tick(now)
	}
	clear(due)
	r.mu.Lock()
	r.spare = due
	r.mu.Unlock()
}
