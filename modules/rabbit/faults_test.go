package rabbit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/app/apptest"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// publishOne publishes a message and returns its verdict.
func publishOne(t *testing.T, p *Publisher, id string, timeout time.Duration) error {
	t.Helper()
	settled := make(chan error, 2)
	p.Publish(context.Background(), apptest.NewMessage(t, 1, id, 2, "body"), time.Now().Add(timeout), func(err error) { settled <- err })
	err := <-settled
	if len(settled) != 0 {
		t.Fatal("the message was settled twice")
	}
	return err
}

// counted opens the inboxes of users first to first+count-1 and counts what each gets.
type counted struct {
	first int64
	got   []*atomic.Int64
	open  []app.Inbox
}

func openMany(t testing.TB, x *Inboxes, first int64, count int) *counted {
	t.Helper()
	c := &counted{first: first, got: make([]*atomic.Int64, count), open: make([]app.Inbox, count)}
	var opening sync.WaitGroup
	for i := range count {
		got := new(atomic.Int64)
		c.got[i] = got
		opening.Go(func() {
			user := userID(first + int64(i))
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			receive := func(d app.Delivery) {
				got.Add(1)
				d.Ack()
			}
			inbox, err := x.Open(ctx, user, receive)
			for errors.Is(err, app.ErrBrokerUnavailable) && ctx.Err() == nil {
				// A broker that was thawed after the row before may take its time.
				inbox, err = x.Open(ctx, user, receive)
			}
			if err != nil {
				t.Errorf("open the inbox of user %s: %v", user, err)
				return
			}
			c.open[i] = inbox
		})
	}
	opening.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return c
}

// expect publishes one message to each user and waits until each has got it.
func (c *counted) expect(t testing.TB, backend *peer, exchange string) {
	t.Helper()
	for i := range c.got {
		c.got[i].Store(0)
		if !backend.publish(t, exchange, fmt.Sprint(c.first+int64(i)), "", []byte("{}")) {
			t.Fatalf("a message for user %d went to no queue", c.first+int64(i))
		}
	}
	eventually(t, "each user gets a message", func() bool {
		for i := range c.got {
			if c.got[i].Load() != 1 {
				return false
			}
		}
		return true
	})
}

// TestBrokerFaults does to one server what happens to servers.
func TestBrokerFaults(t *testing.T) {
	node := rabbittest.Start(t)
	for _, fault := range []struct {
		name string
		run  func(t *testing.T, node *rabbittest.Node)
	}{
		{"queues are gone when stop returns", faultStopRemovesQueues},
		{"queue deleted", faultQueueDeleted},
		{"queues refused", faultQueuesRefused},
		{"inboxes come and go while they are bound again", faultCloseDuringRebind},
		{"probes refused", faultProbesRefused},
		{"memory alarm", faultMemoryAlarm},
		{"killed and restarted", faultKilled},
		{"stopped and restarted", faultRestarted},
		{"frozen", faultFrozen},
		{"frozen with full buffers", faultFrozenFull},
		{"stop while frozen", faultStopWhileFrozen},
	} {
		t.Run(fault.name, func(t *testing.T) { fault.run(t, node) })
	}
}

func faultStopRemovesQueues(t *testing.T, node *rabbittest.Node) {
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		config := testConfig(node.URL(), scope)
		x := startInboxes(t, config)
		eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
		openMany(t, x, 1, 30)
		queues := node.Queues(t)
		prefix, count := "websocket.connection.", 30
		if scope == ScopeInstance {
			prefix, count = "websocket.instance.", 1
		}
		if len(queues) != count {
			t.Errorf("%s: there are %d queues, not %d", scope, len(queues), count)
		}
		for _, queue := range queues {
			if !strings.HasPrefix(queue, prefix) {
				t.Errorf("%s: a queue is called %s", scope, queue)
			}
		}
		properties := node.Ctl(t, "list_queues", "--no-table-headers", "durable", "auto_delete", "exclusive")
		for line := range strings.Lines(properties) {
			if got := strings.Fields(line); !slices.Equal(got, []string{"false", "true", "true"}) {
				t.Errorf("%s: a queue has durable, auto_delete, exclusive = %v", scope, got)
			}
		}
		if err := x.Stop(context.Background()); err != nil {
			t.Fatalf("stop: %v", err)
		}
		if queues := node.Queues(t); len(queues) != 0 {
			t.Errorf("%s: after Stop there are %q", scope, queues)
		}
		if _, err := x.Open(t.Context(), userID(1), func(app.Delivery) {}); !errors.Is(err, app.ErrBrokerUnavailable) {
			t.Errorf("%s: after Stop, Open returned %v", scope, err)
		}
	}
}

