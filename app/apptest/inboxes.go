package apptest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// InboxesBench is an implementation of app.Inboxes under test, and the means to act as
// a backend that publishes to users.
type InboxesBench struct {
	// Inboxes is the port under test, ready to open inboxes.
	Inboxes app.Inboxes
	// Publish publishes body with the AMQP property type typ to the exchange of
	// deliveries under the user's id, waits until the broker has taken it and reports
	// whether it went to a queue.
	Publish func(t *testing.T, user domain.UserID, typ string, body []byte) bool
	// Prefetch is how many deliveries the implementation hands out unsettled: for one
	// user, or for all users together where Shared is true.
	Prefetch int
	// Shared says that all users share one queue, and so the prefetch.
	Shared bool
}

// Inboxes runs the contract of app.Inboxes against the implementations that open makes,
// a fresh one for each test; open cleans up through t.Cleanup. Users are drawn at
// random, so that a broker can be shared.
func Inboxes(t *testing.T, open func(t *testing.T) InboxesBench) {
	tests := []struct {
		name string
		run  func(t *testing.T, bench InboxesBench)
	}{
		{"receives all that is published after open", inboxReceives},
		{"passes body and type on unchanged", inboxPassesOn},
		{"does not mix users", inboxKeepsUsersApart},
		{"hands out no more than its prefetch", inboxPrefetch},
		{"goes on while one delivery stays unsettled", inboxUnsettledHole},
		{"does not get a rejected delivery again", inboxReject},
		{"receives nothing after close", inboxClose},
		{"closes with unsettled deliveries", inboxCloseUnsettled},
		{"opens and closes many users at once", inboxChurn},
		{"leaves nothing behind when open is given up", inboxOpenGivenUp},
		{"checks what is open", inboxCheck},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// mailbag collects what an inbox received.
type mailbag struct {
	settle func(app.Delivery)

	mu         sync.Mutex
	deliveries []app.Delivery
	running    int
	overlapped bool
}

// acked returns a mailbag that acks what it gets at once.
func acked() *mailbag { return &mailbag{settle: app.Delivery.Ack} }

func (m *mailbag) receive(d app.Delivery) {
	m.mu.Lock()
	m.running++
	if m.running > 1 {
		m.overlapped = true
	}
	m.deliveries = append(m.deliveries, d)
	m.mu.Unlock()
	if m.settle != nil {
		m.settle(d)
	}
	m.mu.Lock()
	m.running--
	m.mu.Unlock()
}

func (m *mailbag) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.deliveries)
}

func (m *mailbag) wait(t *testing.T, count int) []app.Delivery {
	t.Helper()
	Eventually(t, fmt.Sprintf("%d deliveries are received", count), func() bool { return m.count() >= count })
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.deliveries) != count {
		t.Fatalf("%d deliveries were received, not %d", len(m.deliveries), count)
	}
	if m.overlapped {
		t.Fatal("receive was called while it was still running for the same user")
	}
	return append([]app.Delivery(nil), m.deliveries...)
}

func randomUser(t *testing.T) domain.UserID { return NewUser(t, 1+rand.Int64N(1<<62)) }

func openInbox(t *testing.T, bench InboxesBench, user domain.UserID, receive func(app.Delivery)) app.Inbox {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	inbox, err := bench.Inboxes.Open(ctx, user, receive)
	if err != nil {
		t.Fatalf("open the inbox of user %s: %v", user, err)
	}
	return inbox
}

func closeInbox(t *testing.T, inbox app.Inbox) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := inbox.Close(ctx); err != nil {
		t.Errorf("close an inbox: %v", err)
	}
}

func mustRoute(t *testing.T, bench InboxesBench, user domain.UserID, body string) {
	t.Helper()
	if !bench.Publish(t, user, "", []byte(body)) {
		t.Fatalf("%s for user %s went to no queue", body, user)
	}
}

func inboxReceives(t *testing.T, bench InboxesBench) {
	user, bag := randomUser(t), acked()
	inbox := openInbox(t, bench, user, bag.receive)
	const count = 200
	for i := range count {
		mustRoute(t, bench, user, fmt.Sprint(`{"n":`, i, `}`))
	}
	for i, d := range bag.wait(t, count) {
		if want := fmt.Sprint(`{"n":`, i, `}`); string(d.Body) != want {
			t.Fatalf("delivery %d is %s, not %s", i, d.Body, want)
		}
	}
	closeInbox(t, inbox)
}

