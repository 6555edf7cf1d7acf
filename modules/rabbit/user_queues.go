package rabbit

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// attachBatch is how many queues at most are made in one turn at the broker, which then
// answers two methods for all of them instead of two for each.
const attachBatch = 16

// careTime is for how long each queue is made by itself after one was refused.
const careTime = 5 * time.Second

// userQueues is the layout of ScopeUser: a queue and a consumer for each user.
type userQueues struct {
	owner   *Inboxes
	session *session
	pool    lanePool
	// line is where who has a lane meets those who wait for one, and takes them along.
	line    chan *attachment
	refused atomic.Int64   // when a queue was last refused, as clock has it
	running sync.WaitGroup // the goroutines of the consumer channels
}

// attachment is a queue that is being made.
type attachment struct {
	inbox      *inbox
	seat       *seat
	deliveries <-chan amqp.Delivery
	done       chan error // gets the outcome, and has room for it
}

func (x *Inboxes) newUserQueues(s *session) *userQueues {
	return &userQueues{
		owner:   x,
		session: s,
		pool:    newLanePool(s, x.config.WebsocketsExchange),
		line:    make(chan *attachment),
	}
}

// attach makes a queue under a name that was never used: a name that a dead connection
// still holds would answer 405 RESOURCE_LOCKED until the broker notices.
func (q *userQueues) attach(b *inbox, s *seat) error {
	x := q.owner
	s.queue = "websocket.connection." + b.user.String() + "." + x.instance + "." +
		strconv.FormatUint(x.sequence.Add(1), 10)
	own := &attachment{inbox: b, seat: s, done: make(chan error, 1)}
	select {
	case l := <-q.pool:
		q.attachMany(l, q.gather(own))
		q.pool <- l
	case q.line <- own:
	case <-b.closing:
		return errUnwanted
	case <-q.session.ended:
		return q.session.cause
	}
	if err := <-own.done; err != nil {
		return err
	}
	s.done = make(chan struct{})
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
		for d := range own.deliveries {
			b.hand(&d, s.channel.acker)
		}
	})
	return nil
}

// careful reports whether the broker has refused a queue not long ago.
func (q *userQueues) careful() bool {
	at := q.refused.Load()
	return at != 0 && time.Since(moment(at)) < careTime
}

// gather returns own and, in the order of their arrival, others who wait in line.
func (q *userQueues) gather(own *attachment) []*attachment {
	batch := []*attachment{own}
	for len(batch) < attachBatch && !q.careful() {
		select {
		case next := <-q.line:
			batch = append(batch, next)
		default:
			return batch
		}
	}
	return batch
}

// attachMany makes the queues of a batch and tells each how that ended.
func (q *userQueues) attachMany(l *lane, batch []*attachment) {
	if len(batch) == 1 && batch[0].inbox.unwanted() {
		_ = l.drop(batch[0].seat.queue) // a batch that failed may have made it
		batch[0].done <- errUnwanted
		return
	}
	bindings := make([]binding, len(batch))
	for i, a := range batch {
		bindings[i] = binding{a.seat.queue, a.inbox.user.String()}
	}
	care := q.careful()
	err := l.declareBound(bindings, care)
	bound := err == nil
	if bound {
		err = q.consumeMany(l, batch, care)
	}
	failed := err != nil && !q.session.over()
	if failed {
		q.refused.Store(clock())
	}
	if failed && !bound && len(batch) > 1 {
		// The broker does not say whose queue it refuses: each tries again by itself.
		for i := range batch {
			q.attachMany(l, batch[i:i+1])
		}
		return
	}
	for _, a := range batch {
		if failed {
			_ = l.drop(a.seat.queue) // an auto-delete queue without a consumer stays
		}
		a.done <- err
	}
}

// consumeMany begins to consume the queues of a batch, all through one channel; with care as
// declareBound has it.
func (q *userQueues) consumeMany(l *lane, batch []*attachment, care bool) error {
	channel, err := q.place(l)
	if err != nil {
		return err
	}
	last := len(batch) - 1
	for i, a := range batch {
		a.seat.channel = channel
		a.deliveries, err = channel.consume(a.seat.queue, i < last && !care, func() { q.owner.lose(a.inbox, a.seat) })
		if err != nil {
			return err
		}
	}
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
	return nil, l.bindAhead(s.queue, b.user.String())
}

// place returns a channel of the lane that has a place for one more consumer; the rest of a
// batch goes with that one. Where the connection has no more channels (channel_max), the
// one with the fewest consumers takes it: users who share a channel with many are better
// off than users without a queue.
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
