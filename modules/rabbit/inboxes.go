package rabbit

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

const (
	repairFloor = 100 * time.Millisecond
	repairCap   = 2 * time.Second
	// exchangeWatch is how often the exchange is looked up: when it is deleted its
	// bindings go with it, and the broker tells nobody.
	exchangeWatch = 500 * time.Millisecond
	// rebindBatch is how many inboxes are bound again after each look. An exchange that
	// was deleted and declared anew between two looks is there, without the bindings,
	// and AMQP 0-9-1 has no method that lists bindings. To bind what is bound already
	// changes nothing (rule "duplicates" of queue.bind), so all inboxes take turns: 20
	// users receive again within a second, 1,000 within half a minute, 10,000 within
	// some four. A greater batch would heal them sooner and burden the broker at all
	// other times; it answers the look after the batch only.
	rebindBatch = 20
	// silence is how long the broker may leave that question without an answer before
	// inboxes no longer count as receiving: the connection may be dead on the way.
	silence = time.Second
)

// Inboxes implements app.Inboxes over one connection.
type Inboxes struct {
	config   Config
	log      *zap.Logger
	link     *link
	metrics  *linkMetrics
	instance string        // random, part of the names of all queues of this process
	sequence atomic.Uint64 // the last part of these names

	// running are the goroutines of inboxes: openings, closings, repairs, deliveries.
	running sync.WaitGroup

	mu       sync.Mutex
	epoch    *consumeEpoch // nil while there is no connection
	open     map[*inbox]struct{}
	stopping bool
}

// consumeEpoch is one connection of Inboxes and what was made on it.
type consumeEpoch struct {
	session *session
	layout  layout
	live    int // open inboxes that receive through it; guarded by Inboxes.mu
	// asked is when the broker was asked by watchExchange, as clock has it; 0 once there
	// is an answer.
	asked atomic.Int64
}

// ask calls a method that the broker answers, and has silent know.
func (e *consumeEpoch) ask(question func() error) error {
	e.asked.Store(clock())
	defer e.asked.Store(0)
	return question()
}

// silent returns for how long the broker has owed an answer.
func (e *consumeEpoch) silent() time.Duration {
	if asked := e.asked.Load(); asked != 0 {
		return time.Since(moment(asked))
	}
	return 0
}

// layout makes inboxes at the broker, on one connection, as the scope has it.
type layout interface {
	// attach returns once all that is published for the inbox's user will be received.
	// What it fails to make it takes back. While it waits for its turn at the broker, the
	// end of the inbox (inbox.closing) ends it.
	attach(b *inbox, s *seat) error
	// detach undoes attach and returns when the broker has, or when the session is over.
	detach(b *inbox, s *seat)
	// rebind has an inbox that is attached bound again, through a lane that is the
	// caller's, and does not wait for the broker. It does nothing for an inbox that just
	// comes or goes. The caller calls done, which may be nil, when the broker has
	// answered a later method of the lane; until then nobody unbinds the inbox, so that
	// no binding is left behind.
	rebind(b *inbox, s *seat, l *lane) (done func(), err error)
	// stop removes what is common to all inboxes from the broker.
	stop()
	// wait returns when the goroutines of the layout have ended; the session is over.
	wait()
}

// seat is what an inbox has at the broker in one epoch. lost is guarded by Inboxes.mu.
type seat struct {
	epoch *consumeEpoch
	lost  bool

	// ScopeUser: the queue and what consumes it; done is closed when no more of its
	// deliveries will be handed out.
	queue   string
	channel *consumerChannel
	done    chan struct{}
}

// inbox implements app.Inbox.
type inbox struct {
	owner   *Inboxes
	user    domain.UserID
	receive func(app.Delivery)
	gate    gate
	closing chan struct{} // closed by Close, and by Open where it is given up

	// Guarded by owner.mu.
	closed   bool
	seat     *seat         // nil while the inbox has no place at the broker
	repaired chan struct{} // closed at the end of the repair that is under way, else nil
	drained  chan struct{} // ScopeUser: the done of the last seat
}

