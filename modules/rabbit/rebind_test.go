package rabbit

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// deleteExchange has the peer delete an exchange, and declare it anew at once if told to.
func (p *peer) deleteExchange(t *testing.T, name string, anew bool) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.channel.ExchangeDelete(name, false, false); err != nil {
		t.Fatal(err)
	}
	if !anew {
		return
	}
	if err := p.channel.ExchangeDeclare(name, amqp.ExchangeDirect, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
}

// reachable waits until a message to each of the users goes to a queue.
func (c *counted) reachable(t *testing.T, url, exchange string) {
	t.Helper()
	// Of its own, since publishing to an exchange that is not there costs the channel.
	backend := dialPeer(t, url)
	for i := range c.got {
		key := fmt.Sprint(c.first + int64(i))
		eventually(t, "user "+key+" is reachable again", func() bool { return backend.publish(t, exchange, key, "", []byte("{}")) })
	}
	// What was published until now was received when what comes after it is.
	for i := range c.got {
		got := c.got[i].Load()
		backend.publish(t, exchange, fmt.Sprint(c.first+int64(i)), "", []byte("{}"))
		eventually(t, "a message is received", func() bool { return c.got[i].Load() > got })
	}
}

// TestExchangeRedeclared: the exchange is there again before anybody looks, without its
// bindings. Nobody is told; all users are reachable again all the same.
func TestExchangeRedeclared(t *testing.T) {
	const count = 2*rebindBatch + 5 // more than one look's batch
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		t.Run(string(scope), func(t *testing.T) {
			config := testConfig(rabbittest.URL(t), scope)
			x := startInboxes(t, config)
			eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
			users := openMany(t, x, 1, count)
			backend := dialPeer(t, config.URLs[0])
			for range 2 {
				users.expect(t, backend, config.WebsocketsExchange)
				backend.deleteExchange(t, config.WebsocketsExchange, true)
				users.reachable(t, config.URLs[0], config.WebsocketsExchange)
			}
			eventually(t, "no inbox is missing", func() bool { return x.Check(t.Context()) == nil })
		})
	}
}

// TestExchangeRedeclaredByInstance: of several instances one declares the exchange anew;
// the others notice all the same that it was gone, each by itself.
func TestExchangeRedeclaredByInstance(t *testing.T) {
	config := testConfig(rabbittest.URL(t), ScopeUser)
	var all []*counted
	for i, scope := range []Scope{ScopeUser, ScopeInstance, ScopeUser, ScopeInstance} {
		config.Scope = scope
		x := startInboxes(t, config)
		eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
		all = append(all, openMany(t, x, int64(100*(i+1)), 5))
	}
	backend := dialPeer(t, config.URLs[0])
	backend.deleteExchange(t, config.WebsocketsExchange, false)
	eventually(t, "the exchange is there again", func() bool {
		channel, err := backend.conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if channel.ExchangeDeclarePassive(config.WebsocketsExchange, amqp.ExchangeDirect, true, false, false, false, nil) != nil {
			return false
		}
		return channel.Close() == nil
	})
	for _, users := range all {
		users.reachable(t, config.URLs[0], config.WebsocketsExchange)
	}
}

// TestRebindAfterClose: an inbox that has gone since its seat was looked at gets no
// binding, and one whose turn is taken is not waited for.
func TestRebindAfterClose(t *testing.T) {
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		t.Run(string(scope), func(t *testing.T) {
			config := testConfig(rabbittest.URL(t), scope)
			x := startInboxes(t, config)
			eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
			b := openInbox(t, x, 1, func(d app.Delivery) { d.Ack() }).(*inbox)
			x.mu.Lock()
			s := b.seat
			x.mu.Unlock()
			own := &lane{session: s.epoch.session, exchange: config.WebsocketsExchange}
			rebind := func() error {
				done, err := s.epoch.layout.rebind(b, s, own)
				if err == nil {
					err = own.lookUp()
				}
				if done != nil {
					done()
				}
				return err
			}
			if err := rebind(); err != nil {
				t.Errorf("rebind an open inbox: %v", err)
			}
			if q, ok := s.epoch.layout.(*instanceQueue); ok {
				u, _ := q.enter("1", nil)
				if err := rebind(); err != nil { // or it would wait forever
					t.Errorf("rebind while another has the turn: %v", err)
				}
				q.leave("1", u)
			}
			if err := b.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := rebind(); (err == nil) != (scope == ScopeInstance) {
				t.Errorf("rebind a closed inbox: %v", err)
			}
			// What the watch does of it: the queue is gone, and the exchange is there.
			if _, err := x.look(t.Context(), s.epoch, own, nil); err != nil {
				t.Errorf("look after that: %v", err)
			}
			if dialPeer(t, config.URLs[0]).publish(t, config.WebsocketsExchange, "1", "", []byte("{}")) {
				t.Error("a closed inbox has a binding")
			}
			if s.epoch.session.over() {
				t.Errorf("the connection was given up: %v", s.epoch.session.cause)
			}
		})
	}
}

// faultCloseDuringRebind has users come and go while all are bound again without a pause.
func faultCloseDuringRebind(t *testing.T, node *rabbittest.Node) {
	const users, rounds, staying = 8, 25, 3
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		config := testConfig(node.URL(), scope)
		x := startInboxes(t, config)
		eventually(t, "inboxes are connected", func() bool { return x.Available() == nil })
		stay := openMany(t, x, 1001, staying)
		x.mu.Lock()
		epoch := x.epoch
		x.mu.Unlock()
		binding, stop := context.WithCancel(t.Context())
		var watching, coming sync.WaitGroup
		watching.Go(func() {
			own := &lane{session: epoch.session, exchange: config.WebsocketsExchange}
			for binding.Err() == nil {
				if _, err := x.look(binding, epoch, own, nil); err != nil && binding.Err() == nil {
					t.Errorf("%s: look: %v", scope, err)
				}
			}
		})
		for i := range users {
			coming.Go(func() {
				for range rounds {
					inbox, err := x.Open(t.Context(), userID(int64(i+1)), func(d app.Delivery) { d.Ack() })
					if err != nil {
						t.Errorf("%s: %v", scope, err)
						return
					}
					if err := inbox.Close(t.Context()); err != nil {
						t.Errorf("%s: %v", scope, err)
					}
				}
			})
		}
		coming.Wait()
		stop()
		watching.Wait()
		var keys []string
		for line := range strings.Lines(node.Ctl(t, "list_bindings", "--no-table-headers", "source_name", "routing_key")) {
			if exchange, key, _ := strings.Cut(strings.TrimSpace(line), "\t"); exchange == config.WebsocketsExchange {
				keys = append(keys, key)
			}
		}
		if len(keys) != staying || strings.Count(strings.Join(keys, " "), "100") != staying {
			t.Errorf("%s: bindings are left for the users %q", scope, keys)
		}
		if epoch.session.over() {
			t.Errorf("%s: the connection was given up: %v", scope, epoch.session.cause)
		}
		stay.expect(t, dialPeer(t, node.URL()), config.WebsocketsExchange)
		if err := x.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}
