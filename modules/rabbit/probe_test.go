package rabbit

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// collector is a queue that gets what no queue on the database exchange takes.
type collector struct {
	channel *amqp.Channel
	queue   string
}

// collect makes the database exchange, with an alternate exchange and a queue there.
func collect(t *testing.T, conn *amqp.Connection, config Config) *collector {
	t.Helper()
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	alternate := config.DatabaseExchange + ".alternate"
	if err := channel.ExchangeDeclare(alternate, amqp.ExchangeFanout, false, true, false, false, nil); err != nil {
		t.Fatal(err)
	}
	queue, err := channel.QueueDeclare("", false, false, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := channel.QueueBind(queue.Name, "", alternate, false, nil); err != nil {
		t.Fatal(err)
	}
	args := amqp.Table{"alternate-exchange": alternate}
	if err := channel.ExchangeDeclare(config.DatabaseExchange, amqp.ExchangeDirect, true, false, false, false, args); err != nil {
		t.Fatal(err)
	}
	return &collector{channel: channel, queue: queue.Name}
}

// keys returns the routing keys of what has come, in order.
func (c *collector) keys(t *testing.T) []string {
	t.Helper()
	var keys []string
	for {
		message, found, err := c.channel.Get(c.queue, true)
		if err != nil {
			t.Fatal(err)
		}
		if !found {
			return keys
		}
		keys = append(keys, message.RoutingKey)
	}
}

// probeAgain calls Check as it is called when nothing was confirmed for a while.
func probeAgain(p *Publisher) error {
	if epoch := p.current.Load(); epoch != nil {
		epoch.confirmed.Store(0)
	}
	return p.Check(context.Background())
}

// TestProbesAreCollectedNowhere: what asks the broker is not taken for what clients say.
func TestProbesAreCollectedNowhere(t *testing.T) {
	config := testConfig(rabbittest.URL(t), ScopeUser)
	collector := collect(t, dialPeer(t, config.URLs[0]).conn, config)
	p := startPublisher(t, config)
	eventually(t, "the publisher is connected", func() bool { return p.Available() == nil })
	session := p.link.session.Load()
	for range 5 {
		if err := probeAgain(p); err != nil {
			t.Errorf("the check returned %v", err)
		}
	}
	if err := publishOne(t, p, "m", 10*time.Second); err != nil {
		t.Errorf("a message that the alternate exchange takes was settled with %v", err)
	}
	if err := probeAgain(p); err != nil {
		t.Errorf("the check returned %v", err)
	}
	if keys := collector.keys(t); !slices.Equal(keys, []string{""}) {
		t.Errorf("the alternate exchange got messages under %q, not the client's alone", keys)
	}
	if p.probesRefused.Load() || p.link.session.Load() != session {
		t.Error("the probes were refused, or cost the connection")
	}
}

// TestProbeChannelLost: a probe whose channel goes for another reason than a refusal is
// answered all the same, and the next connection tries the default exchange again.
func TestProbeChannelLost(t *testing.T) {
	config := testConfig(rabbittest.URL(t), ScopeUser)
	collector := collect(t, dialPeer(t, config.URLs[0]).conn, config)
	p := startPublisher(t, config)
	eventually(t, "the publisher is connected", func() bool { return p.Available() == nil })
	epoch := p.current.Load()
	if err := epoch.probing.Close(); err != nil {
		t.Fatal(err)
	}
	if err := probeAgain(p); err != nil {
		t.Errorf("the check returned %v", err)
	}
	if keys := collector.keys(t); !slices.Equal(keys, []string{probeKey}) {
		t.Errorf("the alternate exchange got messages under %q", keys)
	}
	if p.probesRefused.Load() || epoch.session.over() {
		t.Error("the probes count as refused, or cost the connection")
	}
	epoch.session.end(errors.New("cut by the test"))
	eventually(t, "the publisher is connected again", func() bool { return p.Available() == nil && p.current.Load() != epoch })
	if err := probeAgain(p); err != nil {
		t.Errorf("the check returned %v", err)
	}
	if keys := collector.keys(t); len(keys) != 0 {
		t.Errorf("the alternate exchange got messages under %q", keys)
	}
}

// TestWritesRefused: where the broker refuses what clients send, readiness says so, without
// costing a connection each time, until messages are taken again.
func TestWritesRefused(t *testing.T) {
	config := testConfig(rabbittest.URL(t), ScopeUser)
	backend := dialPeer(t, config.URLs[0])
	declare := func(internal bool) {
		if err := backend.channel.ExchangeDeclare(config.DatabaseExchange, amqp.ExchangeDirect, true, false, internal, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	declare(true)
	p := startPublisher(t, config)
	eventually(t, "the publisher is connected", func() bool { return p.Available() == nil })
	first := p.link.session.Load()
	if err := publishOne(t, p, "m", 10*time.Second); !errors.Is(err, app.ErrBrokerUnavailable) {
		t.Errorf("a message to an internal exchange was settled with %v", err)
	}
	eventually(t, "the publisher is connected again", func() bool {
		return p.Available() == nil && p.link.session.Load() != first
	})
	second := p.link.session.Load()
	for range 3 {
		if err := probeAgain(p); !errors.Is(err, app.ErrBrokerUnavailable) || !hasCode(err, amqp.AccessRefused) {
			t.Errorf("the check returned %v", err)
		}
	}
	if err := backend.channel.ExchangeDelete(config.DatabaseExchange, false, false); err != nil {
		t.Fatal(err)
	}
	declare(false)
	queue := bindDatabase(t, backend.conn, config.DatabaseExchange)
	if err := probeAgain(p); err != nil {
		t.Errorf("once messages are taken the check returned %v", err)
	}
	if p.link.session.Load() != second {
		t.Error("the checks cost the connection")
	}
	if err := publishOne(t, p, "m", 10*time.Second); err != nil {
		t.Errorf("a message was settled with %v", err)
	}
	eventually(t, "the message is stored, and no probe", func() bool { return len(queue.stored()) == 1 })
}

// TestFewChannels: a connection that may have few channels has places for all users.
func TestFewChannels(t *testing.T) {
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		t.Run(string(scope), func(t *testing.T) {
			config := testConfig(rabbittest.URL(t)+"?channel_max=3", scope)
			x := startInboxes(t, config)
			eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
			openMany(t, x, 1, 3*consumersPerChannel+1)
			if err := x.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// faultProbesRefused has a user who may not write to the default exchange.
func faultProbesRefused(t *testing.T, node *rabbittest.Node) {
	node.Ctl(t, "add_user", "narrow", "narrow")
	node.Ctl(t, "set_permissions", "narrow", "^$", `^test\.database\..*$`, "^$")
	config := testConfig("amqp://narrow:narrow@"+node.Address()+"/", ScopeUser)
	backend := dialPeer(t, node.URL())
	collector := collect(t, backend.conn, config)
	queue := bindDatabase(t, backend.conn, config.DatabaseExchange)

	core, logs := observer.New(zap.InfoLevel)
	p := NewPublisher(config, zap.New(core), prometheus.NewRegistry())
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Stop(context.Background()); err != nil {
			t.Errorf("stop the publisher: %v", err)
		}
	}()
	eventually(t, "the publisher is connected", func() bool { return p.Available() == nil })
	session := p.link.session.Load()

	// Messages of clients are on their way while the broker refuses the probe.
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			if err := p.Check(context.Background()); err != nil {
				t.Errorf("a check returned %v", err)
			}
		})
	}
	const count = 50
	for range count {
		if err := publishOne(t, p, "m", 10*time.Second); err != nil {
			t.Errorf("a message was settled with %v", err)
		}
	}
	asking.Wait()
	for range 3 {
		if err := probeAgain(p); err != nil {
			t.Errorf("a check returned %v", err)
		}
	}
	if !p.probesRefused.Load() || p.link.session.Load() != session {
		t.Error("the probes were not refused, or that cost the connection")
	}
	keys := collector.keys(t)
	if slices.ContainsFunc(keys, func(key string) bool { return key != probeKey }) || len(keys) < 3 {
		t.Errorf("through the database exchange there came messages under %q", keys)
	}
	eventually(t, "all messages are stored", func() bool { return len(queue.stored()) == count })

	session.end(errors.New("cut by the test"))
	eventually(t, "the publisher is connected again", func() bool {
		return p.Available() == nil && p.link.session.Load() != session
	})
	if err := probeAgain(p); err != nil {
		t.Errorf("on the next connection the check returned %v", err)
	}
	if p.current.Load().probing != nil {
		t.Error("on the next connection the broker is to refuse a probe again")
	}
	if n := logs.FilterMessageSnippet("amq.default").Len(); n != 1 {
		t.Errorf("the log says it %d times", n)
	}
}
