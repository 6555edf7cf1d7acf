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

// Scopes of the floor's queues, as the gateway's QUEUE_SCOPE has them.
const (
	scopeUser     = "user"
	scopeInstance = "instance"
)

// What the floor does at the broker is what the gateway's defaults are.
const (
	usersPerChannel  = 100
	userPrefetch     = 16
	instancePrefetch = 1024
	bindingChannels  = 16 // of the instance scope, to bind side by side
	userAckBatch     = userPrefetch / 2
	instanceAckBatch = 64
	confirmsBuffered = 1024
	reasonNack       = "not taken by the broker"
)

// floor is a crew without WebSockets: it consumes and publishes over AMQP what a gateway
// would. What it costs is what no gateway can do without.
type floor struct {
	config    CrewConfig
	envelope  envelope
	counters  counters
	settled   atomic.Uint64
	latency   histogram
	refusals  reasons
	misrouted atomic.Uint64
	foreign   atomic.Uint64
	routines  sync.WaitGroup

	in       *amqp.Connection
	channels []*floorChannel
	queue    string // of the instance scope
	joined   []bool // by user

	out     *amqp.Channel
	outConn *amqp.Connection

	mu       sync.Mutex // guards what follows
	incoming []ledger   // by user
	outgoing []outgoing // by user
	pending  []floorRef // published and not confirmed, in order
	closes   map[int]uint64
	leaving  bool
}

// floorChannel is a channel that some users share.
type floorChannel struct {
	mu sync.Mutex // held over calls, which a channel answers one after the other
	*amqp.Channel
	acks *acker
}

type floorRef struct {
	user   int
	number uint32
}