func faultQueueDeleted(t *testing.T, node *rabbittest.Node) {
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		config := testConfig(node.URL(), scope)
		x := startInboxes(t, config)
		eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
		users := openMany(t, x, 1, 12)
		backend := dialPeer(t, node.URL())
		users.expect(t, backend, config.WebsocketsExchange)
		before := node.Queues(t)
		// The queue is exclusive, so only its owner could delete it by AMQP.
		deleteQueues(t, node, before[:1])
		eventually(t, "all inboxes receive again", func() bool {
			if x.Check(t.Context()) != nil {
				return false
			}
			for i := range users.got {
				if !backend.publish(t, config.WebsocketsExchange, fmt.Sprint(i+1), "", []byte("{}")) {
					return false
				}
			}
			return true
		})
		eventually(t, "no inbox is missing", func() bool { return x.Check(t.Context()) == nil })
		after := node.Queues(t)
		if len(after) != len(before) || slices.Contains(after, before[0]) {
			t.Errorf("%s: the queues are %q, they were %q", scope, after, before)
		}
		if err := x.Stop(context.Background()); err != nil {
			t.Fatalf("stop: %v", err)
		}
	}
}

// deleteQueues has the server delete queues, exclusive ones too.
func deleteQueues(t *testing.T, node *rabbittest.Node, names []string) {
	t.Helper()
	for _, name := range names {
		node.Ctl(t, "eval", fmt.Sprintf(
			`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"%s">>)), rabbit_amqqueue:delete(Q, false, false, <<"operator">>).`, name))
	}
}

func faultMemoryAlarm(t *testing.T, node *rabbittest.Node) {
	config := testConfig(node.URL(), ScopeUser)
	p := startPublisher(t, config)
	x := startInboxes(t, config)
	eventually(t, "the broker takes messages", func() bool { return p.Check(t.Context()) == nil && x.Available() == nil })
	backend := dialPeer(t, node.URL())
	bindDatabase(t, backend.conn, config.DatabaseExchange)

	node.Ctl(t, "set_vm_memory_high_watermark", "0.00001")
	// Nobody publishes: the check finds out by itself.
	eventually(t, "the check says that the broker is blocked", func() bool {
		return errors.Is(p.Check(t.Context()), app.ErrBrokerBlocked)
	})
	if err := publishOne(t, p, "blocked", 10*time.Second); !errors.Is(err, app.ErrBrokerBlocked) {
		t.Errorf("a message to a blocked broker was settled with %v", err)
	}
	if err := p.Available(); err != nil {
		t.Errorf("a blocked broker is connected, but Available returned %v", err)
	}
	// The consumer's connection is not blocked: inboxes come and go.
	inbox := openInbox(t, x, 1, func(d app.Delivery) { d.Ack() })
	if err := inbox.Close(t.Context()); err != nil {
		t.Errorf("close an inbox under the alarm: %v", err)
	}
	// A publisher that starts under the alarm learns of it as well.
	late := startPublisher(t, config)
	eventually(t, "a new publisher's check says so too", func() bool {
		return errors.Is(late.Check(t.Context()), app.ErrBrokerBlocked)
	})
	if err := late.Stop(t.Context()); err != nil {
		t.Errorf("stop a blocked publisher: %v", err)
	}

	node.Ctl(t, "set_vm_memory_high_watermark", "0.4")
	eventually(t, "the check passes again", func() bool { return p.Check(t.Context()) == nil })
	if err := publishOne(t, p, "free", 10*time.Second); err != nil {
		t.Errorf("after the alarm a message was settled with %v", err)
	}
}

func faultKilled(t *testing.T, node *rabbittest.Node) {
	comesBack(t, node, func() { node.Kill(t) })
}

func faultRestarted(t *testing.T, node *rabbittest.Node) {
	comesBack(t, node, func() { node.Stop(t) })
}

