package rabbit

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// openTogether opens the inboxes of users from first on in one batch, and returns those
// that could be had, by user, and the errors of the others.
func openTogether(t *testing.T, x *Inboxes, first, count int64, receive func(user int64, d app.Delivery)) (opened map[int64]app.Inbox, failed map[int64]error) {
	t.Helper()
	x.mu.Lock()
	q := x.epoch.layout.(*userQueues)
	x.mu.Unlock()
	held := make([]*lane, cap(q.pool))
	for i := range held {
		held[i] = <-q.pool
	}
	opened, failed = make(map[int64]app.Inbox), make(map[int64]error)
	var (
		mu      sync.Mutex
		opening sync.WaitGroup
	)
	for user := first; user < first+count; user++ {
		opening.Go(func() {
			b, err := x.Open(t.Context(), userID(user), func(d app.Delivery) { receive(user, d) })
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[user] = err
			} else {
				opened[user] = b
			}
		})
	}
	var batch []*attachment
	for range count {
		select {
		case next := <-q.line:
			batch = append(batch, next)
		case <-q.session.ended:
			t.Fatalf("the connection has ended: %v", q.session.cause)
		}
	}
	q.attachMany(held[0], batch)
	for _, l := range held {
		q.pool <- l
	}
	opening.Wait()
	return opened, failed
}

// TestOpenTogether: those whose queues are made in one batch get what is theirs, and
// each goes by itself.
func TestOpenTogether(t *testing.T) {
	config := testConfig(rabbittest.URL(t), ScopeUser)
	backend := dialPeer(t, config.URLs[0])
	x := startInboxes(t, config)
	eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
	got := make(chan string, 2*attachBatch)
	opened, failed := openTogether(t, x, 1, attachBatch, func(user int64, d app.Delivery) {
		got <- fmt.Sprint(user, " ", string(d.Body))
		d.Ack()
	})
	receive := func() string {
		t.Helper()
		select {
		case text := <-got:
			return text
		case <-time.After(20 * time.Second):
			t.Fatal("nothing is received")
			return ""
		}
	}
	if len(opened) != attachBatch {
		t.Fatalf("opened %d inboxes, failed %v", len(opened), failed)
	}
	for user := range opened {
		key := fmt.Sprint(user)
		if !backend.publish(t, config.WebsocketsExchange, key, "", []byte(key)) {
			t.Errorf("user %d has no queue", user)
		}
		if text := receive(); text != key+" "+key {
			t.Errorf("published for user %s, received %q", key, text)
		}
	}
	if err := opened[1].Close(t.Context()); err != nil {
		t.Error(err)
	}
	for user := range opened {
		routed := backend.publish(t, config.WebsocketsExchange, fmt.Sprint(user), "", []byte("again"))
		if routed != (user != 1) {
			t.Errorf("user %d: routed %v, after the inbox of user 1 was closed", user, routed)
		}
		if routed {
			receive()
		}
	}
	if err := x.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// faultQueuesRefused has the broker refuse queues of a batch: some of them, since there
// may not be so many, and then all of them, to whoever would consume.
func faultQueuesRefused(t *testing.T, node *rabbittest.Node) {
	const room = attachBatch / 4
	ignore := func(_ int64, d app.Delivery) { d.Ack() }
	config := testConfig(node.URL(), ScopeUser)
	backend := dialPeer(t, node.URL())
	x := startInboxes(t, config)
	eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
	openInbox(t, x, 1000, func(d app.Delivery) { d.Ack() })
	before := len(node.Queues(t))
	node.Ctl(t, "set_vhost_limits", fmt.Sprintf(`{"max-queues":%d}`, before+room))
	opened, failed := openTogether(t, x, 1, attachBatch, ignore)
	if len(opened) != room || len(failed) != attachBatch-room {
		t.Errorf("with room for %d queues, %d were made and %d refused", room, len(opened), len(failed))
	}
	for user, err := range failed {
		if !errors.Is(err, app.ErrBrokerUnavailable) {
			t.Errorf("user %d got %v", user, err)
		}
	}
	for user := range opened {
		if !backend.publish(t, config.WebsocketsExchange, fmt.Sprint(user), "", []byte("{}")) {
			t.Errorf("user %d has no queue", user)
		}
	}
	node.Ctl(t, "clear_vhost_limits")
	for user := range failed {
		openInbox(t, x, user, func(d app.Delivery) { d.Ack() })
	}
	if err := x.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := x.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	node.Ctl(t, "add_user", "deaf", "deaf")
	node.Ctl(t, "set_permissions", "deaf", ".*", ".*", `^test\..*$`)
	config.URLs = []string{"amqp://deaf:deaf@" + node.Address() + "/"}
	x = startInboxes(t, config)
	eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
	if _, err := x.Open(t.Context(), userID(1000), func(d app.Delivery) { d.Ack() }); !errors.Is(err, app.ErrBrokerUnavailable) {
		t.Errorf("an inbox that may not be read: %v", err)
	}
	opened, failed = openTogether(t, x, 1, attachBatch, ignore)
	if len(opened) > 0 || len(failed) != attachBatch {
		t.Errorf("%d inboxes were opened that may not be read", len(opened))
	}
	for _, queue := range node.Queues(t) {
		if strings.HasPrefix(queue, "websocket.connection.") {
			t.Errorf("the queue %s is left behind", queue)
		}
	}
	if err := x.Check(t.Context()); err != nil {
		t.Error(err)
	}
}
