package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// CrewConfig is all that a crew needs to know. It can be sent to another process.
type CrewConfig struct {
	Target    string // targetGateway, targetWebSTOMP or targetAMQP
	URLs      []string
	Insecure  bool
	Key       []byte
	Algorithm string
	FirstUser int64 // the user with index 0
	From, To  int   // the crew has the users with these indexes, To not included
	PerUser   int   // connections of each
	Sources   []netip.Addr
	Envelope  envelopeConfig
	Run       uint32
	Echo      bool // what arrives are answers to the crew's own messages
	AMQP      brokerConfig
	Scope     string // of targetAMQP
}

// envelopeConfig makes an envelope.
type envelopeConfig struct {
	Size int
	Now  time.Time
}

// user returns the id of the user with an index.
func (c CrewConfig) user(index int) int64 { return c.FirstUser + int64(index) }

// connections returns how many connections the crew has.
func (c CrewConfig) connections() int { return (c.To - c.From) * c.PerUser }

// A crew is the connections of a range of users: in this process, in another, or
// several crews together. Streams are numbered over the whole run: in the direction to
// the users a user's index is the stream, in the other direction a connection's index
// is, which is the user's index times PerUser plus the connection's place.
//
// One order at a time; Settle and Progress may be called besides. An order that ends
// with its context returns what has come of it so far.
type crew interface {
	// Connect connects whoever is not connected.
	Connect(ctx context.Context, order ConnectOrder) (ConnectResult, error)
	// Churn lets connections leave and come again.
	Churn(ctx context.Context, order ChurnOrder) (ConnectResult, error)
	// Drop cuts all connections at once, without a word.
	Drop(ctx context.Context) error
	// Send makes the connections send messages, in turn.
	Send(ctx context.Context, order SendOrder) error
	// Settle says how many of the crew's messages have arrived, for the window of Send.
	Settle(n uint64)
	// Progress returns the counts as they are, or were a moment ago.
	Progress() Progress
	// Reconcile closes the books. sent says how many messages were sent to each of the
	// crew's users, from its first on; it may be nil.
	Reconcile(ctx context.Context, sent []uint32) (Outcome, error)
	// Close says goodbye to the servers and frees everything.
	Close() error
}

// ConnectOrder says how to connect.
type ConnectOrder struct {
	Concurrency int           // attempts under way at once, at least 1
	Rate        float64       // connects per second; 0: no limit
	Patience    time.Duration // how long failed attempts are repeated; 0: not at all
}

// ChurnOrder says how to leave and come again.
type ChurnOrder struct {
	Concurrency int
	Rate        float64 // connections that leave and come again, per second
	Duration    time.Duration
}

// ConnectResult is what came of an order to connect.
type ConnectResult struct {
	Connected uint64
	Failed    uint64 // given up
	Retries   uint64
	Began     time.Time
	Ended     time.Time // when the last connection was there
	Latency   distribution
	Faults    map[string]uint64 // why attempts failed
}

// merge adds what other holds.
func (r *ConnectResult) merge(other ConnectResult) {
	r.Connected += other.Connected
	r.Failed += other.Failed
	r.Retries += other.Retries
	if r.Began.IsZero() || !other.Began.IsZero() && other.Began.Before(r.Began) {
		r.Began = other.Began
	}
	if other.Ended.After(r.Ended) {
		r.Ended = other.Ended
	}
	r.Latency.merge(other.Latency)
	for why, n := range other.Faults {
		if r.Faults == nil {
			r.Faults = make(map[string]uint64)
		}
		r.Faults[why] += n
	}
}

// seconds returns how long the order took.
func (r ConnectResult) seconds() float64 { return max(0, r.Ended.Sub(r.Began).Seconds()) }

// SendOrder says how to send.
type SendOrder struct {
	Rate     float64 // messages per second; 0: as fast as the window lets
	Messages uint64  // 0: as many as go into Duration
	Duration time.Duration
	Window   uint64 // messages under way at once, where Rate is 0
}

// Progress is a crew's counts.
type Progress struct {
	Connected  int64
	Sent       uint64
	Received   uint64
	Refused    uint64
	LastArrive int64  // ns since 1970; 0 before the first
	TurnedAway uint64 // accepted, and closed at once with 1013
}

// merge adds what other holds.
func (p *Progress) merge(other Progress) {
	p.Connected += other.Connected
	p.Sent += other.Sent
	p.Received += other.Received
	p.Refused += other.Refused
	p.TurnedAway += other.TurnedAway
	p.LastArrive = max(p.LastArrive, other.LastArrive)
}

// outgoing is the sending end of a stream.
type outgoing struct {
	Sent    uint32
	Refused numbers
}

// Outcome is what a crew's books say.
type Outcome struct {
	Tally     tally // of what arrived at the crew
	Latency   distribution
	Outgoing  []outgoing        // by connection, from the crew's first on
	Closes    map[int]uint64    // by close code, of connections that the other side ended
	Refusals  map[string]uint64 // by reason
	Misrouted uint64            // messages that reached another user
	Foreign   uint64            // texts that are not of this run
}

