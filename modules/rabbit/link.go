package rabbit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

const (
	// dialTimeout bounds the TCP, TLS and AMQP handshakes of one node together, where
	// the URL has no connection_timeout.
	dialTimeout = 3 * time.Second
	// heartbeat is what the connection asks for where the URL names none; RabbitMQ's
	// guide advises 5 to 20 seconds. The library gives up after one and a half of it.
	heartbeat = 5 * time.Second
	// rpcTimeout is for how long the broker may leave all methods of a connection without
	// an answer before that counts as dead, and rpcLimit for how long a single one: a
	// broker that is slow has many to answer, and would only be slower with all of a
	// connection to make anew.
	rpcTimeout = 10 * time.Second
	rpcLimit   = time.Minute
	// closeTimeout bounds the closing handshake of a connection.
	closeTimeout = time.Second

	// backoffFloor and backoffCap bound the wait between two rounds of attempts. The cap
	// is what a broker that is back may be left waiting for: it is short, so that users
	// have their queues within 5 s.
	backoffFloor = 250 * time.Millisecond
	backoffCap   = 2 * time.Second
	// awayLogInterval is how often the log says that the broker is still away.
	awayLogInterval = 30 * time.Second
	// settledAfter is how long a connection must have lasted for the next one to be
	// tried without the back-off that the attempts before it had reached.
	settledAfter = 10 * time.Second
)

// errExchangeGone is the cause of the end of a session whose exchange of deliveries was
// deleted: all bindings went with it.
var errExchangeGone = errors.New("the exchange of deliveries was deleted")

// link keeps one connection to the broker: it dials, has the exchange looked up, gives
// the connection to serve, and begins again when it has ended.
type link struct {
	purpose  string // "publisher" or "consumer": the end of the connection's name
	urls     []string
	exchange string // looked up, or declared, on each new connection
	appID    string
	log      *zap.Logger

	// serve uses one connection. It returns once the session has ended or ctx has,
	// and has let go of everything that it made on the session. An error says why the
	// session could not be used.
	serve func(ctx context.Context, s *session) error
	// up says whether there is a connection that serve has called ready on.
	up *atomic.Bool
	// reconnected is called for each connection but the first.
	reconnected func()

	cancel  context.CancelFunc
	done    chan struct{}
	session atomic.Pointer[session] // the current one, nil between two
}

// session is one connection to the broker, from its handshake to its end.
type session struct {
	conn *amqp.Connection
	wire *wire
	// ended is closed when the connection is of no more use, before the library has
	// noticed, perhaps.
	ended chan struct{}
	// ready marks the link as up; serve calls it when the session can be used.
	ready func()

	answered atomic.Int64 // when the broker last answered a method, as clock has it

	once  sync.Once
	cause error
}

func newSession(conn *amqp.Connection, w *wire) *session {
	s := &session{conn: conn, wire: w, ended: make(chan struct{})}
	s.heardAnswer() // its handshake's
	return s
}

// end ends the session with a cause; the first one counts.
func (s *session) end(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.ended)
		// Closing the socket is the one thing that frees a writer that is stuck in
		// write(2), and with it the library's locks.
		_ = s.wire.Close()
	})
}

// close ends a session that is still good with the closing handshake (connection.close).
// It is bounded, and does nothing to a session that is over.
func (s *session) close() {
	if s.over() {
		return
	}
	// CloseDeadline waits for locks that a stuck writer may hold.
	guard := time.AfterFunc(closeTimeout, func() { _ = s.wire.Close() })
	defer guard.Stop()
	_ = s.conn.CloseDeadline(time.Now().Add(closeTimeout))
	s.end(errors.New("closed"))
}

// over reports whether the session has ended.
func (s *session) over() bool { return isClosed(s.ended) }

// isClosed reports whether a channel on which nothing is sent has been closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// watch ends the session where what is called now is not answered within rpcLimit, or
// where nothing is within rpcTimeout: the library waits for the broker's answer for as
// long as the connection lives. The caller calls the returned function when the answer is
// there.
func (s *session) watch(what string) (answered func()) {
	stop := s.watchOnly(what)
	return func() {
		s.heardAnswer()
		stop()
	}
}

// heardAnswer notes that the broker has answered a method.
func (s *session) heardAnswer() { s.answered.Store(clock()) }

