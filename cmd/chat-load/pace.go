package main

import (
	"context"
	"sync"
	"time"
)

// pace says when the next message is due. It is not safe for concurrent use.
type pace struct {
	interval float64 // ns between two; 0: at once
	began    time.Time
	ends     time.Time // zero: never
	count    uint64
	woke     time.Time // when the last wait was over
}

// newPace returns the pace of rate messages per second, or without a limit where it is
// 0, which ends after a duration, or never where that is 0.
func newPace(rate float64, duration time.Duration) *pace {
	p := &pace{began: time.Now()}
	p.woke = p.began
	if rate > 0 {
		p.interval = float64(time.Second) / rate
	}
	if duration > 0 {
		p.ends = p.began.Add(duration)
	}
	return p
}

// shift puts the pace off by a part of the time between two messages.
func (p *pace) shift(part float64) { p.began = p.began.Add(time.Duration(part * p.interval)) }

// next waits until the next message is due, and returns the time from which its latency
// counts, in ns since 1970. It returns false once the duration or ctx is over.
//
// A message that the one before held up counts from when it was due: else a server that
// stalls its clients would hide the stall (coordinated omission). How late the system's
// timer fires is not the server's doing, so a message counts from no earlier than the
// end of the wait.
func (p *pace) next(ctx context.Context) (int64, bool) {
	if ctx.Err() != nil {
		return 0, false
	}
	now := time.Now()
	due := now
	if p.interval > 0 {
		due = p.began.Add(time.Duration(float64(p.count) * p.interval))
		if !p.ends.IsZero() && !due.Before(p.ends) {
			return 0, false
		}
		if wait := due.Sub(now); wait > 0 {
			timer := time.NewTimer(wait)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
				return 0, false
			}
			p.woke = time.Now()
		}
		if due.Before(p.woke) {
			due = p.woke
		}
	} else if !p.ends.IsZero() && now.After(p.ends) {
		return 0, false
	}
	p.count++
	return due.UnixNano(), true
}

// writeOff is how long nothing may settle before what is under way is given up: lost
// messages would else fill the window for good.
const writeOff = 2 * time.Second

// window bounds the messages under way. It is safe for concurrent use.
type window struct {
	size    uint64
	settled func() uint64 // of those sent

	mu       sync.Mutex
	sent     uint64
	given    uint64 // given up
	seen     uint64 // settled, when it last changed
	seenWhen time.Time
}

func newWindow(size uint64, settled func() uint64) *window {
	return &window{size: size, settled: settled, seen: settled(), seenWhen: time.Now()}
}

// enter waits until n more messages may be under way; it returns false when ctx ends
// first. A window of size 0 has room for all.
func (w *window) enter(ctx context.Context, n uint64) bool {
	if w.size == 0 {
		return ctx.Err() == nil
	}
	for {
		if w.admit(n) {
			return true
		}
		timer := time.NewTimer(500 * time.Microsecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
}

func (w *window) admit(n uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	settled := w.settled()
	if w.sent+n <= settled+w.given+w.size {
		w.sent += n
		return true
	}
	now := time.Now()
	if settled != w.seen {
		w.seen, w.seenWhen = settled, now
	} else if now.Sub(w.seenWhen) >= writeOff && w.sent > settled {
		w.given, w.seenWhen = w.sent-settled, now
	}
	return false
}
