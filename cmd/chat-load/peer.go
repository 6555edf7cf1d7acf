package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// peer is the backend's side of the gateway: it publishes for users and consumes what
// clients have sent. Its methods are for one goroutine, but for arrivals and received.
type peer struct {
	config   brokerConfig
	envelope envelope
	run      uint32
	users    int
	perUser  int
	first    int64 // id of the user with index 0
	routines sync.WaitGroup

	out     *amqp.Connection
	outgo   *amqp.Channel
	in      *amqp.Connection
	acks    *acker
	sent    []uint32 // by user
	total   atomic.Uint64
	foreign atomic.Uint64

	mu         sync.Mutex // guards what follows
	incoming   []ledger   // by connection
	arrivals   []uint64   // by crew
	boundaries []int      // the first connection after each crew's
	latency    histogram
	counters   counters
}

// newPeer connects to the broker. crews are what arrivals are counted by.
func newPeer(ctx context.Context, plan plan) (*peer, error) {
	p := &peer{
		config:   plan.broker,
		envelope: newEnvelope(plan.bytes, time.Now()),
		run:      plan.run,
		users:    plan.users,
		perUser:  plan.perUser,
		first:    plan.firstUser,
		sent:     make([]uint32, plan.users),
		incoming: make([]ledger, plan.users*plan.perUser),
	}
	for _, part := range plan.shares() {
		p.boundaries = append(p.boundaries, part.To*plan.perUser)
	}
	p.arrivals = make([]uint64, len(p.boundaries))
	var err error
	if p.out, err = p.config.dial(ctx, "chat-load backend publisher"); err != nil {
		return nil, err
	}
	if err = p.config.declare(p.out); err == nil {
		p.outgo, err = p.out.Channel()
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// lookInterval is how often deliver looks whether anybody is connected.
const lookInterval = 50 * time.Millisecond

// errNobody ends a delivery that nobody is left to receive.
var errNobody = errors.New("nobody is connected any more")

// deliver publishes messages for the users in turn, until the order is done or ctx ends.
// received says how many have arrived at connections. It ends with an error when nobody is
// connected any more: what would come of the rest is known.
func (p *peer) deliver(ctx context.Context, order SendOrder, received func() uint64, connected func() int64) error {
	size := order.Window
	if order.Rate > 0 {
		size = 0
	}
	limit := newWindow(size, received)
	pacing := newPace(order.Rate, order.Duration)
	var body []byte // reused: the library has copied it when Publish returns
	var looked time.Time
	for i := uint64(0); order.Messages == 0 || i < order.Messages; i++ {
		at, ok := pacing.next(ctx)
		if !ok || !limit.enter(ctx, uint64(p.perUser)) {
			return nil
		}
		if time.Since(looked) >= lookInterval {
			if looked = time.Now(); connected() == 0 {
				return fmt.Errorf("%w: publishing stopped after %d messages", errNobody, p.total.Load())
			}
		}
		if size > 0 {
			at = time.Now().UnixNano() // the wait for room is this program's own doing
		}
		user := int(i % uint64(p.users))
		id := p.first + int64(user)
		body = p.envelope.appendStored(body[:0], stamp{p.run, uint32(user), p.sent[user], at}, id, id)
		message := publishing(body)
		// Nothing in the users' queues outlives the broker.
		message.DeliveryMode = amqp.Transient
		if err := p.outgo.Publish(p.config.Websockets, strconv.FormatInt(id, 10), false, false, message); err != nil {
			return fmt.Errorf("publish for a user: %w", err)
		}
		p.sent[user]++
		p.total.Add(1)
	}
	return nil
}

// collect consumes what clients send, through a queue of its own, until close. With echo
// each message goes back to the user that sent it.
func (p *peer) collect(ctx context.Context, echo bool) (err error) {
	if p.in, err = p.config.dial(ctx, "chat-load backend consumer"); err != nil {
		return err
	}
	channel, err := p.in.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	if err := channel.Qos(instancePrefetch, 0, false); err != nil {
		return fmt.Errorf("set the prefetch: %w", err)
	}
	queue, err := channel.QueueDeclare("chat-load.database."+strconv.FormatUint(uint64(p.run), 10), false, true, true, false, nil)
	if err != nil {
		return fmt.Errorf("declare a queue: %w", err)
	}
	deliveries, err := channel.Consume(queue.Name, "", false, true, false, false, nil)
	if err != nil {
		return fmt.Errorf("consume a queue: %w", err)
	}
	if err := channel.QueueBind(queue.Name, "", p.config.Database, false, nil); err != nil {
		return fmt.Errorf("bind a queue: %w", err)
	}
	p.acks = newAcker(channel, instanceAckBatch)
	p.routines.Go(func() {
		p.acks.consume(deliveries, func(body []byte) {
			s, ok := p.arrived(body)
			if ok && echo {
				p.answer(s, body)
			}
		})
	})
	return nil
}

// arrived books a message of a client.
func (p *peer) arrived(body []byte) (stamp, bool) {
	s, ok := stampOf(body, memberID)
	if !ok || s.run != p.run || int(s.stream) >= len(p.incoming) {
		p.foreign.Add(1)
		return stamp{}, false
	}
	p.mu.Lock()
	fresh := p.incoming[s.stream].add(s.number)
	if fresh {
		for i, boundary := range p.boundaries {
			if int(s.stream) < boundary {
				p.arrivals[i]++
				break
			}
		}
	}
	p.mu.Unlock()
	if fresh {
		now := time.Now().UnixNano()
		p.latency.record(time.Duration(now - s.at))
		p.counters.arrive(now)
	}
	return s, true
}

// answer publishes a message for the user that sent it.
func (p *peer) answer(s stamp, body []byte) {
	message := publishing(body)
	message.DeliveryMode = amqp.Transient
	id := p.first + int64(int(s.stream)/p.perUser)
	if err := p.outgo.Publish(p.config.Websockets, strconv.FormatInt(id, 10), false, false, message); err == nil {
		p.total.Add(1)
	}
	// A failure shows as a lost message.
}

// arrived counts, for each crew, how many of its messages have arrived.
func (p *peer) arrivalsByCrew() []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]uint64(nil), p.arrivals...)
}

// reconcile closes the books on what the clients have sent; by connection.
func (p *peer) reconcile(sent []outgoing) (t tally) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, out := range sent {
		if i < len(p.incoming) {
			t.book(&p.incoming[i], out.Sent, out.Refused)
		}
	}
	return t
}

// failed returns why the broker's connections are of no use any more, or nil.
func (p *peer) failed() error {
	if p.out.IsClosed() || p.in != nil && p.in.IsClosed() {
		return errors.New("the broker has closed a connection of this program's")
	}
	return nil
}

// close ends the connections and waits for the consumer.
func (p *peer) close() {
	closeBroker(p.in)
	closeBroker(p.out)
	if p.acks != nil {
		p.acks.stop()
	}
	waitFor(&p.routines, closeTimeout)
}
