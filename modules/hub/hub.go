package hub

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// Config is what the hub can be told. All durations are positive.
type Config struct {
	// MaxMessageBytes is the greatest message of a client, in bytes; 1009 past it.
	MaxMessageBytes int64
	// PingInterval is the time between two pings, and how long a peer may answer nothing.
	PingInterval time.Duration
	// WriteTimeout is how long one write may take, or a send queue may stay full.
	WriteTimeout time.Duration
	// SendQueue is how many deliveries may wait for one connection, at least one.
	SendQueue int
	// MaxConnectionsPerUser bounds one user's connections here; 0 is no limit.
	MaxConnectionsPerUser int
	// CloseOnTokenExpiry says whether a connection ends with the token it came from.
	CloseOnTokenExpiry bool
	// MessagesPerSecond and MessagesBurst bound what one connection sends; 0 messages a
	// second is no limit.
	MessagesPerSecond float64
	MessagesBurst     int
	// ConfirmTimeout is PUBLISH_CONFIRM_TIMEOUT: a close waits for messages in flight a
	// second longer than that.
	ConfirmTimeout time.Duration
	// AllowedOrigins are origins (scheme://host[:port]) that may connect though they are
	// not that of the Host header.
	AllowedOrigins []string
	// CloseWhenFull is for users who share a queue: a delivery that finds a send queue
	// full closes that connection at once, and nothing ever waits for room.
	CloseWhenFull bool
	// SharedPrefetch is how many deliveries the broker hands out unsettled for all users
	// together, where they share a queue; 0 where they don't. When three quarters of it
	// wait for sockets, the connections whose frames have been on their way for longest
	// are closed, so that nobody else has to wait for them much longer than stuckGrace.
	SharedPrefetch int
	// DrainWindow is the time over which a shutdown spreads its closes.
	DrainWindow time.Duration
	// DrainTimeout bounds Drain.Stop, the window included.
	DrainTimeout time.Duration
}

// Refuse answers a request that can't be served, for one of app's errors.
type Refuse func(w http.ResponseWriter, r *http.Request, err error)

// Hub holds the WebSocket connections of this instance. It is safe for concurrent use.
type Hub struct {
	config  Config
	connect *app.Connect
	send    *app.Send
	inboxes app.Inboxes
	refuse  Refuse
	log     *zap.Logger
	meters  *meters
	origins map[origin]struct{}

	// round pings all sessions.
	round *round
	trim  *trimmer

	// dropLog keeps a backend that publishes rubbish from filling the log.
	dropLog rate.Sometimes

	// unsettled counts the deliveries that wait for a connection.
	unsettled atomic.Int64
	stuck     stuck
	// removed counts the inboxes that have been closed at the broker.
	removed atomic.Int64

	mu       sync.Mutex
	users    map[domain.UserID]*member
	sessions map[*session]struct{}
	// live counts the sessions and the connections that are being turned away.
	live int
	// gone is there once a drain has begun, and is closed when nothing lives any more.
	gone chan struct{}
}

// New returns a hub that takes no part in anything until its routes are served. refuse
// answers upgrades that are refused over HTTP. It registers the hub's metrics and
// panics where they are registered already.
func New(config Config, connect *app.Connect, send *app.Send, inboxes app.Inboxes, refuse Refuse, log *zap.Logger, registerer prometheus.Registerer) *Hub {
	trim := newTrimmer()
	return &Hub{
		config:   config,
		connect:  connect,
		send:     send,
		inboxes:  inboxes,
		refuse:   refuse,
		log:      log.Named("hub"),
		meters:   newMeters(registerer),
		origins:  parseOrigins(config.AllowedOrigins),
		dropLog:  rate.Sometimes{First: 10, Interval: 10 * time.Second},
		trim:     trim,
		round:    newRound(config.PingInterval, trim.look),
		users:    make(map[domain.UserID]*member),
		sessions: make(map[*session]struct{}),
	}
}

// Routes adds the WebSocket endpoint.
func (h *Hub) Routes(router chi.Router) {
	router.Get("/messages", h.ServeHTTP)
	router.Get("/messages/", h.ServeHTTP)
}

// register makes the session one that a drain closes. It reports false once a drain
// has begun.
func (h *Hub) register(s *session) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone != nil {
		return false
	}
	h.sessions[s] = struct{}{}
	h.live++
	return true
}

func (h *Hub) unregister(s *session) {
	h.mu.Lock()
	delete(h.sessions, s)
	h.mu.Unlock()
	h.end()
}

// begin counts a connection that is no session.
func (h *Hub) begin() {
	h.mu.Lock()
	h.live++
	h.mu.Unlock()
}

func (h *Hub) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.live--; h.live == 0 && h.gone != nil {
		// A connection that is turned away after the drain has begun could bring the
		// count to zero again.
		select {
		case <-h.gone:
		default:
			close(h.gone)
		}
	}
}

// closeReason returns the reason that always goes with a code.
func closeReason(code app.CloseCode) string {
	for _, row := range app.CloseCodes {
		if row.Code == code {
			return row.Reason
		}
	}
	return ""
}