// comesBack takes the broker away and brings it back, empty but for what is durable.
func comesBack(t *testing.T, node *rabbittest.Node, takeAway func()) {
	const count = 150 // more than one channel holds
	config := testConfig(node.URL(), ScopeUser)
	instanceConfig := config
	instanceConfig.Scope = ScopeInstance
	p, x, shared := startPublisher(t, config), startInboxes(t, config), startInboxes(t, instanceConfig)
	eventually(t, "everything is connected", func() bool {
		return p.Available() == nil && x.Available() == nil && shared.Available() == nil
	})
	users, sharers := openMany(t, x, 1, count), openMany(t, shared, 10_001, count)
	backend := dialPeer(t, node.URL())
	queue := bindDatabase(t, backend.conn, config.DatabaseExchange)
	users.expect(t, backend, config.WebsocketsExchange)
	sharers.expect(t, backend, config.WebsocketsExchange)

	// Messages are on their way all the time: each gets one verdict, in time.
	stop, publishing := make(chan struct{}), sync.WaitGroup{}
	var sent, confirmed, failed atomic.Int64
	publishing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			message := apptest.NewMessage(t, 1, fmt.Sprint("m-", i), 2, "body")
			sent.Add(1)
			turn := make(chan struct{})
			p.Publish(context.Background(), message, time.Now().Add(2*time.Second), func(err error) {
				if err == nil {
					confirmed.Add(1)
				} else {
					failed.Add(1)
				}
				close(turn)
			})
			if i%16 == 0 {
				<-turn
			}
		}
	})
	eventually(t, "messages are confirmed", func() bool { return confirmed.Load() > 100 })
	takeAway()
	eventually(t, "the loss is noticed", func() bool {
		return p.Available() != nil && x.Available() != nil && shared.Available() != nil
	})
	for _, err := range []error{p.Available(), p.Check(t.Context()), x.Available(), x.Check(t.Context()), shared.Check(t.Context())} {
		if !errors.Is(err, app.ErrBrokerUnavailable) {
			t.Errorf("while the broker is away there is the answer %v", err)
		}
	}
	if err := x.Check(t.Context()); err != nil && !strings.Contains(err.Error(), fmt.Sprintf("%d of %d user queues are missing", count, count)) {
		t.Errorf("the check says %v", err)
	}
	if _, err := x.Open(t.Context(), userID(5000), func(app.Delivery) {}); !errors.Is(err, app.ErrBrokerUnavailable) {
		t.Errorf("while the broker is away Open returned %v", err)
	}
	// A user who leaves meanwhile does not come back.
	for _, inbox := range []app.Inbox{users.open[0], sharers.open[0]} {
		if err := inbox.Close(t.Context()); err != nil {
			t.Errorf("close while the broker is away: %v", err)
		}
	}
	close(stop)
	publishing.Wait()
	eventually(t, "each message has its verdict", func() bool { return confirmed.Load()+failed.Load() == sent.Load() })
	if stored := len(queue.stored()); stored < int(confirmed.Load()) {
		t.Logf("the backend had got %d of %d confirmed messages when the broker went", stored, confirmed.Load())
	}

	node.Restart(t)
	eventually(t, "all is as it was", func() bool {
		return x.Check(t.Context()) == nil && shared.Check(t.Context()) == nil && p.Check(t.Context()) == nil
	})
	backend = dialPeer(t, node.URL())
	users.got, users.first = users.got[1:], users.first+1
	sharers.got, sharers.first = sharers.got[1:], sharers.first+1
	users.expect(t, backend, config.WebsocketsExchange)
	sharers.expect(t, backend, config.WebsocketsExchange)
	for _, gone := range []string{"1", "10001"} {
		if backend.publish(t, config.WebsocketsExchange, gone, "", []byte("{}")) {
			t.Errorf("user %s has left, but has a queue", gone)
		}
	}
	bindDatabase(t, backend.conn, config.DatabaseExchange)
	if err := publishOne(t, p, "after", 10*time.Second); err != nil {
		t.Errorf("after the restart a message was settled with %v", err)
	}
	if queues := node.Queues(t); len(queues) != count-1+2 {
		t.Errorf("there are %d queues", len(queues))
	}
}

