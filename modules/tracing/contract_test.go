package tracing

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/app/apptest"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// queuePrefetch is how many deliveries of one user a queues hands out unsettled.
const queuePrefetch = 8

// queues is the least that is an app.Publisher and an app.Inboxes: what the decorators
// are put around, so that the contract of the ports is held to what they add.
type queues struct {
	mu     sync.Mutex
	bound  bool // the backend has a queue
	stored [][]byte
	users  map[domain.UserID]*queue
}

// Available implements app.Publisher and app.Inboxes.
func (*queues) Available() error { return nil }

// Check implements app.Publisher and app.Inboxes.
func (*queues) Check(context.Context) error { return nil }

// Publish implements app.Publisher.
func (q *queues) Publish(_ context.Context, message domain.Message, deadline time.Time, settled func(error)) {
	settled(q.store(message, deadline))
}

func (q *queues) store(message domain.Message, deadline time.Time) error {
	if !time.Now().Before(deadline) {
		return app.ErrConfirmTimeout
	}
	entity, err := app.AppendEntity(nil, message)
	if err != nil {
		return fmt.Errorf("%w: %w", app.ErrNotAcknowledged, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.bound {
		return app.ErrUnroutable
	}
	q.stored = append(q.stored, entity)
	return nil
}

// bind gives the backend an empty queue, or takes it away.
func (q *queues) bind(bound bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bound, q.stored = bound, nil
}

func (q *queues) held() [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([][]byte(nil), q.stored...)
}

// Open implements app.Inboxes.
func (q *queues) Open(ctx context.Context, user domain.UserID, receive func(app.Delivery)) (app.Inbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", app.ErrBrokerUnavailable, err)
	}
	opened := &queue{of: q, user: user, unsettled: make(map[uint64]bool), idle: make(chan struct{})}
	opened.changed.L = &opened.mu
	q.mu.Lock()
	q.users[user] = opened
	q.mu.Unlock()
	go opened.run(receive)
	return opened, nil
}

// publish acts as a backend, and reports whether the user has a queue.
func (q *queues) publish(user domain.UserID, kind string, body []byte) bool {
	q.mu.Lock()
	to := q.users[user]
	q.mu.Unlock()
	if to == nil {
		return false
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	to.last++
	to.waiting = append(to.waiting, app.Delivery{Body: body, Type: kind, Tag: to.last, Acks: to})
	to.changed.Signal()
	return true
}

// queue is the inbox of one user and settles its deliveries.
type queue struct {
	of   *queues
	user domain.UserID
	idle chan struct{} // closed when nothing is handed out any more

	mu        sync.Mutex
	changed   sync.Cond // L is mu
	waiting   []app.Delivery
	unsettled map[uint64]bool
	last      uint64
	closed    bool
}

func (q *queue) run(receive func(app.Delivery)) {
	defer close(q.idle)
	for {
		q.mu.Lock()
		for !q.closed && (len(q.waiting) == 0 || len(q.unsettled) >= queuePrefetch) {
			q.changed.Wait()
		}
		if q.closed {
			q.mu.Unlock()
			return
		}
		next := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.unsettled[next.Tag] = true
		q.mu.Unlock()
		receive(next)
	}
}

// Ack implements app.Acknowledger.
func (q *queue) Ack(tag uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.unsettled, tag)
	q.changed.Signal()
}

// Reject implements app.Acknowledger.
func (q *queue) Reject(tag uint64) { q.Ack(tag) }

// Close implements app.Inbox.
func (q *queue) Close(context.Context) error {
	q.of.mu.Lock()
	if q.of.users[q.user] == q {
		delete(q.of.users, q.user)
	}
	q.of.mu.Unlock()
	q.mu.Lock()
	q.closed = true
	q.changed.Signal()
	q.mu.Unlock()
	<-q.idle
	return nil
}

// checkSpans demands at the end of a test that each span that was begun has ended.
func checkSpans(t *testing.T, recorder *tracetest.SpanRecorder) {
	t.Helper()
	t.Cleanup(func() {
		if begun, ended := len(recorder.Started()), len(recorder.Ended()); begun != ended {
			t.Errorf("%d spans were begun, %d have ended", begun, ended)
		}
	})
}

func TestPublisherContract(t *testing.T) {
	apptest.Publisher(t, func(t *testing.T) apptest.PublisherBench {
		tracer, recorder := recorded()
		checkSpans(t, recorder)
		next := new(queues)
		return apptest.PublisherBench{
			Publisher:     tracer.Publisher(next),
			BindBackend:   func(*testing.T) { next.bind(true) },
			UnbindBackend: func(*testing.T) { next.bind(false) },
			Stored:        func(*testing.T) [][]byte { return next.held() },
		}
	})
}

func TestInboxesContract(t *testing.T) {
	apptest.Inboxes(t, func(t *testing.T) apptest.InboxesBench {
		tracer, recorder := recorded()
		checkSpans(t, recorder)
		next := &queues{users: make(map[domain.UserID]*queue)}
		return apptest.InboxesBench{
			Inboxes: tracer.Inboxes(next),
			Publish: func(_ *testing.T, user domain.UserID, kind string, body []byte) bool {
				return next.publish(user, kind, body)
			},
			Prefetch: queuePrefetch,
		}
	})
}
