// Package demo is what the program runs on when it is given nothing: a message
// broker, a messaging service and a chat page, all inside the process. Nothing of
// it outlives the process, and nothing of it is meant for production.
package demo

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// Bounds of the queues, in messages. A user's queue that is full loses its oldest
// message, as RabbitMQ's overflow policy "drop-head" does; the queue of the
// messaging service refuses the newest, as "reject-publish" does.
const (
	userQueueLimit     = 1_000
	databaseQueueLimit = 10_000
)

// dropWarningInterval keeps a flood of dropped messages from becoming one of log lines.
const dropWarningInterval = 10 * time.Second

// The exchanges of the in-process broker. Nothing outside the process can see them,
// so they have the default names of the wire contract, section 5.
const (
	websocketsExchange = "websockets"
	databaseExchange   = "database"
)

// userPrefetch is how many deliveries of one user may be unsettled: the default of
// CHANNEL_PREFETCH_MESSAGES_COUNT.
const userPrefetch = 16

// stopTimeout bounds each Stop of this package. Nothing here waits for the outside,
// so it is only reached when a consumer hangs.
const stopTimeout = time.Second

// Broker is a message broker inside the process: direct exchanges, exclusive
// auto-delete queues, prefetch, confirms and mandatory returns, with bounded
// queues and no storage. It implements app.Publisher and app.Inboxes, and is safe
// for concurrent use.
type Broker struct {
	log     *zap.Logger
	dropped prometheus.Counter
	meters  *meters
	warned  atomic.Int64 // when a dropped message was last logged, Unix nanoseconds
	running atomic.Bool  // written under mu
	serial  atomic.Uint64

	// mu guards the bindings. It may be held while a queue's own lock is taken,
	// never the other way round, and never while a consumer is called.
	mu        sync.RWMutex
	bindings  map[binding][]*queue
	consumers sync.WaitGroup
}

// binding is what a direct exchange routes by (AMQP 0-9-1, section 3.1.3.1).
type binding struct{ exchange, key string }

// NewBroker returns a broker that takes nothing until it is started.
func NewBroker(log *zap.Logger, metrics prometheus.Registerer) *Broker {
	b := &Broker{
		log: log,
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "demo_broker_dropped_messages_total",
			Help: "Messages that the in-process broker of demo mode dropped because a user's queue was full.",
		}),
		bindings: make(map[binding][]*queue),
	}
	b.meters = newMeters(b.running.Load, metrics)
	metrics.MustRegister(b.dropped)
	return b
}

// Start opens the broker for business. It returns at once.
func (b *Broker) Start(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running.Store(true)
	return nil
}

// Stop removes every queue and returns when no consumer is called any more, or
// with an error when ctx or a second ends first.
func (b *Broker) Stop(ctx context.Context) error {
	b.mu.Lock()
	b.running.Store(false)
	for _, queues := range b.bindings {
		for _, q := range queues {
			q.close()
		}
	}
	clear(b.bindings)
	b.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	idle := make(chan struct{})
	go func() {
		b.consumers.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop the in-process broker: consumers are still busy: %w", ctx.Err())
	}
}

// Available implements app.Publisher and app.Inboxes.
func (b *Broker) Available() error {
	if !b.running.Load() {
		return fmt.Errorf("%w: the in-process broker is not running", app.ErrBrokerUnavailable)
	}
	return nil
}

// Check implements app.Publisher and app.Inboxes: inside one process a broker that
// runs takes messages, and its queues are there.
func (b *Broker) Check(context.Context) error { return b.Available() }

// Publish implements app.Publisher. It settles before it returns.
func (b *Broker) Publish(_ context.Context, message domain.Message, deadline time.Time, settled func(error)) {
	began := time.Now()
	err := b.publish(message, deadline)
	b.meters.verdict(err, time.Since(began))
	settled(err)
}

func (b *Broker) publish(message domain.Message, deadline time.Time) error {
	if err := b.Available(); err != nil {
		return err
	}
	if !time.Now().Before(deadline) {
		return app.ErrConfirmTimeout
	}
	entity, err := app.AppendEntity(nil, message)
	if err != nil {
		return fmt.Errorf("%w: %w", app.ErrNotAcknowledged, err)
	}
	routed, refused := b.route(binding{databaseExchange, ""}, "", entity)
	switch {
	case refused:
		return fmt.Errorf("%w: its queue is full", app.ErrNotAcknowledged)
	case routed == 0:
		return app.ErrUnroutable
	}
	return nil
}

// deliver publishes what a backend has to say under the routing key, and reports
// whether a queue took it.
func (b *Broker) deliver(routingKey, messageType string, body []byte) bool {
	routed, _ := b.route(binding{websocketsExchange, routingKey}, messageType, body)
	return routed > 0
}

// route offers the message to every queue that is bound, and reports to how many
// and whether one refused it.
func (b *Broker) route(to binding, messageType string, body []byte) (routed int, refused bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, q := range b.bindings[to] {
		switch q.offer(messageType, body) {
		case offerRefused:
			refused = true
		case offerDisplaced:
			b.countDropped(q.name)
		}
		routed++
	}
	return routed, refused
}

func (b *Broker) countDropped(queueName string) {
	b.dropped.Inc()
	now := time.Now().UnixNano()
	last := b.warned.Load()
	if now-last >= int64(dropWarningInterval) && b.warned.CompareAndSwap(last, now) {
		b.log.Warn("a queue of the in-process broker is full: its oldest messages are dropped",
			zap.String("queue", queueName), zap.Int("limit", userQueueLimit))
	}
}

// Open implements app.Inboxes. It does not wait for anything.
func (b *Broker) Open(ctx context.Context, user domain.UserID, receive func(app.Delivery)) (app.Inbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: open an inbox: %w", app.ErrBrokerUnavailable, err)
	}
	name := "websocket.connection." + user.String() + "." + strconv.FormatUint(b.serial.Add(1), 10)
	q := newQueue(name, userQueueLimit, dropOldest, userPrefetch)
	to := binding{websocketsExchange, user.String()}
	if err := b.consume(q, to, receive); err != nil {
		return nil, fmt.Errorf("open an inbox: %w", err)
	}
	return &inbox{broker: b, queue: q, binding: to}, nil
}

// consume binds the queue and calls receive with its messages, one after the other,
// until the queue is closed.
func (b *Broker) consume(q *queue, to binding, receive func(app.Delivery)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	// Under mu, so that Stop either sees the queue or makes this fail.
	if err := b.Available(); err != nil {
		return err
	}
	b.bindings[to] = append(b.bindings[to], q)
	b.consumers.Go(func() {
		defer close(q.idle)
		for {
			d, ok := q.next()
			if !ok {
				return
			}
			receive(d)
		}
	})
	return nil
}

// remove unbinds and closes the queue, and waits until its consumer is idle or ctx ends.
func (b *Broker) remove(ctx context.Context, q *queue, from binding) error {
	b.mu.Lock()
	rest := slices.DeleteFunc(b.bindings[from], func(other *queue) bool { return other == q })
	if len(rest) == 0 {
		delete(b.bindings, from)
	} else {
		b.bindings[from] = rest
	}
	b.mu.Unlock()
	q.close()
	select {
	case <-q.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("remove the queue %s: its consumer is busy: %w", q.name, ctx.Err())
	}
}

// inbox is a user's queue, as app.Inboxes hands it out.
type inbox struct {
	broker  *Broker
	queue   *queue
	binding binding
}

// Close implements app.Inbox.
func (i *inbox) Close(ctx context.Context) error {
	return i.broker.remove(ctx, i.queue, i.binding)
}
