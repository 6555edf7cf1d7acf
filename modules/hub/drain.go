package hub

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// Drain ends a hub in order. It is a part of its own since it must stop first, while
// the HTTP listener still says that the instance is not ready.
type Drain struct{ hub *Hub }

// NewDrain returns the drain of the hub.
func NewDrain(h *Hub) *Drain { return &Drain{h} }

// Start does nothing: a hub begins to work when its routes are served.
func (d *Drain) Start(context.Context) error { return nil }

// Stop refuses new connections and closes those there are with 1012, spread evenly over
// DrainWindow in random order; each works on until its moment. Its user's inbox goes
// first, so that what was taken from the broker is written; what a client has sent is
// confirmed or gets its error. Stop returns as soon as all are gone, and after
// DrainTimeout or the end of ctx in any case: what is left shortly before then is cut.
// It returns nil.
func (d *Drain) Stop(ctx context.Context) error {
	h := d.hub
	h.connect.Drain()
	started := time.Now()
	end := started.Add(h.config.DrainTimeout)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(end) {
		end = deadline
	}
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	// The last tenth is for ending what had to be cut.
	budget := end.Sub(started)
	cutting, stop := context.WithDeadline(ctx, started.Add(budget-budget/10))
	defer stop()
	// A close handshake needs its time after the close frame has gone out.
	lastClose := started.Add(budget - budget/10 - min(closeWait, budget/8))

	sessions, gone := h.startDrain()
	rand.Shuffle(len(sessions), func(i, j int) { sessions[i], sessions[j] = sessions[j], sessions[i] })
	window := min(h.config.DrainWindow, lastClose.Sub(started))
	var closing sync.WaitGroup
	for i, s := range sessions {
		moment := started.Add(window / time.Duration(len(sessions)) * time.Duration(i))
		if !waitUntil(cutting, gone, moment) {
			break
		}
		closing.Go(func() {
			h.retire(cutting, s, min(retireTimeout, budget/8), lastClose)
			deadline := time.Now().Add(h.config.ConfirmTimeout + settleGrace)
			if deadline.After(lastClose) {
				deadline = lastClose
			}
			s.closeBefore(app.CloseServiceRestart, closeReason(app.CloseServiceRestart), deadline)
		})
	}
	select {
	case <-gone:
	case <-cutting.Done():
	}
	closing.Wait() // which outlasts neither lastClose nor cutting
	left := h.list()
	for _, s := range left {
		s.cut()
	}
	select {
	case <-gone:
	case <-ctx.Done():
		// Their sockets are closed; what they still wait for, if anything, is that the
		// broker removes their users' inboxes.
		h.log.Warn("connections are still ending", zap.Int("connections", len(h.list())))
	}
	h.log.Info("connections drained",
		zap.Int("connections", len(sessions)), zap.Int("cut", len(left)), zap.Duration("duration", time.Since(started)))
	return nil
}

// waitUntil waits for the moment and reports whether there is still work to do then.
func waitUntil(ctx context.Context, gone <-chan struct{}, moment time.Time) bool {
	wait := time.Until(moment)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-gone:
		return false
	case <-ctx.Done():
		return false
	}
}

// startDrain refuses sessions from now on and returns those there are, and a channel
// that is closed when nothing lives any more. A second call gets the same channel.
func (h *Hub) startDrain() ([]*session, <-chan struct{}) {
	h.mu.Lock()
	if h.gone == nil {
		h.gone = make(chan struct{})
		if h.live == 0 {
			close(h.gone)
		}
	}
	gone := h.gone
	h.mu.Unlock()
	return h.list(), gone
}

func (h *Hub) list() []*session {
	h.mu.Lock()
	defer h.mu.Unlock()
	sessions := make([]*session, 0, len(h.sessions))
	for s := range h.sessions {
		sessions = append(sessions, s)
	}
	return sessions
}