// faultFrozen: the broker answers nothing, and TCP does not say so.
func faultFrozen(t *testing.T, node *rabbittest.Node) {
	config := testConfig(node.URL(), ScopeUser)
	p, x := startPublisher(t, config), startInboxes(t, config)
	eventually(t, "everything is connected", func() bool { return p.Available() == nil && x.Available() == nil })
	users := openMany(t, x, 1, 3)
	node.Freeze(t)
	thaw := sync.OnceFunc(func() { node.Thaw(t) })
	defer thaw()
	if err := p.Check(t.Context()); !errors.Is(err, app.ErrConfirmTimeout) {
		t.Errorf("the check of a frozen broker returned %v", err)
	}
	if err := publishOne(t, p, "frozen", 500*time.Millisecond); !errors.Is(err, app.ErrConfirmTimeout) {
		t.Errorf("a message to a frozen broker was settled with %v", err)
	}
	opening, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := x.Open(opening, userID(99), func(app.Delivery) {}); !errors.Is(err, app.ErrBrokerUnavailable) {
		t.Errorf("Open returned %v", err)
	}
	closing, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := users.open[2].Close(closing); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close returned %v", err)
	}
	eventually(t, "the inboxes say that nothing answers, before they have given up", func() bool {
		return x.Available() == nil && errors.Is(x.Check(t.Context()), app.ErrBrokerUnavailable)
	})
	eventually(t, "the connections are given up", func() bool { return p.Available() != nil && x.Available() != nil })
	thaw()
	eventually(t, "all is as it was", func() bool { return x.Check(t.Context()) == nil && p.Check(t.Context()) == nil })
	users.got = users.got[:2]
	backend := dialPeer(t, node.URL())
	users.expect(t, backend, config.WebsocketsExchange)
	for _, user := range []string{"3", "99"} {
		eventually(t, "user "+user+" has no queue", func() bool {
			return !backend.publish(t, config.WebsocketsExchange, user, "", []byte("{}"))
		})
	}
}

// faultFrozenFull has the writer stuck in write(2): deadlines hold all the same.
func faultFrozenFull(t *testing.T, node *rabbittest.Node) {
	config := testConfig(node.URL(), ScopeUser)
	p := startPublisher(t, config)
	eventually(t, "the publisher is connected", func() bool { return p.Available() == nil })
	node.Freeze(t)
	thaw := sync.OnceFunc(func() { node.Thaw(t) })
	defer thaw()
	const count = 300
	body := strings.Repeat("x", 100_000)
	var verdicts sync.WaitGroup
	var other, latest atomic.Int64
	for i := range count {
		verdicts.Add(1)
		deadline := time.Now().Add(time.Second)
		p.Publish(context.Background(), apptest.NewMessage(t, 1, fmt.Sprint(i), 2, body), deadline, func(err error) {
			if !errors.Is(err, app.ErrConfirmTimeout) {
				other.Add(1)
			}
			if late := time.Since(deadline).Milliseconds(); late > latest.Load() {
				latest.Store(late)
			}
			verdicts.Done()
		})
	}
	verdicts.Wait()
	t.Logf("the latest verdict came %d ms after its deadline", latest.Load())
	if n := other.Load(); n > 0 {
		t.Errorf("%d of %d messages were not settled with a timeout", n, count)
	}
	if err := p.Available(); err != nil {
		t.Errorf("the verdicts came only when the connection was given up: %v", err)
	}
	eventually(t, "the connection is given up", func() bool { return p.Available() != nil })
	thaw()
	eventually(t, "the publisher comes back", func() bool { return p.Check(t.Context()) == nil })
}

func faultStopWhileFrozen(t *testing.T, node *rabbittest.Node) {
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		config := testConfig(node.URL(), scope)
		config.StopTimeout = 2 * time.Second
		p, x := startPublisher(t, config), startInboxes(t, config)
		eventually(t, "everything is connected", func() bool { return p.Available() == nil && x.Available() == nil })
		openMany(t, x, 1, 20)
		func() {
			node.Freeze(t)
			defer node.Thaw(t)
			settled := make(chan error, 1)
			p.Publish(context.Background(), apptest.NewMessage(t, 1, "frozen", 2, "x"), time.Now().Add(time.Minute), func(err error) { settled <- err })
			if err := x.Stop(context.Background()); err != nil {
				t.Errorf("%s: stop the inboxes: %v", scope, err)
			}
			if err := p.Stop(context.Background()); err != nil {
				t.Errorf("%s: stop the publisher: %v", scope, err)
			}
			if err := <-settled; !errors.Is(err, app.ErrBrokerUnavailable) {
				t.Errorf("%s: the message was settled with %v", scope, err)
			}
		}()
	}
}