// watchOnly is watch for a question that says nothing of the others: the broker can
// answer what it has to read only, while it can't change anything.
func (s *session) watchOnly(what string) (stop func()) {
	var (
		began = clock()
		mu    sync.Mutex
		timer *time.Timer
		over  bool
	)
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(rpcTimeout, func() {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		waited := time.Since(moment(began))
		quiet := min(waited, time.Since(moment(s.answered.Load())))
		if waited >= rpcLimit || quiet >= rpcTimeout {
			s.end(fmt.Errorf("%s: the broker did not answer within %v", what, waited.Round(time.Second)))
			return
		}
		timer.Reset(min(rpcLimit-waited, rpcTimeout-quiet))
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
		timer.Stop()
	}
}

// start begins to keep the connection; it does not wait for it.
func (l *link) start() {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel, l.done = cancel, make(chan struct{})
	go func() {
		defer close(l.done)
		l.run(ctx)
	}()
}

// stop ends the link and waits for it, with a closing handshake where half of the time
// that ctx leaves is enough for it.
func (l *link) stop(ctx context.Context) error {
	l.cancel()
	grace := closeTimeout
	if deadline, ok := ctx.Deadline(); ok {
		grace = min(grace, time.Until(deadline)/2)
	}
	force := time.AfterFunc(grace, func() {
		if s := l.session.Load(); s != nil {
			s.end(errors.New("the closing handshake took too long"))
		}
	})
	defer force.Stop()
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close the %s connection: %w", l.purpose, ctx.Err())
	}
}

func (l *link) run(ctx context.Context) {
	var (
		next     int // index of the URL to try
		failures int // attempts since a connection was of use
		connects int
		lastLog  time.Time
		refused  bool // as far as the log says
	)
	for ctx.Err() == nil {
		url := l.urls[next%len(l.urls)]
		began := time.Now()
		connected, err := l.attempt(ctx, url, func() {
			connects++
			if connects > 1 {
				l.reconnected()
			}
			lastLog = time.Time{}
			l.log.Info("connected to the broker", zap.String("connection", l.purpose), zap.String("node", redact(url)))
		})
		if ctx.Err() != nil {
			return
		}
		next++
		if connected && time.Since(began) > settledAfter {
			failures = 0
		}
		failures++
		// The other nodes of a cluster are tried at once; each full round waits.
		if failures%len(l.urls) != 0 && !connected {
			continue
		}
		delay := backoff(failures / len(l.urls))
		if errors.Is(err, errExchangeGone) {
			// Other instances have lost their bindings too, and notice only if they look
			// before the exchange is there again.
			delay += exchangeWatch
		}
		// Credentials that are refused don't mend themselves: that is told at once.
		if now := hasCode(err, amqp.AccessRefused); now != refused || time.Since(lastLog) >= awayLogInterval {
			lastLog, refused = time.Now(), now
			text := "the broker can't be reached, trying on"
			if connected {
				text = "the connection to the broker was lost, connecting again"
			}
			l.log.Warn(text, zap.String("connection", l.purpose), zap.String("node", redact(url)),
				zap.Error(err), zap.Duration("next_attempt_in", delay.Round(time.Millisecond)))
		} else {
			l.log.Debug("no connection to the broker", zap.String("connection", l.purpose),
				zap.String("node", redact(url)), zap.Error(err))
		}
		pause(ctx.Done(), delay)
	}
}

// backoff returns how long to wait after a number of full rounds that failed: at least
// the floor, and at most a bound that doubles with each round up to the cap. It is drawn
// between the two, so that the instances of a fleet that lost their broker together do
// not come back together.
func backoff(rounds int) time.Duration {
	ceiling := backoffCap
	if rounds < 3 {
		ceiling = min(backoffCap, backoffFloor<<max(1, rounds))
	}
	return backoffFloor + rand.N(ceiling-backoffFloor+1)
}

// pause waits for d, or until stop is closed.
func pause(stop <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-stop:
	}
}

