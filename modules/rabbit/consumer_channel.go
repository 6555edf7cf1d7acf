package rabbit

import (
	"errors"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// consumersPerChannel is how many users share a channel: few enough that losing one is
// soon repaired, and enough for 200,000 users below the usual channel_max of 2,047.
const consumersPerChannel = 100

// consumerChannel is a channel that consumers share.
type consumerChannel struct {
	session *session
	channel *amqp.Channel
	acker   *acker
	closed  chan *amqp.Error // closed when the channel is
	cancels chan string      // consumer tags that the broker has cancelled

	// turn holds a token for the goroutine that may call a method that is answered.
	turn chan struct{}

	mu    sync.Mutex
	lost  map[string]func() // by consumer tag, what to call when the broker ends it
	ended bool
}

// openConsumerChannel opens a channel whose consumers have the prefetch, each by itself
// (basic.qos with global=false, as RabbitMQ reads it).
func openConsumerChannel(s *session, prefetch int) (*consumerChannel, error) {
	defer s.watch("open a channel to consume")()
	channel, err := s.conn.Channel()
	if err != nil {
		return nil, fmt.Errorf("open a channel: %w", err)
	}
	s.heardAnswer()
	if err := channel.Qos(prefetch, 0, false); err != nil {
		return nil, fmt.Errorf("set the prefetch: %w", err)
	}
	return &consumerChannel{
		session: s,
		channel: channel,
		acker:   newAcker(channel, prefetch),
		closed:  channel.NotifyClose(make(chan *amqp.Error, 1)),
		cancels: channel.NotifyCancel(make(chan string, 2*consumersPerChannel)),
		turn:    make(chan struct{}, 1),
		lost:    make(map[string]func()),
	}, nil
}

// run sends acks and watches for consumers that the broker ends, until the channel is
// closed; the library closes it with its connection at the latest.
func (c *consumerChannel) run() {
	closed, cancels := c.closed, c.cancels
	// Without a batch the timer is far away: an idle channel wakes nobody.
	batch := time.NewTimer(time.Hour)
	defer batch.Stop()
	for closed != nil || cancels != nil {
		select {
		case <-c.acker.first:
			batch.Reset(ackDelay)
		case <-batch.C:
			// An error says that the channel is closed; that is seen below.
			_ = c.acker.send()
		case <-c.acker.full:
			_ = c.acker.send()
		case tag, open := <-cancels:
			if !open {
				cancels = nil
				continue
			}
			// The queue was deleted (consumer_cancel_notify, a RabbitMQ extension).
			c.report(tag)
		case _, open := <-closed:
			if !open {
				closed = nil
			}
		}
	}
	c.acker.end()
	c.mu.Lock()
	c.ended = true
	lost := c.lost
	c.lost = nil
	c.mu.Unlock()
	for _, report := range lost {
		report()
	}
}

func (c *consumerChannel) report(tag string) {
	c.mu.Lock()
	report := c.lost[tag]
	delete(c.lost, tag)
	c.mu.Unlock()
	if report != nil {
		report()
	}
}

// places returns how many more consumers the channel takes.
func (c *consumerChannel) places() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || c.channel.IsClosed() {
		return 0
	}
	return consumersPerChannel - len(c.lost)
}

// consume consumes the queue under its name as consumer tag. lost is called once, from
// any goroutine, if the broker ends the consumer or the channel. With noWait it does not
// wait for the broker: an error shows in the next consume that does.
func (c *consumerChannel) consume(queue string, noWait bool, lost func()) (<-chan amqp.Delivery, error) {
	if !c.take() {
		return nil, c.session.cause
	}
	defer c.giveBack()
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return nil, errors.New("consume: the channel was closed")
	}
	c.lost[queue] = lost
	c.mu.Unlock()
	defer c.session.watch("consume a queue")()
	deliveries, err := c.channel.Consume(queue, queue, false, false, false, noWait, nil)
	if err != nil {
		c.forget(queue)
		return nil, fmt.Errorf("consume the queue %s: %w", queue, err)
	}
	return deliveries, nil
}

// cancel ends the consumer and returns when the broker has, or the session or the
// channel is over. What the library still holds of its deliveries is handed out.
func (c *consumerChannel) cancel(tag string) {
	if !c.take() {
		return
	}
	defer c.giveBack()
	defer c.session.watch("cancel a consumer")()
	// The error says that the channel is closed, and the consumer gone with it.
	_ = c.channel.Cancel(tag, false)
	c.forget(tag)
}

func (c *consumerChannel) forget(tag string) {
	c.mu.Lock()
	delete(c.lost, tag)
	c.mu.Unlock()
}

func (c *consumerChannel) take() bool {
	select {
	case c.turn <- struct{}{}:
		return true
	case <-c.session.ended:
		return false
	}
}

func (c *consumerChannel) giveBack() { <-c.turn }