func TestExchangeDeleted(t *testing.T) {
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		t.Run(string(scope), func(t *testing.T) {
			config := testConfig(rabbittest.URL(t), scope)
			x := startInboxes(t, config)
			eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
			users := openMany(t, x, 1, 5)
			backend := dialPeer(t, config.URLs[0])
			users.expect(t, backend, config.WebsocketsExchange)
			if err := backend.channel.ExchangeDelete(config.WebsocketsExchange, false, false); err != nil {
				t.Fatal(err)
			}
			// A user who comes just then must not be the only one to find it made anew.
			eventually(t, "another user can come", func() bool {
				_, err := x.Open(t.Context(), userID(77), func(d app.Delivery) { d.Ack() })
				return err == nil
			})
			for i := range 5 {
				eventually(t, "all users receive again", func() bool {
					return backend.publish(t, config.WebsocketsExchange, fmt.Sprint(i+1), "", []byte("{}"))
				})
			}
		})
	}
	t.Run("database", func(t *testing.T) {
		config := testConfig(rabbittest.URL(t), ScopeUser)
		p := startPublisher(t, config)
		eventually(t, "the publisher is connected", func() bool { return p.Check(t.Context()) == nil })
		backend := dialPeer(t, config.URLs[0])
		if err := backend.channel.ExchangeDelete(config.DatabaseExchange, false, false); err != nil {
			t.Fatal(err)
		}
		if err := publishOne(t, p, "lost", 10*time.Second); !errors.Is(err, app.ErrBrokerUnavailable) {
			t.Errorf("a message to an exchange that is gone was settled with %v", err)
		}
		eventually(t, "messages are stored again", func() bool {
			if p.Check(t.Context()) != nil {
				return false
			}
			queue := bindDatabase(t, backend.conn, config.DatabaseExchange)
			defer queue.remove(t)
			return publishOne(t, p, "kept", 10*time.Second) == nil
		})
	})
}

// TestExchangeOfPeers: an exchange that peers have made otherwise is used as it is.
func TestExchangeOfPeers(t *testing.T) {
	config := testConfig(rabbittest.URL(t), ScopeUser)
	backend := dialPeer(t, config.URLs[0])
	for _, name := range []string{config.DatabaseExchange, config.WebsocketsExchange} {
		args := amqp.Table{"alternate-exchange": "amq.fanout"}
		if err := backend.channel.ExchangeDeclare(name, "direct", false, false, false, false, args); err != nil {
			t.Fatal(err)
		}
	}
	p, x := startPublisher(t, config), startInboxes(t, config)
	eventually(t, "everything is connected", func() bool { return p.Available() == nil && x.Available() == nil })
	bindDatabase(t, backend.conn, config.DatabaseExchange)
	if err := publishOne(t, p, "m", 10*time.Second); err != nil {
		t.Error(err)
	}
	openMany(t, x, 1, 2).expect(t, backend, config.WebsocketsExchange)
}

// TestProperties: the message as a backend sees it.
func TestProperties(t *testing.T) {
	config := testConfig(rabbittest.URL(t), ScopeUser)
	p := startPublisher(t, config)
	eventually(t, "the publisher is connected", func() bool { return p.Available() == nil })
	backend := dialPeer(t, config.URLs[0])
	queue := bindDatabase(t, backend.conn, config.DatabaseExchange)
	for _, id := range []string{"short", strings.Repeat("é", 127), strings.Repeat("é", 128)} {
		message := apptest.NewMessage(t, 1, id, 2, "x")
		settled := make(chan error, 1)
		p.Publish(context.Background(), message, time.Now().Add(10*time.Second), func(err error) { settled <- err })
		if err := <-settled; err != nil {
			t.Fatal(err)
		}
		var got amqp.Delivery
		eventually(t, "the message is stored", func() bool {
			queue.mu.Lock()
			defer queue.mu.Unlock()
			if len(queue.all) == 0 {
				return false
			}
			got, queue.all = queue.all[0], nil
			return true
		})
		if len(id) > 255 {
			id = ""
		}
		want := amqp.Delivery{
			Acknowledger: got.Acknowledger, ConsumerTag: got.ConsumerTag, DeliveryTag: got.DeliveryTag, Body: got.Body,
			ContentType: "application/json", ContentEncoding: "utf-8", DeliveryMode: 2, MessageId: id,
			Timestamp: message.SentAt().Truncate(time.Second).Local(), AppId: config.AppID, Exchange: config.DatabaseExchange,
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the message came as\n%v\nnot as\n%v", got, want)
		}
		if entity, _ := app.AppendEntity(nil, message); !bytes.Equal(got.Body, entity) {
			t.Errorf("the body is %s", got.Body)
		}
	}
}

