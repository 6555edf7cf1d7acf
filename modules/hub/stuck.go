package hub

import (
	"container/list"
	"sync"
)

// stuck are the connections whose sockets take no more at the moment, in the order in
// which that began. It serves where users share a prefetch (the instance scope): what
// waits for the slow must leave room for what the others are to get.
type stuck struct {
	mu       sync.Mutex
	sessions list.List
}

// add notes that the session's socket takes no more, until remove.
func (k *stuck) add(s *session) *list.Element {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sessions.PushBack(s)
}

func (k *stuck) remove(at *list.Element) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sessions.Remove(at)
}

// slowest returns the session whose socket has taken nothing for the longest time, of
// those that are not being given up already; nil where there is none. pending is how many
// deliveries are as good as settled, since the others of the list are.
func (k *stuck) slowest() (slowest *session, pending int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for at := k.sessions.Front(); at != nil; at = at.Next() {
		s := at.Value.(*session)
		s.mu.Lock()
		if s.deaf || s.phase >= phaseClosed {
			pending += int64(s.deliveries)
		} else if slowest == nil {
			slowest = s
		}
		s.mu.Unlock()
	}
	return slowest, pending
}

// relieve closes the slowest connection where three quarters of a shared prefetch wait
// for sockets. It does not block.
func (h *Hub) relieve() {
	limit := int64(h.config.SharedPrefetch) * 3 / 4
	if limit == 0 || h.unsettled.Load() <= limit {
		return
	}
	if slowest, pending := h.stuck.slowest(); slowest != nil && h.unsettled.Load()-pending > limit {
		slowest.closeTooSlow()
	}
}
