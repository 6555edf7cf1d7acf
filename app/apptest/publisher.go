package apptest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// PublisherBench is a publisher under test, and the means to act as the backend
// that its messages are for. When a test gets it, the publisher can publish and the
// backend has no queue.
type PublisherBench struct {
	// Publisher is the port under test.
	Publisher app.Publisher
	// BindBackend gives the backend an empty queue bound to the exchange that the
	// publisher publishes to. It is called only while the backend has none.
	BindBackend func(t *testing.T)
	// UnbindBackend takes the backend's queue away; after it has returned, nothing
	// that is published is routed.
	UnbindBackend func(t *testing.T)
	// Stored returns the bodies that the backend's queue has got since BindBackend, in
	// the broker's order; nil while there is no queue. A body may show up a moment
	// after its message has been settled.
	Stored func(t *testing.T) [][]byte
}

// Publisher runs the contract of app.Publisher against the publishers that open
// makes, a fresh one for each test; open cleans up through t.Cleanup.
func Publisher(t *testing.T, open func(t *testing.T) PublisherBench) {
	tests := []struct {
		name string
		run  func(t *testing.T, bench PublisherBench)
	}{
		{"stores the exact entity", publisherStoresEntity},
		{"keeps the order of one goroutine", publisherKeepsOrder},
		{"settles each message of many goroutines once", publisherSettlesOnce},
		{"says that nobody takes a message", publisherUnroutable},
		{"tells routed and unroutable messages apart", publisherMixed},
		{"does not publish a message past its deadline", publisherPastDeadline},
		{"goes on when the context of a call has ended", publisherIgnoresContext},
		{"is available and passes its check", publisherAvailable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// verdict records how often a message was settled, and with what.
type verdict struct {
	calls atomic.Int32
	mu    sync.Mutex
	err   error
}

func (v *verdict) settle(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.calls.Add(1)
	v.err = err
}

func (v *verdict) wait(t *testing.T) error {
	t.Helper()
	Eventually(t, "the message is settled", func() bool { return v.calls.Load() > 0 })
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// publish hands message over with a deadline that no test means to reach.
func publish(bench PublisherBench, message domain.Message) *verdict {
	v := new(verdict)
	bench.Publisher.Publish(context.Background(), message, time.Now().Add(patience), v.settle)
	return v
}

func publisherStoresEntity(t *testing.T, bench PublisherBench) {
	bench.BindBackend(t)
	messages := []domain.Message{
		NewMessage(t, 1, "m-1", 2, "hello"),
		NewMessage(t, 1, strings.Repeat("\U0001F600", domain.MaxIdentifierLength), 9223372036854775807, ""),
		NewMessage(t, 9223372036854775807, "\" \\ \u2028 <&>", 1, "line\nbreak, \u0000, </script>, \U0001F600"),
		NewMessage(t, 3, "large", 4, strings.Repeat("x", 300_000)),
	}
	for i, message := range messages {
		if err := publish(bench, message).wait(t); err != nil {
			t.Fatalf("message %d was settled with %v", i, err)
		}
	}
	stored := waitStored(t, bench, len(messages))
	for i, message := range messages {
		if want := entity(t, message); !bytes.Equal(stored[i], want) {
			t.Errorf("message %d is stored as\n%.300s\nnot as\n%.300s", i, stored[i], want)
		}
	}
}

func publisherKeepsOrder(t *testing.T, bench PublisherBench) {
	bench.BindBackend(t)
	const count = 500
	verdicts := make([]*verdict, count)
	want := make([][]byte, count)
	for i := range count {
		message := NewMessage(t, 1, fmt.Sprint("m-", i), 2, fmt.Sprint("body ", i))
		want[i] = entity(t, message)
		verdicts[i] = publish(bench, message)
	}
	for i, v := range verdicts {
		if err := v.wait(t); err != nil {
			t.Fatalf("message %d was settled with %v", i, err)
		}
	}
	for i, body := range waitStored(t, bench, count) {
		if !bytes.Equal(body, want[i]) {
			t.Fatalf("place %d holds %s", i, body)
		}
	}
}

func publisherSettlesOnce(t *testing.T, bench PublisherBench) {
	bench.BindBackend(t)
	const senders, each = 8, 100
	verdicts := make([][]*verdict, senders)
	var running sync.WaitGroup
	for s := range senders {
		verdicts[s] = make([]*verdict, each)
		messages := make([]domain.Message, each)
		for i := range messages {
			messages[i] = NewMessage(t, int64(s+1), fmt.Sprint("m-", i), 99, "body")
		}
		running.Go(func() {
			for i, message := range messages {
				verdicts[s][i] = publish(bench, message)
			}
		})
	}
	running.Wait()
	for s := range verdicts {
		for i, v := range verdicts[s] {
			if err := v.wait(t); err != nil {
				t.Fatalf("message %d of sender %d was settled with %v", i, s+1, err)
			}
		}
	}
	stored := waitStored(t, bench, senders*each)
	next := make(map[string]int)
	for _, body := range stored {
		id, sender := between(body, `"client_message_id":"`, `"`), between(body, `"sender_id":`, `,`)
		if want := fmt.Sprint("m-", next[sender]); id != want {
			t.Fatalf("sender %s: got %s where %s was due", sender, id, want)
		}
		next[sender]++
	}
	for s := range verdicts {
		for i, v := range verdicts[s] {
			if n := v.calls.Load(); n != 1 {
				t.Errorf("message %d of sender %d was settled %d times", i, s+1, n)
			}
		}
	}
}

func publisherUnroutable(t *testing.T, bench PublisherBench) {
	if err := publish(bench, NewMessage(t, 1, "lost", 2, "x")).wait(t); !errors.Is(err, app.ErrUnroutable) {
		t.Fatalf("without a queue a message was settled with %v", err)
	}
	bench.BindBackend(t)
	if err := publish(bench, NewMessage(t, 1, "kept", 2, "x")).wait(t); err != nil {
		t.Fatalf("with a queue a message was settled with %v", err)
	}
	if stored := waitStored(t, bench, 1); between(stored[0], `"client_message_id":"`, `"`) != "kept" {
		t.Fatalf("stored %s", stored[0])
	}
	bench.UnbindBackend(t)
	if err := publish(bench, NewMessage(t, 1, "lost again", 2, "x")).wait(t); !errors.Is(err, app.ErrUnroutable) {
		t.Fatalf("after the queue had gone a message was settled with %v", err)
	}
}

// publisherMixed publishes without a pause while the backend's queue comes and goes:
// whatever was settled with nil is in one of its queues, and nothing else is.
func publisherMixed(t *testing.T, bench PublisherBench) {
	const rounds, each = 4, 50
	stored := make(map[string]bool)
	var verdicts []*verdict
	var names []string
	for round := range rounds {
		for i := range each {
			// Twins on purpose: one user's message ids need not be unique, nor are
			// they across users.
			for _, sender := range []int64{1, 2} {
				names = append(names, fmt.Sprint(sender, " m-", round, "-", i))
				verdicts = append(verdicts, publish(bench, NewMessage(t, sender, fmt.Sprint("m-", round, "-", i), 3, "x")))
			}
		}
		if round%2 == 0 {
			bench.BindBackend(t)
			continue
		}
		accepted := 0
		for _, v := range verdicts {
			if v.wait(t) == nil {
				accepted++
			}
		}
		for _, body := range waitStored(t, bench, accepted-len(stored)) {
			stored[between(body, `"sender_id":`, `,`)+" "+between(body, `"client_message_id":"`, `"`)] = true
		}
		bench.UnbindBackend(t)
	}
	for i, v := range verdicts {
		switch err := v.wait(t); {
		case err == nil && !stored[names[i]]:
			t.Errorf("%s counts as sent, but is not stored", names[i])
		case err != nil && !errors.Is(err, app.ErrUnroutable):
			t.Errorf("%s was settled with %v", names[i], err)
		case err != nil && stored[names[i]]:
			t.Errorf("%s was settled with %v, but is stored", names[i], err)
		}
		if n := v.calls.Load(); n != 1 {
			t.Errorf("%s was settled %d times", names[i], n)
		}
	}
}

func publisherPastDeadline(t *testing.T, bench PublisherBench) {
	bench.BindBackend(t)
	late := new(verdict)
	bench.Publisher.Publish(context.Background(), NewMessage(t, 1, "late", 2, "x"), time.Now().Add(-time.Second), late.settle)
	if err := late.wait(t); !errors.Is(err, app.ErrConfirmTimeout) {
		t.Errorf("a message past its deadline was settled with %v", err)
	}
	if err := publish(bench, NewMessage(t, 1, "in time", 2, "x")).wait(t); err != nil {
		t.Fatalf("a message in time was settled with %v", err)
	}
	stored := waitStored(t, bench, 1)
	if id := between(stored[0], `"client_message_id":"`, `"`); id != "in time" {
		t.Errorf("%q was stored", id)
	}
}

func publisherIgnoresContext(t *testing.T, bench PublisherBench) {
	bench.BindBackend(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	v := new(verdict)
	bench.Publisher.Publish(ctx, NewMessage(t, 1, "m", 2, "x"), time.Now().Add(patience), v.settle)
	if err := v.wait(t); err != nil {
		t.Fatalf("settled with %v", err)
	}
	waitStored(t, bench, 1)
}

func publisherAvailable(t *testing.T, bench PublisherBench) {
	if err := bench.Publisher.Available(); err != nil {
		t.Errorf("Available: %v", err)
	}
	// A check is not a message: it passes without a queue, and leaves nothing in one.
	for range 2 {
		if err := bench.Publisher.Check(t.Context()); err != nil {
			t.Errorf("Check: %v", err)
		}
	}
	bench.BindBackend(t)
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			if err := bench.Publisher.Check(t.Context()); err != nil {
				t.Errorf("concurrent Check: %v", err)
			}
		})
	}
	running.Wait()
	if err := publish(bench, NewMessage(t, 1, "only", 2, "x")).wait(t); err != nil {
		t.Fatal(err)
	}
	if stored := waitStored(t, bench, 1); len(stored) != 1 {
		t.Errorf("%d messages are stored", len(stored))
	}
}

// waitStored waits for count bodies and fails the test when there are more.
func waitStored(t *testing.T, bench PublisherBench, count int) [][]byte {
	t.Helper()
	var stored [][]byte
	Eventually(t, fmt.Sprintf("%d messages are stored", count), func() bool {
		stored = bench.Stored(t)
		return len(stored) >= count
	})
	if len(stored) != count {
		t.Fatalf("%d messages are stored, not %d", len(stored), count)
	}
	return stored
}

func entity(t *testing.T, message domain.Message) []byte {
	t.Helper()
	body, err := app.AppendEntity(nil, message)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// between returns what stands in body after the first mark, up to the next end.
func between(body []byte, mark, end string) string {
	_, rest, _ := strings.Cut(string(body), mark)
	text, _, _ := strings.Cut(rest, end)
	return text
}