func inboxPassesOn(t *testing.T, bench InboxesBench) {
	user, bag := randomUser(t), acked()
	inbox := openInbox(t, bench, user, bag.receive)
	bodies := [][]byte{[]byte("{}"), {}, {0xff, 0x00, '"'}, bytes.Repeat([]byte("x"), 300_000)}
	types := []string{"", app.ControlDisconnect, "message", ""}
	for i := range bodies {
		if !bench.Publish(t, user, types[i], bodies[i]) {
			t.Fatalf("message %d went to no queue", i)
		}
	}
	for i, d := range bag.wait(t, len(bodies)) {
		if !bytes.Equal(d.Body, bodies[i]) || d.Type != types[i] {
			t.Errorf("message %d came as %.40q of type %q", i, d.Body, d.Type)
		}
	}
	closeInbox(t, inbox)
}

func inboxKeepsUsersApart(t *testing.T, bench InboxesBench) {
	const users, each = 20, 10
	ids, bags, inboxes := make([]domain.UserID, users), make([]*mailbag, users), make([]app.Inbox, users)
	for u := range users {
		ids[u], bags[u] = randomUser(t), acked()
		inboxes[u] = openInbox(t, bench, ids[u], bags[u].receive)
	}
	for i := range each {
		for u := range users {
			mustRoute(t, bench, ids[u], fmt.Sprint(ids[u], " ", i))
		}
	}
	for u := range users {
		for i, d := range bags[u].wait(t, each) {
			if want := fmt.Sprint(ids[u], " ", i); string(d.Body) != want {
				t.Fatalf("user %s got %q where %q was due", ids[u], d.Body, want)
			}
		}
	}
	if bench.Publish(t, randomUser(t), "", []byte("{}")) {
		t.Error("a message for a user without an inbox was routed")
	}
	for _, inbox := range inboxes {
		closeInbox(t, inbox)
	}
}

func inboxPrefetch(t *testing.T, bench InboxesBench) {
	first, second := randomUser(t), randomUser(t)
	held, other := &mailbag{}, acked()
	firstInbox := openInbox(t, bench, first, held.receive)
	secondInbox := openInbox(t, bench, second, other.receive)
	extra := 3
	for i := range bench.Prefetch + extra {
		mustRoute(t, bench, first, fmt.Sprint(i))
	}
	got := held.wait(t, bench.Prefetch)
	mustRoute(t, bench, second, "second")
	if bench.Shared {
		stays(t, "users who share a queue share its prefetch", func() bool { return other.count() == 0 })
	} else {
		other.wait(t, 1)
	}
	stays(t, "no more than the prefetch is handed out", func() bool { return held.count() == bench.Prefetch })
	got[0].Ack()
	held.wait(t, bench.Prefetch+1)
	got[len(got)-1].Reject()
	held.wait(t, bench.Prefetch+2)
	for _, d := range got[1 : len(got)-1] {
		d.Ack()
	}
	for _, d := range held.wait(t, bench.Prefetch+extra)[bench.Prefetch:] {
		d.Ack()
	}
	other.wait(t, 1)
	closeInbox(t, firstInbox)
	closeInbox(t, secondInbox)
}

// inboxUnsettledHole leaves the first delivery unsettled: those after it must neither be
// settled along with it nor wait for it.
func inboxUnsettledHole(t *testing.T, bench InboxesBench) {
	if bench.Prefetch < 2 {
		t.Fatal("the bench needs a prefetch of 2 at least")
	}
	user := randomUser(t)
	bag := &mailbag{}
	var first sync.Once
	bag.settle = func(d app.Delivery) {
		hold := false
		first.Do(func() { hold = true })
		if !hold {
			d.Ack()
		}
	}
	inbox := openInbox(t, bench, user, bag.receive)
	count := 5 * bench.Prefetch
	for i := range count {
		mustRoute(t, bench, user, fmt.Sprint(i))
	}
	got := bag.wait(t, count)
	// The hole is still unsettled at the broker: one place of the prefetch is taken.
	bag.mu.Lock()
	bag.settle = nil
	bag.mu.Unlock()
	for i := range bench.Prefetch {
		mustRoute(t, bench, user, fmt.Sprint("more ", i))
	}
	bag.wait(t, count+bench.Prefetch-1)
	stays(t, "the unsettled delivery takes a place", func() bool { return bag.count() == count+bench.Prefetch-1 })
	got[0].Ack()
	for _, d := range bag.wait(t, count+bench.Prefetch)[count:] {
		d.Ack()
	}
	closeInbox(t, inbox)
}

func inboxReject(t *testing.T, bench InboxesBench) {
	user := randomUser(t)
	bag := &mailbag{settle: func(d app.Delivery) {
		if string(d.Body) == "bad" {
			d.Reject()
			return
		}
		d.Ack()
	}}
	inbox := openInbox(t, bench, user, bag.receive)
	for _, body := range []string{"good", "bad", "good", "bad", "last"} {
		mustRoute(t, bench, user, body)
	}
	if got := bag.wait(t, 5); string(got[4].Body) != "last" {
		t.Fatalf("the last delivery is %s", got[4].Body)
	}
	stays(t, "nothing comes again", func() bool { return bag.count() == 5 })
	closeInbox(t, inbox)
}

