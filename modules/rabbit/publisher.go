package rabbit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
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
	// publishQueue is how many messages wait for the writer before Publish refuses.
	publishQueue = 8192
	// publishBytes is how many bytes of messages are held until the broker has confirmed
	// them or the connection is lost, before Publish refuses: each message may be as long
	// as WS_MAX_MESSAGE_BYTES.
	publishBytes = 64 << 20
	// publishWindow is how many messages the broker may owe a confirm for.
	publishWindow = 4096
	// maxShortString is the greatest length of a message_id, in bytes (AMQP 0-9-1,
	// section 4.2.5.3, short strings).
	maxShortString = 255

	// probeKey is what the routing key of the message begins with by which Check asks
	// the broker. No queue has that name or is bound under it, so the broker confirms and
	// forgets the message.
	probeKey = "chat-transportation.readiness"
	// defaultExchange is the exchange to which each queue is bound under its own name
	// (AMQP 0-9-1, "default exchange"). To RabbitMQ's permissions it is "amq.default".
	defaultExchange = ""
	// probeTimeout is how long the broker may take to confirm it.
	probeTimeout = 800 * time.Millisecond
	// probeEvery is how long a confirm speaks for the broker.
	probeEvery = time.Second

	// overtakenEvery is how often the messages behind an unconfirmed one are looked
	// through: a broker may confirm out of order.
	overtakenEvery = 10 * time.Millisecond
)

// Results of the confirm histogram.
const (
	resultConfirmed = "confirmed"
	resultNacked    = "nacked"
	resultReturned  = "returned"
	resultTimeout   = "timeout"
	resultLost      = "lost"
)

// Publisher implements app.Publisher over one connection and one channel in confirm
// mode (RabbitMQ docs, "Consumer Acknowledgements and Publisher Confirms").
type Publisher struct {
	config   Config
	log      *zap.Logger
	link     *link
	metrics  *linkMetrics
	confirms *prometheus.HistogramVec

	current  atomic.Pointer[publishEpoch] // nil while there is no connection
	stopping atomic.Bool
	pending  atomic.Int64  // messages that Publish took and that are not settled
	held     atomic.Int64  // bytes of messages that an epoch holds
	settled  chan struct{} // holds a token after a settlement while stopping

	instance string // random, the end of the probes' routing key
	// probesRefused is set for good when the broker's user turns out not to be allowed to
	// write to the default exchange.
	probesRefused atomic.Bool
	// writesRefused is set when the broker has closed the channel over a client's message
	// since nobody may publish to the database exchange (an internal one), or not this
	// user, until a message is confirmed.
	writesRefused atomic.Bool

	mu    sync.Mutex
	probe *probe // the check that is under way, or nil
}

// errProbeRefused settles a probe to the default exchange whose channel was closed.
var errProbeRefused = fmt.Errorf("%w: the channel of probes was closed", app.ErrBrokerUnavailable)

// probe is one question to the broker that concurrent checks share.
type probe struct {
	done chan struct{}
	err  error
}

// NewPublisher returns a publisher that is not connected until Start. The metrics go
// to the registry.
func NewPublisher(config Config, log *zap.Logger, registry prometheus.Registerer) *Publisher {
	p := &Publisher{
		config:  config,
		log:     log,
		metrics: newLinkMetrics(registry),
		confirms: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "rabbitmq_publish_confirm_seconds",
			Help:    "Time from handing a client message over to the broker's verdict, or to giving it up.",
			Buckets: prometheus.ExponentialBucketsRange(0.0002, 10, 24),
		}, []string{"result"}),
		settled:  make(chan struct{}, 1),
		instance: rand.Text()[:16],
	}
	registry.MustRegister(p.confirms)
	for _, result := range []string{resultConfirmed, resultNacked, resultReturned, resultTimeout, resultLost} {
		p.confirms.WithLabelValues(result)
	}
	p.link = &link{
		purpose:     "publisher",
		urls:        config.URLs,
		exchange:    config.DatabaseExchange,
		appID:       config.AppID,
		log:         log,
		serve:       p.serve,
		up:          &p.metrics.publisherUp,
		reconnected: p.metrics.reconnects.Inc,
	}
	return p
}

