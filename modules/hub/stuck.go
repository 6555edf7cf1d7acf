package hub

import (
	"container/list"
	"sync"
	"time"
)

const (
	// stuckGrace is for how long a frame must have been on its way before its connection
	// may be closed for the others' sake: a healthy socket that is full has room again
	// after a round trip.
	stuckGrace = 500 * time.Millisecond
	// relieveEvery is how often is looked whom to close while too much waits.
	relieveEvery = 50 * time.Millisecond
)

// stuck are the connections whose sockets take no more at the moment, in the order in
// which that began. It serves where users share a prefetch (the instance scope): what
// waits for the slow must leave room for what the others are to get.
type stuck struct {
	mu       sync.Mutex
	sessions list.List // of stuckSession
	looking  bool      // somebody looks every relieveEvery
}

type stuckSession struct {
	session *session
	since   time.Time
}

// add notes that the session's socket takes no more, until remove.
func (k *stuck) add(s *session) *list.Element {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sessions.PushBack(stuckSession{s, time.Now()})
}

func (k *stuck) remove(at *list.Element) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sessions.Remove(at)
}

// begin reports whether the caller is to look, since nobody does.
func (k *stuck) begin() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	begun := !k.looking
	k.looking = true
	return begun
}

func (k *stuck) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.looking = false
}

// slowest returns the session with deliveries that has been stuck for the longest time
// and for stuckGrace at least, of those that are not being given up already; nil where
// there is none. pending is how many deliveries are as good as settled, since the others
// of the list are.
func (k *stuck) slowest() (slowest *session, pending int64) {
	latest := time.Now().Add(-stuckGrace)
	k.mu.Lock()
	defer k.mu.Unlock()
	for at := k.sessions.Front(); at != nil; at = at.Next() {
		entry := at.Value.(stuckSession)
		s := entry.session
		s.mu.Lock()
		switch {
		case s.deaf || s.phase >= phaseClosed:
			pending += int64(s.deliveries)
		case slowest == nil && s.deliveries > 0 && !entry.since.After(latest):
			slowest = s
		}
		s.mu.Unlock()
	}
	return slowest, pending
}

// shareExceeded reports by how many deliveries more than three quarters of a shared
// prefetch wait for sockets.
func (h *Hub) shareExceeded() int64 {
	shared := int64(h.config.SharedPrefetch)
	if shared == 0 {
		return 0
	}
	return max(0, h.unsettled.Load()-shared*3/4)
}

// relieve closes the slowest connections where too much of a shared prefetch waits for
// sockets, now and for as long as that is so: once the prefetch is used up there are no
// further deliveries to look at. It does not block.
func (h *Hub) relieve() {
	for h.shareExceeded() > 0 && h.stuck.begin() {
		if h.closeSlowest() {
			time.AfterFunc(relieveEvery, h.relieveOn)
			return
		}
		h.stuck.end() // and again, for who has seen that somebody looks
	}
}

func (h *Hub) relieveOn() {
	h.stuck.end()
	h.relieve()
}

// closeSlowest closes as many connections as must be, and reports whether too much waits
// all the same, until they are gone at least.
func (h *Hub) closeSlowest() bool {
	for {
		exceeded := h.shareExceeded()
		slowest, pending := h.stuck.slowest()
		if slowest == nil || exceeded <= pending {
			return exceeded > 0
		}
		slowest.closeTooSlow()
	}
}