// TestStartBeforeBroker starts where nothing listens; a broker appears there later, as
// the second of two URLs.
func TestStartBeforeBroker(t *testing.T) {
	upstream := strings.TrimSuffix(strings.TrimPrefix(rabbittest.URL(t), "amqp://guest:guest@"), "/")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	config := testConfig("amqp://guest:guest@127.0.0.1:1/", ScopeUser)
	config.URLs = append(config.URLs, "amqp://guest:guest@"+address+"/?heartbeat=2")
	p, x := startPublisher(t, config), startInboxes(t, config)
	for _, err := range []error{p.Available(), p.Check(t.Context()), x.Available(), x.Check(t.Context())} {
		if !errors.Is(err, app.ErrBrokerUnavailable) {
			t.Errorf("before the broker is there the answer is %v", err)
		}
	}
	if err := publishOne(t, p, "early", 10*time.Second); !errors.Is(err, app.ErrBrokerUnavailable) {
		t.Errorf("an early message was settled with %v", err)
	}
	listener, err = net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	relay := relayTo(t, listener, upstream)
	eventually(t, "everything is connected", func() bool { return p.Check(t.Context()) == nil && x.Available() == nil })
	if n := relay.connections(); n != 2 {
		t.Errorf("there are %d connections", n)
	}
	users := openMany(t, x, 1, 3)
	relay.cut()
	eventually(t, "the connections are made anew", func() bool {
		return relay.connections() == 4 && p.Check(t.Context()) == nil && x.Check(t.Context()) == nil
	})
	users.expect(t, dialPeer(t, rabbittest.URL(t)), config.WebsocketsExchange)
}

func TestStopWithoutBroker(t *testing.T) {
	config := testConfig("amqp://guest:guest@127.0.0.1:1/", ScopeUser)
	startPublisher(t, config)
	startInboxes(t, config)
	config.URLs = []string{"not a URL", "amqp://guest:guest@127.0.0.1:1/"}
	startPublisher(t, config)
	// A listener that never answers the handshake.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	config.URLs = []string{"amqp://guest:guest@" + listener.Addr().String() + "/"}
	startInboxes(t, config)
	p := startPublisher(t, config)
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := p.Stop(context.Background()); err != nil {
		t.Errorf("stop during a handshake: %v", err)
	}
}

// TestStopWaitsForVerdicts: what Publish took before Stop is confirmed, nothing after.
func TestStopWaitsForVerdicts(t *testing.T) {
	config := testConfig(rabbittest.URL(t), ScopeUser)
	p := startPublisher(t, config)
	eventually(t, "the publisher is connected", func() bool { return p.Available() == nil })
	backend := dialPeer(t, config.URLs[0])
	queue := bindDatabase(t, backend.conn, config.DatabaseExchange)
	const count = 2000
	var confirmed atomic.Int64
	for i := range count {
		p.Publish(context.Background(), apptest.NewMessage(t, 1, fmt.Sprint(i), 2, "x"), time.Now().Add(time.Minute), func(err error) {
			if err == nil {
				confirmed.Add(1)
			}
		})
	}
	if err := p.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := confirmed.Load(); n != count {
		t.Errorf("%d of %d messages were confirmed when Stop returned", n, count)
	}
	eventually(t, "all messages are stored", func() bool { return len(queue.stored()) == count })
	if err := publishOne(t, p, "late", time.Minute); !errors.Is(err, app.ErrBrokerUnavailable) {
		t.Errorf("after Stop a message was settled with %v", err)
	}
	if err := p.Stop(context.Background()); err != nil {
		t.Errorf("a second Stop: %v", err)
	}
}