// Start begins to connect and returns at once: a broker that is away is waited for in
// the background.
func (p *Publisher) Start(context.Context) error {
	p.link.start()
	return nil
}

// Stop refuses new messages, waits for the verdicts on those taken, fails what is left
// when ctx or the configured timeout ends, and closes the connection. It must follow
// Start; a second call does nothing.
func (p *Publisher) Stop(ctx context.Context) error {
	if p.stopping.Swap(true) || p.link.cancel == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.StopTimeout)
	defer cancel()
	// What closing the connection needs is kept back from the wait.
	waiting, stopWaiting := context.WithTimeout(ctx, p.config.StopTimeout*3/4)
	defer stopWaiting()
	for p.pending.Load() > 0 && waiting.Err() == nil {
		select {
		case <-p.settled:
		case <-waiting.Done():
		}
	}
	if left := p.pending.Load(); left > 0 {
		p.log.Warn("stopping with messages that the broker has not confirmed", zap.Int64("messages", left))
	}
	return p.link.stop(ctx)
}

// Publish implements app.Publisher.
func (p *Publisher) Publish(ctx context.Context, message domain.Message, deadline time.Time, settled func(error)) {
	body, err := app.AppendEntity(nil, message)
	if err != nil {
		// A valid message can always be written; the text is valid UTF-8.
		settled(fmt.Errorf("%w: %w", app.ErrNotAcknowledged, err))
		return
	}
	properties := amqp.Publishing{
		Headers:         traceHeaders(ctx),
		ContentType:     "application/json",
		ContentEncoding: "utf-8",
		DeliveryMode:    amqp.Persistent,
		Timestamp:       message.SentAt(),
		AppId:           p.config.AppID,
		Body:            body,
	}
	if id := message.ClientMessageID().String(); len(id) <= maxShortString {
		properties.MessageId = id
	}
	p.hand(&outgoing{publisher: p, publishing: properties, mandatory: true, deadline: deadline, verdict: settled})
}

// hand gives an item to the current epoch's writer, or settles it.
func (p *Publisher) hand(item *outgoing) {
	p.pending.Add(1)
	item.handed = time.Now()
	epoch, err := p.usable()
	switch {
	case p.stopping.Load():
		item.settle("", fmt.Errorf("%w: the publisher has been stopped", app.ErrBrokerUnavailable))
	case err != nil:
		item.settle("", err)
	case epoch.blocked.Load():
		item.settle("", app.ErrBrokerBlocked)
	case !item.handed.Before(item.deadline):
		item.settle("", fmt.Errorf("%w: it came past its deadline", app.ErrConfirmTimeout))
	default:
		if err := epoch.enqueue(item); err != nil {
			item.settle("", err)
		}
	}
}

// Available implements app.Publisher.
func (p *Publisher) Available() error {
	_, err := p.usable()
	return err
}

// usable returns the current epoch.
func (p *Publisher) usable() (*publishEpoch, error) {
	epoch := p.current.Load()
	if epoch == nil || epoch.channel.IsClosed() {
		return nil, fmt.Errorf("%w: the publisher is not connected", app.ErrBrokerUnavailable)
	}
	return epoch, nil
}

// Check implements app.Publisher. RabbitMQ says that it is blocked only to connections
// that publish, so unless a confirm came within the last second a message is published
// that no queue takes: to the default exchange, which can't have an alternate exchange
// that would collect it; or, where the broker does not allow that, to the database
// exchange, as also after it refused a client's message there. Concurrent checks share
// one.
func (p *Publisher) Check(ctx context.Context) error {
	epoch, err := p.usable()
	if err != nil {
		return err
	}
	if epoch.blocked.Load() {
		return app.ErrBrokerBlocked
	}
	if confirmed := epoch.confirmed.Load(); confirmed > 0 && time.Since(moment(confirmed)) < probeEvery {
		return nil
	}
	asked := p.ask(epoch)
	select {
	case <-asked.done:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", app.ErrConfirmTimeout, ctx.Err())
	}
	switch err := asked.err; {
	case err == nil, errors.Is(err, app.ErrBrokerUnavailable), errors.Is(err, app.ErrBrokerBlocked):
		return err
	default:
		return fmt.Errorf("%w: the broker does not confirm", app.ErrConfirmTimeout)
	}
}