// NewInboxes returns inboxes that are not connected until Start. The metrics go to the
// registry.
func NewInboxes(config Config, log *zap.Logger, registry prometheus.Registerer) *Inboxes {
	x := &Inboxes{
		config:   config,
		log:      log,
		metrics:  newLinkMetrics(registry),
		instance: rand.Text()[:16],
		open:     make(map[*inbox]struct{}),
	}
	x.link = &link{
		purpose:     "consumer",
		urls:        config.URLs,
		exchange:    config.WebsocketsExchange,
		appID:       config.AppID,
		log:         log,
		serve:       x.serve,
		up:          &x.metrics.consumerUp,
		reconnected: x.metrics.reconnects.Inc,
	}
	return x
}

// Start begins to connect and returns at once: a broker that is away is waited for in
// the background.
func (x *Inboxes) Start(context.Context) error {
	x.link.start()
	return nil
}

// Stop closes the inboxes that are still open, has their queues removed from the broker
// and closes the connection, all until ctx or the configured timeout ends. It must
// follow Start; a second call does nothing.
func (x *Inboxes) Stop(ctx context.Context) error {
	x.mu.Lock()
	if x.stopping || x.link.cancel == nil {
		x.mu.Unlock()
		return nil
	}
	x.stopping = true
	epoch := x.epoch
	open := make([]*inbox, 0, len(x.open))
	for b := range x.open {
		open = append(open, b)
	}
	x.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, x.config.StopTimeout)
	defer cancel()
	// What closing the connection needs is kept back.
	closing, stopClosing := context.WithTimeout(ctx, x.config.StopTimeout*3/4)
	defer stopClosing()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		var running sync.WaitGroup
		for _, b := range open {
			running.Go(func() { _ = b.Close(closing) }) // the same ctx ends the wait below
		}
		running.Wait()
		if epoch != nil && closing.Err() == nil {
			epoch.layout.stop()
		}
	}()
	select {
	case <-gone:
	case <-closing.Done():
		x.log.Warn("stopping before all queues were removed: the broker removes them with the connection")
	}
	err := x.link.stop(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-gone
		x.running.Wait()
	}()
	select {
	case <-ended:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("wait for deliveries that are being handed out: %w", ctx.Err()))
	}
}

// Available implements app.Inboxes.
func (x *Inboxes) Available() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, err := x.usable()
	return err
}

// usable returns the current epoch; x.mu is held.
func (x *Inboxes) usable() (*consumeEpoch, error) {
	switch {
	case x.stopping:
		return nil, fmt.Errorf("%w: inboxes have been stopped", app.ErrBrokerUnavailable)
	case x.epoch == nil || x.epoch.session.over():
		return nil, fmt.Errorf("%w: the consumer is not connected", app.ErrBrokerUnavailable)
	}
	return x.epoch, nil
}

// Check implements app.Inboxes.
func (x *Inboxes) Check(context.Context) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	live := 0
	epoch, err := x.usable()
	if err == nil {
		live = epoch.live
	}
	if missing := len(x.open) - live; missing > 0 {
		what := "user queues"
		if x.config.Scope == ScopeInstance {
			what = "bindings of users"
		}
		lack := fmt.Errorf("%d of %d %s are missing", missing, len(x.open), what)
		if err != nil {
			return fmt.Errorf("%w: %w", err, lack)
		}
		return lack
	}
	if err == nil && epoch.silent() >= silence {
		return fmt.Errorf("%w: the consumer's connection does not answer", app.ErrBrokerUnavailable)
	}
	return err
}

// serve uses one connection until it or ctx ends.
func (x *Inboxes) serve(ctx context.Context, s *session) error {
	epoch := &consumeEpoch{session: s}
	var err error
	if x.config.Scope == ScopeInstance {
		epoch.layout, err = x.newInstanceQueue(s)
	} else {
		epoch.layout = x.newUserQueues(s)
	}
	if err != nil {
		return err
	}
	x.mu.Lock()
	x.epoch = epoch
	for b := range x.open {
		x.repair(b)
	}
	x.mu.Unlock()
	s.ready()
	x.watchExchange(ctx, epoch)
	x.mu.Lock()
	x.epoch = nil
	x.mu.Unlock()
	// Stop has removed the queues; what is left goes with the connection.
	s.close()
	epoch.layout.wait()
	return nil
}