func inboxClose(t *testing.T, bench InboxesBench) {
	user, bag := randomUser(t), acked()
	inbox := openInbox(t, bench, user, bag.receive)
	mustRoute(t, bench, user, "before")
	bag.wait(t, 1)
	closeInbox(t, inbox)
	if bench.Publish(t, user, "", []byte("after")) {
		t.Error("a message for a user whose inbox is closed was routed")
	}
	closeInbox(t, inbox)
	again := acked()
	reopened := openInbox(t, bench, user, again.receive)
	// A late second close of the old inbox must not touch the new one.
	closeInbox(t, inbox)
	mustRoute(t, bench, user, "again")
	again.wait(t, 1)
	if bag.count() != 1 {
		t.Errorf("the closed inbox received %d deliveries", bag.count()-1)
	}
	closeInbox(t, reopened)
}

func inboxCloseUnsettled(t *testing.T, bench InboxesBench) {
	user, neighbour := randomUser(t), randomUser(t)
	held, other := &mailbag{}, acked()
	inbox := openInbox(t, bench, user, held.receive)
	neighbourInbox := openInbox(t, bench, neighbour, other.receive)
	// A full prefetch would hold up the neighbour in the shared scope.
	count := bench.Prefetch - 1
	for i := range count {
		mustRoute(t, bench, user, fmt.Sprint(i))
	}
	got := held.wait(t, count)
	closeInbox(t, inbox)
	for i, d := range got {
		if i%2 == 0 {
			d.Ack()
		} else {
			d.Reject()
		}
	}
	for i := range 3 * bench.Prefetch {
		mustRoute(t, bench, neighbour, fmt.Sprint(i))
	}
	other.wait(t, 3*bench.Prefetch)
	again := acked()
	reopened := openInbox(t, bench, user, again.receive)
	mustRoute(t, bench, user, "again")
	again.wait(t, 1)
	closeInbox(t, reopened)
	closeInbox(t, neighbourInbox)
}

func inboxChurn(t *testing.T, bench InboxesBench) {
	const users, rounds = 12, 6
	var running sync.WaitGroup
	for range users {
		user := randomUser(t)
		running.Go(func() {
			for round := range rounds {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				bag := acked()
				inbox, err := bench.Inboxes.Open(ctx, user, bag.receive)
				if err != nil {
					t.Errorf("open %d: %v", round, err)
					cancel()
					return
				}
				for range 2 { // a second close does nothing
					if err := inbox.Close(ctx); err != nil {
						t.Errorf("close %d: %v", round, err)
					}
				}
				cancel()
			}
		})
	}
	running.Wait()
	user, bag := randomUser(t), acked()
	inbox := openInbox(t, bench, user, bag.receive)
	mustRoute(t, bench, user, "{}")
	bag.wait(t, 1)
	if err := bench.Inboxes.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	closeInbox(t, inbox)
}

func inboxOpenGivenUp(t *testing.T, bench InboxesBench) {
	user := randomUser(t)
	for i := range 20 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*100*time.Microsecond)
		inbox, err := bench.Inboxes.Open(ctx, user, func(d app.Delivery) { d.Ack() })
		cancel()
		if err == nil {
			closeInbox(t, inbox)
		}
	}
	Eventually(t, "no queue takes messages for the user", func() bool {
		return !bench.Publish(t, user, "", []byte("{}"))
	})
	// Nothing that was given up may take the inbox away that is opened now.
	bag := acked()
	inbox := openInbox(t, bench, user, bag.receive)
	for i := range 50 {
		mustRoute(t, bench, user, fmt.Sprint(i))
	}
	bag.wait(t, 50)
	closeInbox(t, inbox)
}

func inboxCheck(t *testing.T, bench InboxesBench) {
	if err := bench.Inboxes.Available(); err != nil {
		t.Errorf("Available: %v", err)
	}
	if err := bench.Inboxes.Check(t.Context()); err != nil {
		t.Errorf("Check without an inbox: %v", err)
	}
	user, bag := randomUser(t), acked()
	inbox := openInbox(t, bench, user, bag.receive)
	if err := bench.Inboxes.Check(t.Context()); err != nil {
		t.Errorf("Check with an inbox: %v", err)
	}
	closeInbox(t, inbox)
	if err := bench.Inboxes.Check(t.Context()); err != nil {
		t.Errorf("Check after close: %v", err)
	}
}