// attempt dials one node and serves the connection to its end. It reports whether the
// connection was of use, and why it ended.
func (l *link) attempt(ctx context.Context, url string, ready func()) (connected bool, err error) {
	s, err := l.dial(ctx, url)
	if err != nil {
		return false, err
	}
	// The library closes this channel as the last thing that it does to a connection.
	closed := s.conn.NotifyClose(make(chan *amqp.Error, 1))
	torndown := make(chan struct{})
	go func() {
		defer close(torndown)
		cause := errors.New("the connection was closed")
		for reason := range closed {
			cause = reason
		}
		s.end(cause)
	}()
	s.ready = func() {
		connected = true
		l.up.Store(true)
		ready()
	}
	l.session.Store(s)
	defer l.session.Store(nil)
	if ctx.Err() != nil {
		s.end(ctx.Err()) // stop may have looked for a session too early
	}
	err = s.ensureExchange(l.exchange)
	if err == nil {
		err = l.serve(ctx, s)
	}
	l.up.Store(false)
	if s.over() {
		err = s.cause
	}
	s.close()
	<-torndown
	return connected, err
}

// dial connects to one node. No error holds anything of the URL but its host.
func (l *link) dial(ctx context.Context, url string) (*session, error) {
	uri, err := amqp.ParseURI(url)
	if err != nil {
		// The parser's error quotes the URL, password and all.
		return nil, errors.New("the URL is not an AMQP URL")
	}
	timeout := dialTimeout
	if uri.ConnectionTimeout > 0 {
		timeout = time.Duration(uri.ConnectionTimeout) * time.Millisecond
	}
	handshake, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var w *wire
	stopWatching := func() bool { return true }
	defer func() { stopWatching() }()
	config := amqp.Config{
		Heartbeat:  heartbeat,
		Properties: connectionProperties(l.appID + "-" + l.purpose),
		Dial: func(network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(handshake, network, address)
			if err != nil {
				return nil, err
			}
			w = newWire(conn)
			// The library's handshake knows no context; it clears the deadline when done.
			stopWatching = context.AfterFunc(ctx, func() { _ = w.Close() })
			deadline, _ := handshake.Deadline()
			if err := w.SetDeadline(deadline); err != nil {
				_ = w.Close()
				return nil, err
			}
			return w, nil
		},
	}
	conn, err := amqp.DialConfig(url, config)
	if err != nil {
		if w != nil {
			_ = w.Close()
		}
		return nil, fmt.Errorf("connect: %w", err)
	}
	return newSession(conn, w), nil
}

// connectionProperties are what the broker's listings show of a connection.
func connectionProperties(name string) amqp.Table {
	version := "unknown"
	if build, ok := debug.ReadBuildInfo(); ok && build.Main.Version != "" {
		version = build.Main.Version
	}
	properties := amqp.Table{"product": "chat-transportation", "version": version, "platform": "Go"}
	properties.SetClientConnectionName(name)
	return properties
}

// redact returns what of a URL may be logged: host and port, and the virtual host where
// it is not the usual one.
func redact(url string) string {
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return "not an AMQP URL"
	}
	node := net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port))
	if uri.Vhost != "/" {
		node += "/" + uri.Vhost
	}
	return node
}

// ensureExchange looks the exchange up and declares it, durable and direct, only where
// it is absent: peers own it, and may have given it other properties.
func (s *session) ensureExchange(name string) error {
	defer s.watch("look up an exchange")()
	err := s.onFreshChannel(func(channel *amqp.Channel) error {
		return channel.ExchangeDeclarePassive(name, amqp.ExchangeDirect, true, false, false, false, nil)
	})
	if hasCode(err, amqp.NotFound) {
		err = s.onFreshChannel(func(channel *amqp.Channel) error {
			return channel.ExchangeDeclare(name, amqp.ExchangeDirect, true, false, false, false, nil)
		})
	}
	if err != nil {
		return fmt.Errorf("look up or declare the exchange %q: %w", name, err)
	}
	return nil
}

// onFreshChannel calls a method that closes its channel where it fails (AMQP 0-9-1,
// section 4.8.1).
func (s *session) onFreshChannel(call func(*amqp.Channel) error) error {
	channel, err := s.conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	s.heardAnswer()
	if err := call(channel); err != nil {
		return err
	}
	s.heardAnswer()
	return channel.Close()
}

// hasCode reports whether err is an AMQP exception with that reply code.
func hasCode(err error, code int) bool {
	var exception *amqp.Error
	return errors.As(err, &exception) && exception.Code == code
}