// watchExchange returns when the session is over or ctx has ended. It ends the session
// itself when the exchange is gone: then all bindings are, and are made anew. While the
// exchange is there, it binds inbox after inbox again: see rebindBatch.
func (x *Inboxes) watchExchange(ctx context.Context, epoch *consumeEpoch) {
	s := epoch.session
	// Not one of the layout's, for which thousands may wait, and which others wait for.
	own := &lane{session: s, exchange: x.config.WebsocketsExchange}
	var round []*inbox
	tick := time.NewTicker(exchangeWatch)
	defer tick.Stop()
	for {
		select {
		case <-s.ended:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var err error
		if round, err = x.look(ctx, epoch, own, round); hasCode(err, amqp.NotFound) {
			s.end(errExchangeGone)
			return
		}
	}
}

// look asks whether the exchange is there, after it has had the next inboxes of the round
// bound again, and returns what is left of the round. A round that is used up is begun
// anew: always in the order of the users' ids, so that none waits for longer than one
// round.
func (x *Inboxes) look(ctx context.Context, epoch *consumeEpoch, l *lane, round []*inbox) ([]*inbox, error) {
	if len(round) == 0 {
		x.mu.Lock()
		round = slices.Collect(maps.Keys(x.open))
		x.mu.Unlock()
		slices.SortFunc(round, func(a, b *inbox) int { return cmp.Compare(a.user.Int64(), b.user.Int64()) })
	}
	batch := round[:min(rebindBatch, len(round))]
	err := epoch.ask(func() error {
		bound := x.rebind(ctx, epoch, l, batch)
		defer bound()
		return l.lookUp()
	})
	clear(batch) // closed inboxes are not to be held
	if hasCode(err, amqp.NotFound) && len(batch) > 0 && !epoch.session.over() {
		// Or an inbox was closed meanwhile, and its queue went between the look at its
		// seat and the broker's: the lane's channel with it.
		err = epoch.ask(l.lookUp)
	}
	return round[len(batch):], err
}

// rebind has inboxes bound again, and returns what is to be called when the broker has
// answered a later method of the lane.
func (x *Inboxes) rebind(ctx context.Context, epoch *consumeEpoch, l *lane, batch []*inbox) (bound func()) {
	done := make([]func(), 0, len(batch))
	for _, b := range batch {
		if ctx.Err() != nil || epoch.session.over() {
			break
		}
		x.mu.Lock()
		s := b.seat
		x.mu.Unlock()
		if s == nil || s.epoch != epoch {
			continue // it was closed, or is being repaired
		}
		one, err := epoch.layout.rebind(b, s, l)
		if one != nil {
			done = append(done, one)
		}
		if err != nil {
			break // the next method that is answered says why
		}
	}
	return func() {
		for _, one := range done {
			one()
		}
	}
}

// Open implements app.Inboxes.
func (x *Inboxes) Open(ctx context.Context, user domain.UserID, receive func(app.Delivery)) (app.Inbox, error) {
	b := &inbox{owner: x, user: user, receive: receive, closing: make(chan struct{})}
	x.mu.Lock()
	epoch, err := x.usable()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		x.mu.Unlock()
		return nil, unavailable("open an inbox", err)
	}
	opened := make(chan error, 1)
	x.running.Go(func() { opened <- x.attachFirst(b, epoch) })
	x.mu.Unlock()
	select {
	case err := <-opened:
		if err != nil {
			return nil, unavailable("open an inbox", err)
		}
		return b, nil
	case <-ctx.Done():
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.open[b]; ok {
		return b, nil // it was a tie
	}
	if !b.closed { // else it was open for a moment, and Stop has closed it
		b.closed = true // attachFirst makes no seat, or takes it back
		close(b.closing)
	}
	b.gate.shut()
	return nil, unavailable("open an inbox", ctx.Err())
}

// unavailable wraps ErrBrokerUnavailable around err unless it is there already.
func unavailable(what string, err error) error {
	if errors.Is(err, app.ErrBrokerUnavailable) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, app.ErrBrokerUnavailable, err)
}

// attachFirst gives the inbox its first seat and counts it as open, or leaves nothing.
func (x *Inboxes) attachFirst(b *inbox, epoch *consumeEpoch) error {
	s := &seat{epoch: epoch}
	if err := epoch.layout.attach(b, s); err != nil {
		return err
	}
	x.mu.Lock()
	switch {
	case b.closed: // Open was given up
	case x.stopping, s.lost, x.epoch != epoch:
		b.closed = true
		b.gate.shut()
	default:
		x.take(b, s)
		x.open[b] = struct{}{}
		x.mu.Unlock()
		return nil
	}
	x.mu.Unlock()
	epoch.layout.detach(b, s)
	return errors.New("the queue was lost at once")
}

