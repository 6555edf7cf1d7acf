package rabbit

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// pool returns the lanes of the current connection.
func (x *Inboxes) pool(tb testing.TB) lanePool {
	tb.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.epoch == nil {
		tb.Fatal("there is no connection")
	}
	switch l := x.epoch.layout.(type) {
	case *userQueues:
		return l.pool
	case *instanceQueue:
		return l.pool
	}
	tb.Fatal("a layout that is not known")
	return nil
}

// inLine returns how many inboxes have come to where they wait for a lane, or nearly.
func inLine(x *Inboxes) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	if q, ok := x.epoch.layout.(*instanceQueue); ok {
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.users)
	}
	return int(x.sequence.Load())
}

// lateContext is a context whose end a goroutine gets to know only once late is closed, as
// one that is not run for a while.
type lateContext struct {
	context.Context
	late <-chan struct{}
}

func (c lateContext) Done() <-chan struct{} {
	<-c.late
	return c.Context.Done()
}

// TestGivenUpWhileStopping has Stop close an inbox that is open for a moment, before
// whoever opens it, and gives up just then, has looked.
func TestGivenUpWhileStopping(t *testing.T) {
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		for range 5 { // who looks finds the inbox and the end of its context, and tosses a coin
			x := startInboxes(t, testConfig(rabbittest.URL(t), scope))
			eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
			ctx, giveUp := context.WithCancel(t.Context())
			late, opened := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(opened)
				_, _ = x.Open(lateContext{ctx, late}, userID(1), func(app.Delivery) {}) // either is right
			}()
			eventually(t, "the inbox is open", func() bool {
				x.mu.Lock()
				defer x.mu.Unlock()
				return len(x.open) == 1
			})
			giveUp()
			if err := x.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			close(late)
			<-opened
		}
	}
}

// TestGivenUpInLine has the broker busy with others, and users who give up waiting: what
// nobody waits for any longer is not asked of the broker, or a broker that can't keep up
// would never get to those who do wait.
func TestGivenUpInLine(t *testing.T) {
	const users = 50
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		t.Run(string(scope), func(t *testing.T) {
			x := startInboxes(t, testConfig(rabbittest.URL(t), scope))
			eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
			pool := x.pool(t)
			held := make([]*lane, cap(pool))
			for i := range held {
				held[i] = <-pool
			}

			ctx, giveUp := context.WithCancel(t.Context())
			var waiting sync.WaitGroup
			for n := range users {
				waiting.Go(func() {
					b, err := x.Open(ctx, userID(int64(1+n)), func(app.Delivery) {})
					if b != nil || !errors.Is(err, app.ErrBrokerUnavailable) || !errors.Is(err, context.Canceled) {
						t.Errorf("an inbox that was given up: %v, %v", b, err)
					}
				})
			}
			eventually(t, "all wait in line", func() bool { return inLine(x) >= users })
			giveUp()
			waiting.Wait()
			// What was begun for them has ended before the broker was asked for anything.
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				x.running.Wait()
			}()
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Error("what was given up still waits for its turn")
			}
			for _, l := range held {
				pool <- l
			}
			<-ended
			x.mu.Lock()
			open := len(x.open)
			x.mu.Unlock()
			if open != 0 {
				t.Errorf("%d inboxes are open", open)
			}
			// The same users are not harmed.
			for n := range users {
				openInbox(t, x, int64(1+n), func(app.Delivery) {})
			}
			if err := x.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