// ask returns the probe that is under way, or begins one.
func (p *Publisher) ask(epoch *publishEpoch) *probe {
	p.mu.Lock()
	if p.probe != nil {
		defer p.mu.Unlock()
		return p.probe
	}
	asked := &probe{done: make(chan struct{})}
	p.probe = asked
	p.mu.Unlock()
	deadline := time.Now().Add(probeTimeout)
	answer := func(err error) {
		if err == nil && epoch.blocked.Load() {
			err = app.ErrBrokerBlocked
		}
		asked.err = err
		p.mu.Lock()
		p.probe = nil
		p.mu.Unlock()
		close(asked.done)
	}
	if p.writesRefused.Load() && epoch.tryWriting(answer) {
		return asked
	}
	send := func(verdict func(error)) {
		p.hand(&outgoing{
			publisher:  p,
			publishing: amqp.Publishing{DeliveryMode: amqp.Transient, AppId: p.config.AppID},
			deadline:   deadline,
			verdict:    verdict,
		})
	}
	send(func(err error) {
		if errors.Is(err, errProbeRefused) {
			send(answer) // it goes another way now
			return
		}
		answer(err)
	})
	return asked
}

// outgoing is one message on its way: queued, then in flight, then settled.
type outgoing struct {
	publisher  *Publisher
	publishing amqp.Publishing
	mandatory  bool // also: a client's message, not a probe
	handed     time.Time
	deadline   time.Time
	verdict    func(error)
	done       atomic.Bool
	timer      *time.Timer // nil until the item is enqueued

	// What follows belongs to the epoch's judge once the writer has passed the item on.
	channel      *amqp.Channel // on which it was published
	confirmation *amqp.DeferredConfirmation
	inFlight     bool
	returned     bool
}

// settle tells the item's verdict, unless it has got one. result is the label of the
// histogram, empty where the item was not handed over.
func (o *outgoing) settle(result string, err error) {
	if o.done.Swap(true) {
		return
	}
	if o.timer != nil {
		o.timer.Stop()
	}
	if result != "" && o.mandatory {
		o.publisher.confirms.WithLabelValues(result).Observe(time.Since(o.handed).Seconds())
	}
	o.verdict(err)
	o.publisher.pending.Add(-1)
	if o.publisher.stopping.Load() {
		select {
		case o.publisher.settled <- struct{}{}:
		default:
		}
	}
}

// publishEpoch is one connection of the publisher. Its writer publishes what is queued,
// in order; its judge settles everything. They meet in channels only, so that a writer
// that is stuck in write(2) holds up neither confirms nor deadlines.
type publishEpoch struct {
	publisher *Publisher
	session   *session
	channel   *amqp.Channel
	// probing is the channel of probes to the default exchange, which the broker closes
	// where it does not allow them; nil where it is known not to. Nothing of a client
	// is published on it. refusal is its NotifyClose.
	probing *amqp.Channel
	refusal chan *amqp.Error

	blocked   atomic.Bool
	confirmed atomic.Int64 // when the last confirm came, as clock has it; 0: none yet

	mu   sync.RWMutex  // orders enqueue and tryWriting before the end of the epoch
	over chan struct{} // closed at the end of the epoch

	trials   sync.WaitGroup // of tryWriting
	queue    chan *outgoing // closed at the end of the epoch
	window   chan struct{}  // a token for each item that the broker owes a confirm
	sent     chan *outgoing // from the writer, which closes it, to the judge
	expired  chan *outgoing
	returns  chan amqp.Return
	blocking chan amqp.Blocking
	broken   chan *amqp.Error // closed when the channel is
}

