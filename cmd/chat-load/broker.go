package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// brokerConfig says which broker, and which of its exchanges. It can be sent to another
// process.
type brokerConfig struct {
	URL        string
	Websockets string // exchange that backends publish to for users
	Database   string // exchange that the messages of clients go to
}

// login is how to log in where the URL does not go.
type login struct{ user, password, vhost string }

// errAMQPURL leaves the URL out: it holds a password.
var errAMQPURL = errors.New("the AMQP URL can't be read")

func (c brokerConfig) login() login {
	uri, err := amqp.ParseURI(c.URL)
	if err != nil {
		return login{}
	}
	return login{uri.Username, uri.Password, uri.Vhost}
}

// Bounds of the AMQP connections.
const (
	dialTimeout = 10 * time.Second
	heartbeat   = 10 * time.Second
)

// dial connects to the broker under a name that its operators see. The connection ends
// with Close only, not with ctx.
func (c brokerConfig) dial(ctx context.Context, name string) (*amqp.Connection, error) {
	if _, err := amqp.ParseURI(c.URL); err != nil {
		return nil, errAMQPURL
	}
	conn, err := amqp.DialConfig(c.URL, amqp.Config{
		Heartbeat:  heartbeat,
		Properties: amqp.Table{"connection_name": name, "product": "chat-load"},
		Dial: func(network, address string) (net.Conn, error) {
			dialled, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			// amqp091 takes the deadline away once the connection is open.
			if err := dialled.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
				_ = dialled.Close()
				return nil, err
			}
			return newGathering(dialled), nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	return conn, nil
}

// declare looks the exchanges up and declares those that are absent, as the gateway does.
func (c brokerConfig) declare(conn *amqp.Connection) error {
	for _, exchange := range []string{c.Websockets, c.Database} {
		channel, err := conn.Channel()
		if err != nil {
			return fmt.Errorf("open a channel: %w", err)
		}
		if err = channel.ExchangeDeclarePassive(exchange, amqp.ExchangeDirect, true, false, false, false, nil); err == nil {
			_ = channel.Close()
			continue
		}
		// The broker has closed the channel along with its answer.
		if channel, err = conn.Channel(); err != nil {
			return fmt.Errorf("open a channel: %w", err)
		}
		if err := channel.ExchangeDeclare(exchange, amqp.ExchangeDirect, true, false, false, false, nil); err != nil {
			return fmt.Errorf("declare the exchange %q: %w", exchange, err)
		}
		_ = channel.Close()
	}
	return nil
}

// closeTimeout bounds the goodbye to a broker.
const closeTimeout = 3 * time.Second

func closeBroker(conn *amqp.Connection) {
	if conn != nil {
		_ = conn.CloseDeadline(time.Now().Add(closeTimeout))
	}
}

// publishing returns the message that the gateway, or a backend, would publish.
func publishing(body []byte) amqp.Publishing {
	return amqp.Publishing{
		ContentType:     "application/json",
		ContentEncoding: "utf-8",
		DeliveryMode:    amqp.Persistent,
		Body:            body,
	}
}

// ackDelay is how long a handled delivery may wait for others to be acknowledged with.
const ackDelay = time.Millisecond

// acker acknowledges the deliveries of one channel, whose consumers may handle them side
// by side: several with one frame, up to the first that has not been handled. It is safe
// for concurrent use; nobody else may acknowledge on the channel.
type acker struct {
	channel *amqp.Channel
	batch   uint64

	mu      sync.Mutex
	next    uint64              // the lowest tag that has not been handled
	ahead   map[uint64]struct{} // handled tags above it
	acked   uint64              // the highest tag that has been acknowledged
	flush   *time.Timer
	waiting bool // flush will fire
}

// newAcker returns the acker of a new channel. No more than batch handled deliveries wait.
func newAcker(channel *amqp.Channel, batch uint64) *acker {
	a := &acker{channel: channel, batch: batch, next: 1, ahead: make(map[uint64]struct{})}
	a.flush = time.AfterFunc(time.Hour, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.waiting = false
		a.ack()
	})
	a.flush.Stop()
	return a
}

// handled says that the delivery with the tag has been handled.
func (a *acker) handled(tag uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if tag != a.next {
		a.ahead[tag] = struct{}{}
		return
	}
	a.next++
	for len(a.ahead) > 0 {
		if _, ok := a.ahead[a.next]; !ok {
			break
		}
		delete(a.ahead, a.next)
		a.next++
	}
	if a.next-1-a.acked >= a.batch {
		a.ack()
	} else if !a.waiting {
		a.waiting = true
		a.flush.Reset(ackDelay)
	}
}

// ack acknowledges what has been handled. A failure means that the channel has closed,
// which its consumers notice.
func (a *acker) ack() {
	if a.acked+1 < a.next {
		a.acked = a.next - 1
		_ = a.channel.Ack(a.acked, true)
	}
}

// stop ends the acker; what has not been acknowledged stays so.
func (a *acker) stop() { a.flush.Stop() }

// consume handles deliveries until their channel closes.
func (a *acker) consume(deliveries <-chan amqp.Delivery, handle func(body []byte)) {
	for d := range deliveries {
		handle(d.Body)
		a.handled(d.DeliveryTag)
	}
}
