package rabbit

import (
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/app/apptest"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(rabbittest.Suite{M: m}) }

// testConfig has exchanges of its own, so that tests can share a broker.
func testConfig(url string, scope Scope) Config {
	name := rand.Text()
	return Config{
		URLs:               []string{url},
		WebsocketsExchange: "test.websockets." + name,
		DatabaseExchange:   "test.database." + name,
		Prefetch:           4,
		InstancePrefetch:   8,
		Scope:              scope,
		AppID:              "rabbit-test",
		StopTimeout:        5 * time.Second,
	}
}

func startPublisher(tb testing.TB, config Config) *Publisher {
	tb.Helper()
	p := NewPublisher(config, zap.NewNop(), prometheus.NewRegistry())
	if err := p.Start(context.Background()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Stop(context.Background()); err != nil {
			tb.Errorf("stop the publisher: %v", err)
		}
	})
	return p
}

func startInboxes(tb testing.TB, config Config) *Inboxes {
	tb.Helper()
	x := NewInboxes(config, zap.NewNop(), prometheus.NewRegistry())
	if err := x.Start(context.Background()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := x.Stop(context.Background()); err != nil {
			tb.Errorf("stop the inboxes: %v", err)
		}
	})
	return x
}

func eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	deadline := time.NewTimer(40 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			tb.Fatalf("not in time: %s", what)
		}
	}
}

// peer is a connection of a backend.
type peer struct {
	conn *amqp.Connection

	mu      sync.Mutex // of channel
	channel *amqp.Channel
	returns chan amqp.Return
}

func dialPeer(tb testing.TB, url string) *peer {
	tb.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	channel, err := conn.Channel()
	if err != nil {
		tb.Fatal(err)
	}
	if err := channel.Confirm(false); err != nil {
		tb.Fatal(err)
	}
	return &peer{conn: conn, channel: channel, returns: channel.NotifyReturn(make(chan amqp.Return, 1))}
}

// publish publishes to a user and reports whether the message went to a queue.
func (p *peer) publish(tb testing.TB, exchange, key, typ string, body []byte) bool {
	tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	confirmation, err := p.channel.PublishWithDeferredConfirm(exchange, key, true, false, amqp.Publishing{Type: typ, Body: body})
	if err != nil {
		tb.Fatal(err)
	}
	if !confirmation.Wait() {
		tb.Fatal("the broker refused a message")
	}
	select {
	case <-p.returns:
		return false
	default:
		return true
	}
}

// database is the queue of a backend on the exchange of client messages.
type database struct {
	channel *amqp.Channel
	queue   string

	mu     sync.Mutex
	bodies [][]byte
	all    []amqp.Delivery
}

func bindDatabase(tb testing.TB, conn *amqp.Connection, exchange string) *database {
	tb.Helper()
	channel, err := conn.Channel()
	if err != nil {
		tb.Fatal(err)
	}
	queue, err := channel.QueueDeclare("", false, false, true, false, nil)
	if err != nil {
		tb.Fatal(err)
	}
	d := &database{channel: channel, queue: queue.Name}
	deliveries, err := channel.Consume(queue.Name, "", true, false, false, false, nil)
	if err != nil {
		tb.Fatal(err)
	}
	if err := channel.QueueBind(queue.Name, "", exchange, false, nil); err != nil {
		tb.Fatal(err)
	}
	go func() { // ends with the connection
		for delivery := range deliveries {
			d.mu.Lock()
			d.bodies = append(d.bodies, delivery.Body)
			d.all = append(d.all, delivery)
			d.mu.Unlock()
		}
	}()
	return d
}

func (d *database) stored() [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([][]byte(nil), d.bodies...)
}

func (d *database) remove(tb testing.TB) {
	tb.Helper()
	if _, err := d.channel.QueueDelete(d.queue, false, false, false); err != nil {
		tb.Fatal(err)
	}
}

func TestPublisherContract(t *testing.T) {
	apptest.Publisher(t, func(t *testing.T) apptest.PublisherBench {
		config := testConfig(rabbittest.URL(t), ScopeUser)
		backend := dialPeer(t, config.URLs[0])
		publisher := startPublisher(t, config)
		t.Cleanup(func() { _ = backend.channel.ExchangeDelete(config.DatabaseExchange, false, false) })
		eventually(t, "the publisher is connected", func() bool { return publisher.Available() == nil })
		var queue *database
		return apptest.PublisherBench{
			Publisher:     publisher,
			BindBackend:   func(t *testing.T) { queue = bindDatabase(t, backend.conn, config.DatabaseExchange) },
			UnbindBackend: func(t *testing.T) { queue.remove(t); queue = nil },
			Stored: func(*testing.T) [][]byte {
				if queue == nil {
					return nil
				}
				return queue.stored()
			},
		}
	})
}

func TestInboxesContract(t *testing.T) {
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		t.Run(string(scope), func(t *testing.T) {
			apptest.Inboxes(t, func(t *testing.T) apptest.InboxesBench {
				config := testConfig(rabbittest.URL(t), scope)
				backend := dialPeer(t, config.URLs[0])
				t.Cleanup(func() { _ = backend.channel.ExchangeDelete(config.WebsocketsExchange, false, false) })
				inboxes := startInboxes(t, config)
				eventually(t, "inboxes are connected", func() bool { return inboxes.Available() == nil })
				prefetch := config.Prefetch
				if scope == ScopeInstance {
					prefetch = config.InstancePrefetch
				}
				return apptest.InboxesBench{
					Inboxes:  inboxes,
					Prefetch: prefetch,
					Shared:   scope == ScopeInstance,
					Publish: func(t *testing.T, user domain.UserID, typ string, body []byte) bool {
						t.Helper()
						return backend.publish(t, config.WebsocketsExchange, user.String(), typ, body)
					},
				}
			})
		})
	}
}

func userID(n int64) domain.UserID {
	user, err := domain.NewUserID(n)
	if err != nil {
		panic(err)
	}
	return user
}

// openInbox opens the inbox of a user, or fails the test.
func openInbox(tb testing.TB, x *Inboxes, n int64, receive func(app.Delivery)) app.Inbox {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	b, err := x.Open(ctx, userID(n), receive)
	if err != nil {
		tb.Fatalf("open the inbox of user %d: %v", n, err)
	}
	return b
}