// serve uses one connection until it or ctx ends.
func (p *Publisher) serve(ctx context.Context, s *session) error {
	e := &publishEpoch{
		publisher: p,
		session:   s,
		over:      make(chan struct{}),
		queue:     make(chan *outgoing, publishQueue),
		window:    make(chan struct{}, publishWindow),
		sent:      make(chan *outgoing, publishWindow),
		expired:   make(chan *outgoing),
		returns:   make(chan amqp.Return, 1024),
		blocking:  s.conn.NotifyBlocked(make(chan amqp.Blocking, 16)),
	}
	if err := e.open(); err != nil {
		return err
	}
	var running sync.WaitGroup
	running.Go(e.write)
	running.Go(e.judge)
	p.current.Store(e)
	s.ready()
	select {
	case <-s.ended:
	case <-ctx.Done():
	case reason := <-e.broken:
		// The exchange was deleted, say: the next connection looks it up again.
		if reason != nil {
			p.noteRefusal(reason)
			s.end(fmt.Errorf("the channel was closed: %w", reason))
		} else {
			s.end(errors.New("the channel was closed"))
		}
	}
	select {
	case reason := <-e.broken: // the writer may have met the closed channel first
		p.noteRefusal(reason)
	default:
	}
	p.current.Store(nil)
	e.close()
	running.Wait()
	e.trials.Wait()
	// The library's reader must not wait for those who listen no more.
	go func() {
		for range e.returns {
		}
	}()
	go func() {
		for range e.blocking {
		}
	}()
	return nil
}

// noteRefusal notes why the broker has closed the channel of clients' messages.
func (p *Publisher) noteRefusal(reason *amqp.Error) {
	if reason != nil && reason.Code == amqp.AccessRefused {
		p.writesRefused.Store(true)
	}
}

func (e *publishEpoch) open() error {
	defer e.session.watch("open the publisher's channel")()
	channel, err := e.session.conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	e.session.heardAnswer()
	if err := channel.Confirm(false); err != nil {
		return fmt.Errorf("ask for confirms: %w", err)
	}
	e.session.heardAnswer()
	e.channel = channel
	e.broken = channel.NotifyClose(make(chan *amqp.Error, 1))
	channel.NotifyReturn(e.returns)
	if e.publisher.probesRefused.Load() {
		return nil
	}
	// Now, and not when the first probe is to be sent: a blocked broker, which reads
	// nothing more from a connection that has published, would not answer.
	probing, err := e.session.conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel for probes: %w", err)
	}
	if err := probing.Confirm(false); err != nil {
		return fmt.Errorf("ask for confirms of probes: %w", err)
	}
	e.probing, e.refusal = probing, probing.NotifyClose(make(chan *amqp.Error, 1))
	return nil
}

// probes reports whether probes may go to the default exchange. A channel that the broker
// has closed is not opened again on this connection.
func (e *publishEpoch) probes() bool {
	if e.probing == nil || !e.probing.IsClosed() {
		return e.probing != nil
	}
	select {
	case reason := <-e.refusal: // nil when it has been read before
		if reason != nil && reason.Code == amqp.AccessRefused && !e.publisher.probesRefused.Swap(true) {
			e.publisher.log.Info("the broker's user may not write to amq.default: readiness is asked through the database exchange")
		}
	default:
	}
	return false
}

// tryWriting asks with a probe whether the database exchange takes messages again, on a
// channel that nothing else depends on, and tells answer. It reports false where the epoch
// is over.
func (e *publishEpoch) tryWriting(answer func(error)) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.isOver() {
		return false
	}
	e.trials.Go(func() {
		err := e.writeOne()
		if err == nil {
			e.publisher.writesRefused.Store(false)
		}
		answer(err)
	})
	return true
}

