package rabbit

import (
	"context"
	"sync"
)

// gate stands before the receive function of an inbox: once it is shut, nobody passes,
// and shut waits for the one who is inside.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside bool
	left   chan struct{} // made by who waits for the one inside to leave
}

// enter reports whether receive may be called; leave must follow then. Only one
// goroutine at a time may try.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside = !g.closed
	return g.inside
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside = false
	if g.left != nil {
		close(g.left)
		g.left = nil
	}
}

// shut closes the gate for good.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// wait returns when nobody is inside, or with ctx.
func (g *gate) wait(ctx context.Context) error {
	g.mu.Lock()
	if !g.inside {
		g.mu.Unlock()
		return nil
	}
	if g.left == nil {
		g.left = make(chan struct{})
	}
	left := g.left
	g.mu.Unlock()
	select {
	case <-left:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