// take gives the inbox its seat; x.mu is held.
func (x *Inboxes) take(b *inbox, s *seat) {
	b.seat = s
	s.epoch.live++
}

// leave takes the inbox's seat away; x.mu is held.
func (x *Inboxes) leave(b *inbox) *seat {
	s := b.seat
	if s != nil {
		b.seat = nil
		s.epoch.live--
	}
	return s
}

// lose is called when the broker has taken the seat away. It does not block.
func (x *Inboxes) lose(b *inbox, s *seat) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s.lost = true
	if b.seat == s {
		x.leave(b)
		if x.epoch == s.epoch {
			x.repair(b)
		}
	}
}

// repair begins to give the inbox a seat in the current epoch, unless it has one there
// or someone is at it; x.mu is held.
func (x *Inboxes) repair(b *inbox) {
	if b.closed || x.stopping || b.repaired != nil {
		return
	}
	if b.seat != nil {
		if b.seat.epoch == x.epoch {
			return
		}
		x.leave(b)
	}
	b.repaired = make(chan struct{})
	x.running.Go(func() { x.reattach(b) })
}

// reattach tries until the inbox has a seat, is closed, or there is no connection: the
// next one begins a new repair.
func (x *Inboxes) reattach(b *inbox) {
	delay := repairFloor
	x.mu.Lock()
	for !b.closed && !x.stopping && x.epoch != nil && !x.epoch.session.over() {
		epoch := x.epoch
		x.mu.Unlock()
		s := &seat{epoch: epoch}
		err := epoch.layout.attach(b, s)
		x.mu.Lock()
		if err == nil && !b.closed && !s.lost && x.epoch == epoch {
			x.take(b, s)
			break
		}
		x.mu.Unlock()
		if err == nil {
			epoch.layout.detach(b, s)
		} else if !epoch.session.over() {
			x.log.Debug("a user's queue could not be made anew", zap.Stringer("user", b.user), zap.Error(err))
		}
		b.rest(epoch.session, delay)
		delay = min(2*delay, repairCap)
		x.mu.Lock()
	}
	close(b.repaired)
	b.repaired = nil
	x.mu.Unlock()
}

// unwanted reports whether the inbox was closed, or its opening given up.
func (b *inbox) unwanted() bool { return isClosed(b.closing) }

// rest waits for d, or until there is something new to do for the inbox.
func (b *inbox) rest(s *session, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-b.closing:
	case <-s.ended:
	}
}

// Close implements app.Inbox.
func (b *inbox) Close(ctx context.Context) error {
	x := b.owner
	x.mu.Lock()
	if b.closed {
		x.mu.Unlock()
		return nil
	}
	b.closed = true
	close(b.closing)
	delete(x.open, b)
	s, repaired := x.leave(b), b.repaired
	gone := make(chan struct{})
	x.running.Go(func() {
		defer close(gone)
		if repaired != nil {
			<-repaired
		}
		if s != nil {
			s.epoch.layout.detach(b, s)
		}
		// What the broker has handed over until now is received before the gate is shut.
		x.mu.Lock()
		drained := b.drained
		x.mu.Unlock()
		if drained != nil {
			<-drained
		}
	})
	x.mu.Unlock()
	var err error
	select {
	case <-gone:
	case <-ctx.Done():
		err = fmt.Errorf("close an inbox: %w", ctx.Err())
	}
	b.gate.shut()
	if err != nil {
		return err
	}
	if err := b.gate.wait(ctx); err != nil {
		return fmt.Errorf("close an inbox: wait for the delivery that is being received: %w", err)
	}
	return nil
}

// hand calls receive, or settles the delivery where the inbox is closed.
func (b *inbox) hand(d *amqp.Delivery, acks *acker) {
	if !b.gate.enter() {
		acks.Ack(d.DeliveryTag)
		return
	}
	b.receive(app.Delivery{Body: d.Body, Type: d.Type, Context: traceContext(d.Headers), Tag: d.DeliveryTag, Acks: acks})
	b.gate.leave()
}