func (e *publishEpoch) writeOne() error {
	failed := func(err error) error {
		return fmt.Errorf("%w: try the database exchange, which has refused a message: %w", app.ErrBrokerUnavailable, err)
	}
	defer e.session.watch("try the database exchange")()
	channel, err := e.session.conn.Channel()
	if err != nil {
		return failed(err)
	}
	refusal := channel.NotifyClose(make(chan *amqp.Error, 1))
	if err := channel.Confirm(false); err != nil {
		return failed(err)
	}
	probe := amqp.Publishing{DeliveryMode: amqp.Transient, AppId: e.publisher.config.AppID}
	confirmation, err := channel.PublishWithDeferredConfirm(e.publisher.config.DatabaseExchange, probeKey, false, false, probe)
	if err != nil {
		return failed(err)
	}
	late := time.NewTimer(probeTimeout)
	defer late.Stop()
	select {
	case <-confirmation.Done():
	case <-late.C:
	case <-e.over:
	}
	switch {
	case confirmation.Acked():
		_ = channel.Close() // the probe has told what there was to learn
		return nil
	case channel.IsClosed():
		if reason := <-refusal; reason != nil {
			return failed(reason)
		}
		return failed(amqp.ErrClosed)
	}
	_ = channel.Close()
	return fmt.Errorf("%w: the broker does not confirm", app.ErrConfirmTimeout)
}

// enqueue gives the item to the writer, or says why it can't.
func (e *publishEpoch) enqueue(item *outgoing) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.isOver() {
		return fmt.Errorf("%w: the connection was lost", app.ErrBrokerUnavailable)
	}
	// Made idle first: its function must not run before the item holds it.
	item.timer = time.AfterFunc(time.Hour, func() {
		select {
		case e.expired <- item:
		case <-e.over: // everything is being settled
		}
	})
	item.timer.Reset(time.Until(item.deadline))
	if e.publisher.held.Add(item.size()) > publishBytes {
		e.letGo(item)
		return app.ErrBrokerBusy
	}
	select {
	case e.queue <- item:
		return nil
	default:
		e.letGo(item)
		return app.ErrBrokerBusy
	}
}

// letGo gives back what an item holds of publishBytes; the epoch forgets it then.
func (e *publishEpoch) letGo(item *outgoing) { e.publisher.held.Add(-item.size()) }

// size returns the bytes that the item holds.
func (o *outgoing) size() int64 { return int64(len(o.publishing.Body)) }

// close ends the epoch: what is queued and in flight is failed, nothing more is taken.
func (e *publishEpoch) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.over)
	close(e.queue)
}

func (e *publishEpoch) isOver() bool { return isClosed(e.over) }

// write publishes what is queued until the queue is closed and empty.
func (e *publishEpoch) write() {
	defer close(e.sent)
	for item := range e.queue {
		if e.admit(item) {
			e.publish(item)
		} else {
			e.letGo(item)
		}
	}
}

// admit waits for a place in the window and reports whether the item may be published.
func (e *publishEpoch) admit(item *outgoing) bool {
	if item.done.Load() {
		return false
	}
	lost := func() {
		item.settle(resultLost, fmt.Errorf("%w: the connection was lost", app.ErrBrokerUnavailable))
	}
	select {
	case e.window <- struct{}{}:
	case <-e.over:
		lost() // without a place: none may be given back, it would be another's
		return false
	}
	switch {
	case e.isOver():
		lost()
	case e.blocked.Load():
		// What is written now would fill the socket, and the write would never end.
		item.settle("", app.ErrBrokerBlocked)
	case item.done.Load():
	case !time.Now().Before(item.deadline):
		item.settle(resultTimeout, fmt.Errorf("%w: it was still waiting for its turn", app.ErrConfirmTimeout))
	default:
		return true
	}
	<-e.window
	return false
}

func (e *publishEpoch) publish(item *outgoing) {
	channel, exchange, key := e.channel, e.publisher.config.DatabaseExchange, ""
	switch {
	case item.mandatory:
	case e.probes():
		channel, exchange, key = e.probing, defaultExchange, probeKey+"."+e.publisher.instance
	default:
		key = probeKey
	}
	confirmation, err := channel.PublishWithDeferredConfirm(exchange, key, item.mandatory, false, item.publishing)
	if err != nil && channel == e.probing && !e.channel.IsClosed() {
		<-e.window
		e.letGo(item)
		item.settle("", errProbeRefused)
		return
	}
	if err != nil {
		e.letGo(item)
		item.settle(resultLost, fmt.Errorf("%w: publish: %w", app.ErrBrokerUnavailable, err))
		e.session.end(fmt.Errorf("publish: %w", err))
		return
	}
	item.channel, item.confirmation = channel, confirmation
	e.sent <- item // never waits: it has as many places as the window
}