// merge adds what other holds; its connections follow.
func (o *Outcome) merge(other Outcome) {
	o.Tally.merge(other.Tally)
	o.Latency.merge(other.Latency)
	o.Outgoing = append(o.Outgoing, other.Outgoing...)
	for code, n := range other.Closes {
		if o.Closes == nil {
			o.Closes = make(map[int]uint64)
		}
		o.Closes[code] += n
	}
	for why, n := range other.Refusals {
		if o.Refusals == nil {
			o.Refusals = make(map[string]uint64)
		}
		o.Refusals[why] += n
	}
	o.Misrouted += other.Misrouted
	o.Foreign += other.Foreign
}

// newCrew returns the crew that the configuration describes, in this process.
func newCrew(ctx context.Context, config CrewConfig) (crew, error) {
	switch config.Target {
	case targetGateway, targetWebSTOMP:
		return newSockets(config)
	case targetAMQP:
		return newFloor(ctx, config)
	}
	return nil, fmt.Errorf("there is no target %q", config.Target)
}

// counters are the counts behind progress.
type counters struct {
	connected  atomic.Int64
	sent       atomic.Uint64
	received   atomic.Uint64
	refused    atomic.Uint64
	lastArrive atomic.Int64
	turnedAway atomic.Uint64
}

func (c *counters) progress() Progress {
	return Progress{c.connected.Load(), c.sent.Load(), c.received.Load(), c.refused.Load(), c.lastArrive.Load(), c.turnedAway.Load()}
}

// arrive counts a message that came for the first time.
func (c *counters) arrive(now int64) {
	c.received.Add(1)
	c.lastArrive.Store(now)
}

// reasons counts by a text. It keeps a bounded number of texts. It is safe for
// concurrent use; the zero value is empty.
type reasons struct {
	mu     sync.Mutex
	counts map[string]uint64
}

const maxReasons = 32

func (r *reasons) add(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = make(map[string]uint64)
	}
	if _, known := r.counts[why]; !known && len(r.counts) >= maxReasons {
		why = "other"
	}
	r.counts[why]++
}

// all returns a copy.
func (r *reasons) all() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[string]uint64, len(r.counts))
	for why, n := range r.counts {
		all[why] = n
	}
	return all
}

// reason makes of an error a text that equal faults share: without addresses.
func reason(err error) string {
	if answer, ok := errors.AsType[*refusal](err); ok {
		return answer.Error()
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}

// gather connects many: it calls open for each of the indexes, as the order says, and
// counts what comes of it. before, which may be nil, is called once for each index and
// is not part of what the connect takes.
func gather(ctx context.Context, order ConnectOrder, indexes []int, before func(int), open func(context.Context, int) error) ConnectResult {
	var (
		result  = ConnectResult{Began: time.Now()}
		latency histogram
		faults  reasons
		retries atomic.Uint64
		good    atomic.Uint64
		last    atomic.Int64
		queue   = make(chan int)
		working sync.WaitGroup
	)
	giveUp := result.Began.Add(order.Patience)
	for range max(1, min(order.Concurrency, len(indexes))) {
		working.Go(func() {
			for index := range queue {
				if before != nil {
					before(index)
				}
				began := time.Now()
				for try := 0; ; try++ {
					attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
					err := open(attempt, index)
					cancel()
					if err == nil {
						now := time.Now()
						latency.record(now.Sub(began))
						good.Add(1)
						last.Store(now.UnixNano())
						break
					}
					if ctx.Err() != nil {
						break
					}
					faults.add(reason(err))
					if !pause(ctx, backoff(try, err), giveUp) {
						break
					}
					retries.Add(1)
				}
			}
		})
	}
	pacing := newPace(order.Rate, 0)
	for _, index := range indexes {
		if _, ok := pacing.next(ctx); !ok {
			break
		}
		select {
		case queue <- index:
		case <-ctx.Done():
		}
	}
	close(queue)
	working.Wait()
	result.Ended = result.Began
	if ns := last.Load(); ns > 0 {
		result.Ended = time.Unix(0, ns)
	}
	result.Connected, result.Retries = good.Load(), retries.Load()
	result.Failed = uint64(len(indexes)) - result.Connected
	result.Latency, result.Faults = latency.distribution(), faults.all()
	return result
}

// backoff returns how long to wait after the failed attempt number try: what the server
// asked for, else twice as long each time, up to 2 s, and in any case by chance.
func backoff(try int, err error) time.Duration {
	wait := min(50*time.Millisecond<<min(try, 10), 2*time.Second)
	if answer, ok := errors.AsType[*refusal](err); ok && answer.retryAfter > 0 {
		wait = answer.retryAfter
	}
	return wait/2 + rand.N(wait)
}

// pause waits and reports whether it may go on: not past the deadline, nor when ctx ends.
func pause(ctx context.Context, wait time.Duration, deadline time.Time) bool {
	if time.Now().Add(wait).After(deadline) {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
