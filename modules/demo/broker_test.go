package demo

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/app/apptest"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startBroker returns a running broker that is stopped when the test ends.
func startBroker(t *testing.T, log *zap.Logger) *Broker {
	t.Helper()
	b := NewBroker(log, prometheus.NewRegistry())
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return b
}

// store is a backend that keeps what it gets.
type store struct {
	mu     sync.Mutex
	bodies [][]byte
}

func (s *store) receive(d app.Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bodies = append(s.bodies, d.Body)
	d.Ack()
}

func (s *store) stored() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([][]byte{}, s.bodies...)
}

func TestPublisherContract(t *testing.T) {
	apptest.Publisher(t, func(t *testing.T) apptest.PublisherBench {
		b := startBroker(t, zap.NewNop())
		to := binding{databaseExchange, ""}
		var bound *queue
		var kept *store
		return apptest.PublisherBench{
			Publisher: b,
			BindBackend: func(t *testing.T) {
				bound, kept = newQueue("database", databaseQueueLimit, refuseNewest, databasePrefetch), new(store)
				if err := b.consume(bound, to, kept.receive); err != nil {
					t.Fatal(err)
				}
			},
			UnbindBackend: func(t *testing.T) {
				if err := b.remove(context.Background(), bound, to); err != nil {
					t.Fatal(err)
				}
				kept = nil
			},
			Stored: func(*testing.T) [][]byte {
				if kept == nil {
					return nil
				}
				return kept.stored()
			},
		}
	})
}

func TestInboxesContract(t *testing.T) {
	apptest.Inboxes(t, func(t *testing.T) apptest.InboxesBench {
		b := startBroker(t, zap.NewNop())
		return apptest.InboxesBench{
			Inboxes: b,
			Publish: func(_ *testing.T, user domain.UserID, messageType string, body []byte) bool {
				return b.deliver(user.String(), messageType, body)
			},
			Prefetch: userPrefetch,
		}
	})
}

func settle(b *Broker, message domain.Message, deadline time.Time) error {
	var result error
	b.Publish(context.Background(), message, deadline, func(err error) { result = err })
	return result
}

func TestBrokerTakesNothingUnlessItRuns(t *testing.T) {
	b := NewBroker(zap.NewNop(), prometheus.NewRegistry())
	refuses := func(when string) {
		t.Helper()
		for what, err := range map[string]error{
			"Available": b.Available(),
			"Check":     b.Check(t.Context()),
			"Publish":   settle(b, apptest.NewMessage(t, 1, "a", 2, ""), time.Now().Add(time.Second)),
		} {
			if !errors.Is(err, app.ErrBrokerUnavailable) {
				t.Errorf("%s %s: %v", what, when, err)
			}
		}
		if _, err := b.Open(t.Context(), apptest.NewUser(t, 1), func(app.Delivery) {}); !errors.Is(err, app.ErrBrokerUnavailable) {
			t.Errorf("Open %s: %v", when, err)
		}
	}
	refuses("before Start")
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	inbox, err := b.Open(t.Context(), apptest.NewUser(t, 1), app.Delivery.Ack)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	refuses("after Stop")
	if b.deliver("1", "", []byte(`{}`)) {
		t.Error("a queue outlived the broker")
	}
	if err := inbox.Close(t.Context()); err != nil {
		t.Errorf("close an inbox after Stop: %v", err)
	}
}

func TestBrokerStopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBroker(zap.NewNop(), prometheus.NewRegistry())
		if err := b.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		inbox, err := b.Open(t.Context(), apptest.NewUser(t, 1), func(app.Delivery) { <-release })
		if err != nil {
			t.Fatal(err)
		}
		b.deliver("1", "", []byte(`{}`))
		synctest.Wait()

		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := inbox.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close with a consumer that hangs: %v", err)
		}
		began := time.Now()
		if err := b.Stop(t.Context()); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != stopTimeout {
			t.Errorf("Stop with a consumer that hangs: %v after %v", err, time.Since(began))
		}
		close(release)
	})
}

func TestUserQueueDropsTheOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		b := startBroker(t, zap.New(core))
		var received []app.Delivery
		_, err := b.Open(t.Context(), apptest.NewUser(t, 7), func(d app.Delivery) { received = append(received, d) })
		if err != nil {
			t.Fatal(err)
		}
		const dropped = 5
		body := func(i int) []byte { return []byte{'[', byte('0' + i%10), ']'} }
		// Nothing is settled: the first are with the consumer, the queue holds the rest.
		for i := range userPrefetch {
			b.deliver("7", "", body(i))
		}
		synctest.Wait()
		for i := range userQueueLimit + dropped {
			if !b.deliver("7", "", body(i)) {
				t.Fatal("a full user queue must take the message all the same")
			}
		}
		if got := testutil.ToFloat64(b.dropped); got != dropped {
			t.Errorf("%v messages are counted as dropped, want %d", got, dropped)
		}
		if logs.Len() != 1 {
			t.Errorf("%d warnings within a moment, want 1", logs.Len())
		}
		for i := 0; i < len(received); i++ {
			received[i].Ack()
			synctest.Wait()
		}
		if len(received) != userPrefetch+userQueueLimit {
			t.Fatalf("%d deliveries, want %d", len(received), userPrefetch+userQueueLimit)
		}
		if got, want := string(received[userPrefetch].Body), string(body(dropped)); got != want {
			t.Errorf("the oldest that is left is %s, want %s", got, want)
		}
	})
}

func TestDatabaseQueueRefusesTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBroker(t, zap.NewNop())
		q := newQueue("database", 2, refuseNewest, 1)
		if err := b.consume(q, binding{databaseExchange, ""}, func(app.Delivery) {}); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(time.Second)
		for i, want := range []error{nil, nil, nil, app.ErrNotAcknowledged} {
			if err := settle(b, apptest.NewMessage(t, 1, "m", 2, ""), deadline); !errors.Is(err, want) || (want == nil) != (err == nil) {
				t.Errorf("message %d: %v, want %v", i, err, want)
			}
			synctest.Wait() // the first is taken from the queue, and never settled
		}
	})
}

func TestBackendAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		b := startBroker(t, zap.New(core))
		backend := NewBackend(b, NewMessaging(), zap.New(core))
		if err := backend.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		inboxes := map[int64]*store{1: {}, 2: {}}
		for user, kept := range inboxes {
			if _, err := b.Open(t.Context(), apptest.NewUser(t, user), kept.receive); err != nil {
				t.Fatal(err)
			}
		}
		message := apptest.NewMessage(t, 1, "m", 2, "hello")
		for range 2 {
			if err := settle(b, message, time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		b.route(binding{databaseExchange, ""}, "", []byte(`not an entity`))
		synctest.Wait()
		for user, status := range map[int64]string{2: "delivered", 1: "rejected"} {
			got := inboxes[user].stored()
			if len(got) != 1 || decode(t, got[0])["status"] != status {
				t.Errorf("user %d got %q, want one message that is %s", user, got, status)
			}
		}
		if logs.Len() != 1 {
			t.Errorf("%d warnings, want one about the malformed entity", logs.Len())
		}
		if err := backend.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := settle(b, message, time.Now().Add(time.Second)); !errors.Is(err, app.ErrUnroutable) {
			t.Errorf("publish without a backend: %v", err)
		}
		if err := backend.Stop(t.Context()); err != nil {
			t.Errorf("a second Stop: %v", err)
		}
	})
}
