package httpapi

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/cors"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// front is what every request goes through before it gets to its route.
type front struct {
	log      *zap.Logger
	proxies  []netip.Prefix
	duration *prometheus.HistogramVec
	cors     func(http.Handler) http.Handler
}

func newFront(cfg Config, log *zap.Logger, registerer prometheus.Registerer) *front {
	f := &front{
		log:     log,
		proxies: cfg.TrustedProxies,
		cors:    allowOrigins(cfg.CORSOrigins),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:        "http_server_duration_milliseconds",
			Help:        "How long requests took to be answered, in milliseconds. Upgraded requests (WebSockets) are not among them.",
			ConstLabels: prometheus.Labels{"http_server_name": cfg.ServerName},
			Buckets:     []float64{0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000},
		}, []string{"http_method", "http_route", "http_status_code"}),
	}
	registerer.MustRegister(f.duration)
	return f
}

// allowOrigins lets pages of the origins read the answers, with credentials. Only
// exact origins are allowed: "*" together with credentials would be everybody's key.
func allowOrigins(origins []string) func(http.Handler) http.Handler {
	allowed := make(map[string]bool, len(origins))
	for _, origin := range origins {
		allowed[strings.ToLower(origin)] = true
	}
	return cors.Handler(cors.Options{
		// Given as a function, since an empty list would mean every origin.
		AllowOriginFunc: func(_ *http.Request, origin string) bool { return allowed[strings.ToLower(origin)] },
		// All methods, so that a page can also read why its method is not allowed.
		AllowedMethods:   methods,
		AllowedHeaders:   []string{"*"},
		ExposedHeaders:   []string{"Retry-After", requestIDHeader},
		AllowCredentials: true,
		MaxAge:           600,
	})
}

const requestIDHeader = "X-Request-Id"

// begin limits the body and gives the request an id of ours: one that a client sends
// could imitate another's in the log.
func (f *front) begin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		markServed(r)
		// MaxBytesReader wants the writer of net/http, to have it close the connection.
		r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
		x := &exchange{id: rand.Text(), response: &recorder{ResponseWriter: w}}
		x.log = f.log.With(zap.String("request_id", x.id))
		w.Header().Set(requestIDHeader, x.id)
		next.ServeHTTP(x.response, withExchange(r, x))
	})
}

// resolveClient puts the address of the client into RemoteAddr.
func (f *front) resolveClient(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			r.RemoteAddr = clientAddress(peer, r.Header.Values("X-Forwarded-For"), f.trusted).String()
		}
		next.ServeHTTP(w, r)
	})
}

func (f *front) trusted(address netip.Addr) bool {
	for _, proxy := range f.proxies {
		if proxy.Contains(address) {
			return true
		}
	}
	return false
}

// logAccess writes one line for each request that is not upgraded, without anything
// that a client can choose: neither path nor query, which may hold a pass.
func (f *front) logAccess(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		// Deferred, since a handler that panics in the middle of its answer ends here too.
		defer func() {
			x := exchangeOf(r)
			if x.response.upgraded {
				return
			}
			x.log.Info("request",
				zap.String("method", x.method(r)),
				zap.String("route", x.route(r)),
				zap.Int("status", x.response.answered()),
				zap.Int64("bytes", x.response.bytes),
				zap.Duration("duration", time.Since(began)),
				zap.String("client", addressOf(r.RemoteAddr)),
			)
		}()
		next.ServeHTTP(w, r)
	})
}

// measure observes each request that is not upgraded: a WebSocket's lifetime is no
// answer time.
func (f *front) measure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		defer func() {
			x := exchangeOf(r)
			if x.response.upgraded {
				return
			}
			f.duration.WithLabelValues(x.method(r), x.route(r), strconv.Itoa(x.response.answered())).
				Observe(float64(time.Since(began)) / float64(time.Millisecond))
		}()
		next.ServeHTTP(w, r)
	})
}

// secure sets the headers that no page of ours can object to.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}

// catchPanic logs a panic of a handler, which net/http would only do where nobody
// looks, and answers 500 where nothing is answered yet.
func catchPanic(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			value := recover()
			if value == nil {
				return
			}
			x := exchangeOf(r)
			if value != http.ErrAbortHandler {
				x.log.Error("a handler panicked", zap.String("route", x.route(r)), zap.String("panic", fmt.Sprint(value)), zap.ByteString("stack", debug.Stack()))
			}
			if x.response.status == 0 && !x.response.upgraded && value != http.ErrAbortHandler {
				problemInternal.write(w)
				return
			}
			// The answer has begun: only a cut connection tells that it is not complete.
			panic(http.ErrAbortHandler)
		}()
		next.ServeHTTP(w, r)
	})
}