// relay passes TCP connections on, and cuts them when told to.
type relay struct {
	mu    sync.Mutex
	conns []net.Conn
	total int
}

func relayTo(t *testing.T, listener net.Listener, upstream string) *relay {
	r := &relay{}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			down, err := listener.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", upstream)
			if err != nil {
				_ = down.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, down, up)
			r.total++
			r.mu.Unlock()
			for _, pair := range [][2]net.Conn{{down, up}, {up, down}} {
				running.Go(func() {
					defer pair[0].Close()
					defer pair[1].Close()
					buffer := make([]byte, 4096)
					for {
						n, err := pair[0].Read(buffer)
						if _, writeErr := pair[1].Write(buffer[:n]); err != nil || writeErr != nil {
							return
						}
					}
				})
			}
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		r.cut()
		running.Wait()
	})
	return r
}

func (r *relay) connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}

func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range r.conns {
		_ = conn.Close()
	}
	r.conns = nil
}

// TestReceiveBlockedWhileReconnecting: a user whose deliveries are held up gets a queue
// anew at once, and the order is kept across the two connections.
func TestReceiveBlockedWhileReconnecting(t *testing.T) {
	config := testConfig(rabbittest.URL(t), ScopeUser)
	x := startInboxes(t, config)
	eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
	release, got := make(chan struct{}), make(chan string, 10)
	inbox := openInbox(t, x, 1, func(d app.Delivery) {
		got <- string(d.Body)
		<-release
		d.Ack()
	})
	backend := dialPeer(t, config.URLs[0])
	backend.publish(t, config.WebsocketsExchange, "1", "", []byte("first"))
	if body := <-got; body != "first" {
		t.Fatalf("got %s", body)
	}
	x.link.session.Load().end(errors.New("cut by the test"))
	eventually(t, "the inbox is back", func() bool { return x.Check(t.Context()) == nil })
	if !backend.publish(t, config.WebsocketsExchange, "1", "", []byte("second")) {
		t.Fatal("the message went to no queue")
	}
	select {
	case body := <-got:
		t.Fatalf("%s was handed out while the delivery before was still being received", body)
	default:
	}
	close(release)
	if body := <-got; body != "second" {
		t.Fatalf("got %s", body)
	}
	if err := inbox.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestLateSettlement: what is settled after its connection was lost is ignored; its tags
// would mean other deliveries, or none, on the new one.
func TestLateSettlement(t *testing.T) {
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		t.Run(string(scope), func(t *testing.T) {
			config := testConfig(rabbittest.URL(t), scope)
			x := startInboxes(t, config)
			eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
			deliveries := make(chan app.Delivery, 100)
			openInbox(t, x, 1, func(d app.Delivery) { deliveries <- d })
			backend := dialPeer(t, config.URLs[0])
			var old []app.Delivery
			for range 3 {
				backend.publish(t, config.WebsocketsExchange, "1", "", []byte("old"))
				old = append(old, <-deliveries)
			}
			x.link.session.Load().end(errors.New("cut by the test"))
			eventually(t, "the inbox is back", func() bool { return x.Check(t.Context()) == nil })
			session := x.link.session.Load()
			prefetch := config.Prefetch
			if scope == ScopeInstance {
				prefetch = config.InstancePrefetch
			}
			for range prefetch + 1 {
				backend.publish(t, config.WebsocketsExchange, "1", "", []byte("new"))
			}
			var current []app.Delivery
			for range prefetch {
				current = append(current, <-deliveries)
			}
			for _, d := range old {
				d.Ack()
				d.Reject()
			}
			current[1].Ack()
			current[1].Ack() // a fault of the caller that would cost the channel
			current = append(current, <-deliveries)
			for _, d := range current {
				d.Ack()
			}
			backend.publish(t, config.WebsocketsExchange, "1", "", []byte("new"))
			(<-deliveries).Ack()
			if x.link.session.Load() != session || x.Check(t.Context()) != nil {
				t.Error("the connection did not last")
			}
		})
	}
}
