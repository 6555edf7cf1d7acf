package rabbit

import (
	"errors"
	"strconv"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// userQueues is the layout of ScopeUser: a queue and a consumer for each user.
type userQueues struct {
	owner   *Inboxes
	session *session
	pool    lanePool
	running sync.WaitGroup // the goroutines of the consumer channels
}

func (x *Inboxes) newUserQueues(s *session) *userQueues {
	return &userQueues{owner: x, session: s, pool: newLanePool(s, x.config.WebsocketsExchange)}
}

// attach makes a queue under a name that was never used: a name that a dead connection
// still holds would answer 405 RESOURCE_LOCKED until the broker notices.
func (q *userQueues) attach(b *inbox, s *seat) error {
	s.queue = "websocket.connection." + b.user.String() + "." + q.owner.instance + "." +
		strconv.FormatUint(q.owner.sequence.Add(1), 10)
	var deliveries <-chan amqp.Delivery
	err := q.pool.with(q.session, b.closing, func(l *lane) error {
		err := l.declare(s.queue)
		if err == nil {
			err = l.bind(s.queue, b.user.String())
		}
		if err == nil {
			s.channel, err = q.place(l)
		}
		if err == nil {
			deliveries, err = s.channel.consume(s.queue, func() { q.owner.lose(b, s) })
		}
		if err != nil && !q.session.over() {
			_ = l.drop(s.queue) // an auto-delete queue without a consumer stays
		}
		return err
	})
	if err != nil {
		return err
	}
	s.done = make(chan struct{})
	x := q.owner
	x.mu.Lock()
	before := b.drained
	b.drained = s.done
	x.mu.Unlock()
	x.running.Go(func() {
		defer close(s.done)
		if before != nil {
			// What the seat before still holds comes first.
			<-before
		}
		for d := range deliveries {
			b.hand(&d, s.channel.acker)
		}
	})
	return nil
}

// detach cancels the consumer; the queue, auto-delete, goes with it. What the library
// still holds of its deliveries is settled by the goroutine that hands them out.
func (q *userQueues) detach(_ *inbox, s *seat) {
	if !q.session.over() {
		s.channel.cancel(s.queue)
	}
}

// rebind implements layout. A binding goes with its queue, so none stays behind a detach.
func (q *userQueues) rebind(b *inbox, s *seat, l *lane) (func(), error) {
	return nil, l.rebind(s.queue, b.user.String())
}

// place returns a channel of the lane that has a place for one more consumer. Where the
// connection has no more channels (channel_max), the one with the fewest consumers takes
// it: users who share a channel with many are better off than users without a queue.
func (q *userQueues) place(l *lane) (*consumerChannel, error) {
	alive := l.consumers[:0]
	var found, least *consumerChannel
	for _, c := range l.consumers {
		if c.channel.IsClosed() {
			continue
		}
		alive = append(alive, c)
		if found == nil && c.places() > 0 {
			found = c
		}
		if least == nil || c.places() > least.places() {
			least = c
		}
	}
	clear(l.consumers[len(alive):])
	l.consumers = alive
	if found != nil {
		return found, nil
	}
	c, err := openConsumerChannel(q.session, q.owner.config.Prefetch)
	if errors.Is(err, amqp.ErrChannelMax) && least != nil {
		return least, nil
	}
	if err != nil {
		return nil, err
	}
	q.running.Go(c.run)
	l.consumers = append(l.consumers, c)
	return c, nil
}

// stop implements layout: each queue goes when its inbox is closed.
func (q *userQueues) stop() {}

// wait implements layout.
func (q *userQueues) wait() { q.running.Wait() }
