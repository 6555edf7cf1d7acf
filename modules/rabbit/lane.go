package rabbit

import (
	"errors"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

// maxLanes is how many goroutines talk to the broker about queues and bindings at the
// same time. Twice as many gain nothing more on RabbitMQ, where Mnesia orders the writes.
const maxLanes = 16

// lanes returns how many lanes a connection has room for: in ScopeUser each has a channel
// of its own and one that consumers share, and the watch of the exchange has one more.
func lanes(channelMax uint16) int { return max(1, min(maxLanes, (int(channelMax)-1)/2)) }

// lane is a channel on which queues and bindings are made, never consumed from: an error
// of one of these methods closes the channel (AMQP 0-9-1, section 4.8.1), which must
// not take anybody's consumer along. One goroutine at a time owns a lane, since the
// library mixes up the answers to concurrent methods on one channel.
type lane struct {
	session  *session
	exchange string
	channel  *amqp.Channel // nil, or closed, until it is needed (again)

	// consumers are the channels that consumers of this lane share (ScopeUser).
	consumers []*consumerChannel
}

// lanePool lends lanes.
type lanePool chan *lane

func newLanePool(s *session, exchange string) lanePool {
	count := lanes(s.conn.Config.ChannelMax) // what has been negotiated
	pool := make(lanePool, count)
	for range count {
		pool <- &lane{session: s, exchange: exchange}
	}
	return pool
}

// errUnwanted says that what waited for a lane was given up before it was its turn.
var errUnwanted = errors.New("given up while waiting for its turn at the broker")

// with calls use with a lane that is its own meanwhile. Who waits is served in the order
// of arrival, or leaves when unwanted, which may be nil, is closed: then the broker is
// asked for nothing. Where more is wanted than the broker can make in time, it would
// otherwise be busy with what nobody waits for any longer, and get to nothing else.
func (p lanePool) with(s *session, unwanted <-chan struct{}, use func(*lane) error) error {
	select {
	case l := <-p:
		defer func() { p <- l }()
		if s.over() {
			return s.cause
		}
		return use(l)
	case <-unwanted:
		return errUnwanted
	case <-s.ended:
		return s.cause
	}
}

func (l *lane) open() (*amqp.Channel, error) {
	if l.channel == nil || l.channel.IsClosed() {
		defer l.session.watch("open a channel")()
		channel, err := l.session.conn.Channel()
		if err != nil {
			return nil, fmt.Errorf("open a channel: %w", err)
		}
		l.channel = channel
	}
	return l.channel, nil
}

// declareOn declares an ephemeral queue: exclusive, auto-delete and not durable. Where it
// does not wait for the broker, an error shows in the next method of the channel that does.
func (l *lane) declareOn(channel *amqp.Channel, queue string, wait bool) error {
	if wait {
		defer l.session.watch("declare a queue")()
	}
	if _, err := channel.QueueDeclare(queue, false, true, true, !wait, nil); err != nil {
		return fmt.Errorf("declare the queue %s: %w", queue, err)
	}
	return nil
}

// binding is a queue and the key under which it is bound.
type binding struct{ queue, key string }

// declareBound declares queues, binds each under its key, and waits until all that is so.
// It stays with one channel: where that is lost because a queue is refused, another would
// say of the binding that something is missing, as where the exchange is gone. With care
// it waits for each queue before it sends more: what the library sends while the broker
// closes a channel may come after that, which costs the connection (504).
func (l *lane) declareBound(bindings []binding, care bool) error {
	channel, err := l.open()
	if err != nil {
		return err
	}
	for i, b := range bindings {
		if err = l.declareOn(channel, b.queue, care); err != nil {
			return err
		}
		if i < len(bindings)-1 {
			err = bindAhead(channel, b.queue, b.key, l.exchange)
		} else {
			err = l.bindOn(channel, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bind binds the queue, which is there, to the exchange under key, and waits until that
// is so.
func (l *lane) bind(queue, key string) error {
	channel, err := l.open()
	if err != nil {
		return err
	}
	return l.bindOn(channel, binding{queue, key})
}

// bindOn is bind on a channel. Where the exchange is gone all other bindings to it are
// gone as well: it ends the session, so that they are made anew.
func (l *lane) bindOn(channel *amqp.Channel, b binding) error {
	defer l.session.watch("bind a queue")()
	if err := channel.QueueBind(b.queue, b.key, l.exchange, false, nil); err != nil {
		err = fmt.Errorf("bind the queue %s: %w", b.queue, err)
		if hasCode(err, amqp.NotFound) {
			l.session.end(fmt.Errorf("%w: %w", errExchangeGone, err))
		}
		return err
	}
	return nil
}

// bindAhead binds the queue and does not wait for the broker: an error, the queue being
// gone for instance, shows in the next method of the channel that does.
func (l *lane) bindAhead(queue, key string) error {
	channel, err := l.open()
	if err != nil {
		return err
	}
	return bindAhead(channel, queue, key, l.exchange)
}

func bindAhead(channel *amqp.Channel, queue, key, exchange string) error {
	if err := channel.QueueBind(queue, key, exchange, true, nil); err != nil {
		return fmt.Errorf("bind the queue %s: %w", queue, err)
	}
	return nil
}

// lookUp asks whether the exchange is there.
func (l *lane) lookUp() error {
	channel, err := l.open()
	if err != nil {
		return err
	}
	defer l.session.watchOnly("look up the exchange")()
	if err := channel.ExchangeDeclarePassive(l.exchange, amqp.ExchangeDirect, true, false, false, false, nil); err != nil {
		return fmt.Errorf("look up the exchange %q: %w", l.exchange, err)
	}
	return nil
}

// unbind takes the binding away; there need not be one.
func (l *lane) unbind(queue, key string) error {
	channel, err := l.open()
	if err != nil {
		return err
	}
	defer l.session.watch("unbind a queue")()
	if err := channel.QueueUnbind(queue, key, l.exchange, nil); err != nil {
		return fmt.Errorf("unbind the queue %s: %w", queue, err)
	}
	return nil
}

// drop deletes the queue; there need not be one.
func (l *lane) drop(queue string) error {
	channel, err := l.open()
	if err != nil {
		return err
	}
	defer l.session.watch("delete a queue")()
	if _, err := channel.QueueDelete(queue, false, false, false); err != nil {
		return fmt.Errorf("delete the queue %s: %w", queue, err)
	}
	return nil
}