func newFloor(ctx context.Context, config CrewConfig) (*floor, error) {
	users := config.To - config.From
	f := &floor{
		config:   config,
		envelope: newEnvelope(config.Envelope.Size, config.Envelope.Now),
		joined:   make([]bool, users),
		incoming: make([]ledger, users),
		outgoing: make([]outgoing, users),
		closes:   make(map[int]uint64),
	}
	if err := f.openOut(ctx); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// openOut opens the connection that publishes.
func (f *floor) openOut(ctx context.Context) (err error) {
	if f.outConn, err = f.config.AMQP.dial(ctx, "chat-load floor publisher"); err != nil {
		return err
	}
	if err := f.config.AMQP.declare(f.outConn); err != nil {
		return err
	}
	if f.out, err = f.outConn.Channel(); err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	if err := f.out.Confirm(false); err != nil {
		return fmt.Errorf("turn publisher confirms on: %w", err)
	}
	confirms := f.out.NotifyPublish(make(chan amqp.Confirmation, confirmsBuffered))
	returns := f.out.NotifyReturn(make(chan amqp.Return, confirmsBuffered))
	f.routines.Go(func() {
		for confirmation := range confirms {
			f.confirmed(confirmation.Ack)
		}
	})
	f.routines.Go(func() {
		for returned := range returns {
			if s, ok := stampOf(returned.Body, memberID); ok {
				f.refuse(int(s.stream)-f.config.From, s.number, "no queue is bound")
			}
		}
	})
	return nil
}

// confirmed books the next confirm, in the order of publishing.
func (f *floor) confirmed(ack bool) {
	f.mu.Lock()
	ref := f.pending[0]
	f.pending = f.pending[1:]
	f.mu.Unlock()
	if !ack {
		f.refuse(ref.user, ref.number, reasonNack)
	}
}

func (f *floor) refuse(user int, number uint32, why string) {
	if user < 0 || user >= len(f.outgoing) {
		f.foreign.Add(1)
		return
	}
	f.mu.Lock()
	fresh := f.outgoing[user].Refused.add(number)
	f.mu.Unlock()
	if fresh {
		f.counters.refused.Add(1)
		f.refusals.add(why)
	}
}

// openIn opens the connection that consumes.
func (f *floor) openIn(ctx context.Context) (err error) {
	if f.in, err = f.config.AMQP.dial(ctx, "chat-load floor consumer"); err != nil {
		return err
	}
	f.mu.Lock()
	f.leaving = false
	f.mu.Unlock()
	ended := f.in.NotifyClose(make(chan *amqp.Error, 1))
	f.routines.Go(func() {
		<-ended
		f.mu.Lock()
		defer f.mu.Unlock()
		if n := f.counters.connected.Swap(0); !f.leaving && n > 0 {
			f.closes[closeAbnormal] += uint64(n)
		}
	})
	clear(f.joined)
	count, prefetch, batch := bindingChannels, instancePrefetch, uint64(instanceAckBatch)
	if f.config.Scope == scopeUser {
		count, prefetch, batch = (len(f.joined)+usersPerChannel-1)/usersPerChannel, userPrefetch, userAckBatch
	}
	f.channels = make([]*floorChannel, count)
	for i := range f.channels {
		channel, err := f.in.Channel()
		if err != nil {
			return fmt.Errorf("open a channel: %w", err)
		}
		if err := channel.Qos(prefetch, 0, false); err != nil {
			return fmt.Errorf("set the prefetch: %w", err)
		}
		f.channels[i] = &floorChannel{Channel: channel, acks: newAcker(channel, batch)}
	}
	if f.config.Scope == scopeUser {
		return nil
	}
	f.queue, err = f.consume(f.channels[0], "websocket.instance.load."+strconv.FormatUint(uint64(f.config.Run), 10)+"."+strconv.Itoa(f.config.From))
	return err
}

// consume declares a queue and consumes it.
func (f *floor) consume(channel *floorChannel, name string) (string, error) {
	queue, err := channel.QueueDeclare(name, false, true, true, false, nil)
	if err != nil {
		return "", fmt.Errorf("declare a queue: %w", err)
	}
	deliveries, err := channel.Consume(queue.Name, queue.Name, false, true, false, false, nil)
	if err != nil {
		return "", fmt.Errorf("consume a queue: %w", err)
	}
	f.routines.Go(func() { channel.acks.consume(deliveries, f.arrived) })
	return queue.Name, nil
}

// arrived books a message.
func (f *floor) arrived(body []byte) {
	s, ok := stampOf(body, memberID)
	user := int(s.stream) - f.config.From
	switch {
	case !ok || s.run != f.config.Run:
		f.foreign.Add(1)
		return
	case user < 0 || user >= len(f.incoming):
		f.misrouted.Add(1)
		return
	}
	f.mu.Lock()
	fresh := f.incoming[user].add(s.number)
	f.mu.Unlock()
	if fresh {
		now := time.Now().UnixNano()
		f.latency.record(time.Duration(now - s.at))
		f.counters.arrive(now)
	}
}

// userQueue returns the name of a user's queue in the user scope.
func (f *floor) userQueue(user int) string {
	return "websocket.connection." + f.key(user) + ".load." + strconv.FormatUint(uint64(f.config.Run), 10)
}

// key returns a user's routing key.
func (f *floor) key(user int) string {
	return strconv.FormatInt(f.config.user(f.config.From+user), 10)
}

// join makes a user's place at the broker.
func (f *floor) join(user int) error {
	channel := f.channels[user%len(f.channels)]
	channel.mu.Lock()
	defer channel.mu.Unlock()
	queue := f.queue
	if f.config.Scope == scopeUser {
		var err error
		if queue, err = f.consume(channel, f.userQueue(user)); err != nil {
			return err
		}
	}
	if err := channel.QueueBind(queue, f.key(user), f.config.AMQP.Websockets, false, nil); err != nil {
		return fmt.Errorf("bind a queue: %w", err)
	}
	f.joined[user] = true
	f.counters.connected.Add(1)
	return nil
}

// part removes a user's place at the broker.
func (f *floor) part(user int) {
	channel := f.channels[user%len(f.channels)]
	channel.mu.Lock()
	defer channel.mu.Unlock()
	if !f.joined[user] {
		return
	}
	f.joined[user] = false
	f.counters.connected.Add(-1)
	// What fails here fails again, and is reported, when the user joins.
	if f.config.Scope == scopeUser {
		_ = channel.Cancel(f.userQueue(user), false) // the queue goes with its last consumer
	} else {
		_ = channel.QueueUnbind(f.queue, f.key(user), f.config.AMQP.Websockets, nil)
	}
}

// Connect implements crew.
func (f *floor) Connect(ctx context.Context, order ConnectOrder) (ConnectResult, error) {
	began := time.Now()
	if f.in == nil || f.in.IsClosed() {
		if err := f.openIn(ctx); err != nil {
			return ConnectResult{Began: began, Ended: began, Failed: uint64(len(f.joined))}, err
		}
	}
	var absent []int
	for user, joined := range f.joined {
		if !joined {
			absent = append(absent, user)
		}
	}
	result := gather(ctx, order, absent, nil, func(_ context.Context, user int) error { return f.join(user) })
	result.Began = began
	return result, nil
}

// Churn implements crew.
func (f *floor) Churn(ctx context.Context, order ChurnOrder) (ConnectResult, error) {
	indexes := make([]int, int(order.Rate*order.Duration.Seconds()))
	for i := range indexes {
		indexes[i] = i % len(f.joined)
	}
	busy := make([]sync.Mutex, len(f.joined))
	connect := ConnectOrder{Concurrency: order.Concurrency, Rate: order.Rate}
	return gather(ctx, connect, indexes, func(user int) {
		busy[user].Lock()
		f.part(user)
	}, func(_ context.Context, user int) error {
		defer busy[user].Unlock()
		return f.join(user)
	}), nil
}

// Drop implements crew: it closes the connection that consumes.
func (f *floor) Drop(context.Context) error {
	f.mu.Lock()
	f.leaving = true
	f.mu.Unlock()
	closeBroker(f.in)
	for _, channel := range f.channels {
		if channel != nil {
			channel.acks.stop()
		}
	}
	f.counters.connected.Store(0)
	f.in, f.channels = nil, nil
	return nil
}

// Send implements crew.
func (f *floor) Send(ctx context.Context, order SendOrder) error {
	size := order.Window
	if order.Rate > 0 {
		size = 0
	}
	settled := f.settled.Load
	if f.config.Echo {
		settled = f.counters.received.Load
	}
	limit := newWindow(size, func() uint64 { return settled() + f.counters.refused.Load() })
	pacing := newPace(order.Rate, order.Duration)
	var body []byte
	for i := uint64(0); order.Messages == 0 || i < order.Messages; i++ {
		at, ok := pacing.next(ctx)
		if !ok || !limit.enter(ctx, 1) {
			return nil
		}
		if size > 0 {
			at = time.Now().UnixNano()
		}
		var err error
		if body, err = f.publish(body, int(i%uint64(len(f.outgoing))), at); err != nil {
			return err
		}
	}
	return nil
}

// publish sends one message of a user. The body is written to the buffer, which is
// returned for the next one: the library has copied it by then.
func (f *floor) publish(buffer []byte, user int, at int64) ([]byte, error) {
	f.mu.Lock()
	number := f.outgoing[user].Sent
	f.outgoing[user].Sent++
	f.pending = append(f.pending, floorRef{user, number})
	f.mu.Unlock()
	id := f.config.user(f.config.From + user)
	body := f.envelope.appendStored(buffer[:0], stamp{f.config.Run, uint32(f.config.From + user), number, at}, id, id)
	f.counters.sent.Add(1)
	if err := f.out.Publish(f.config.AMQP.Database, "", true, false, publishing(body)); err != nil {
		f.refuse(user, number, "the connection is gone")
		return body, fmt.Errorf("publish: %w", err)
	}
	return body, nil
}

// Settle implements crew.
func (f *floor) Settle(n uint64) { f.settled.Store(n) }

// Progress implements crew.
func (f *floor) Progress() Progress { return f.counters.progress() }

// Reconcile implements crew.
func (f *floor) Reconcile(_ context.Context, sent []uint32) (Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := Outcome{
		Latency:   f.latency.distribution(),
		Outgoing:  make([]outgoing, len(f.outgoing)),
		Refusals:  f.refusals.all(),
		Misrouted: f.misrouted.Load(),
		Foreign:   f.foreign.Load(),
		Closes:    make(map[int]uint64),
	}
	for user := range f.outgoing {
		out := f.outgoing[user]
		o.Outgoing[user] = outgoing{out.Sent, append(numbers(nil), out.Refused...)}
		switch {
		case f.config.Echo:
			o.Tally.book(&f.incoming[user], out.Sent, out.Refused)
		case !f.joined[user] && f.incoming[user].received == 0:
			// It could not join, and that is what is reported.
		case user < len(sent):
			o.Tally.book(&f.incoming[user], sent[user], nil)
		}
	}
	for code, n := range f.closes {
		o.Closes[code] = n
	}
	return o, nil
}

// Close implements crew.
func (f *floor) Close() error {
	_ = f.Drop(context.Background()) // never fails
	closeBroker(f.outConn)
	if !waitFor(&f.routines, closeTimeout) {
		return errors.New("a consumer has not ended")
	}
	return nil
}

// waitFor reports whether the group has ended within the timeout.
func waitFor(group *sync.WaitGroup, timeout time.Duration) bool {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		group.Wait()
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-ended:
		return true
	case <-timer.C:
		return false
	}
}
