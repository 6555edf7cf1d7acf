// Package httpapi is the HTTP edge of the gateway: the listeners, what every request
// goes through, the one translation of errors into answers, and the routes that hand
// out passes and tell about health. The other modules bring their routes as plain
// func(chi.Router).
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Limits of one HTTP request. A connection that has been upgraded is no longer under
// them: net/http takes its deadlines off when it is hijacked.
const (
	readHeaderTimeout = 5 * time.Second
	// readTimeout is for header and body together. net/http ends the context of a
	// request when it runs out, so no handler may take longer.
	readTimeout  = 10 * time.Second
	writeTimeout = 20 * time.Second
	idleTimeout  = 60 * time.Second
	// unservedGrace is how long Stop waits for the first request of a connection.
	unservedGrace  = 250 * time.Millisecond
	maxHeaderBytes = 16 << 10
	maxBodyBytes   = 64 << 10
)

// Config says where and how to serve.
type Config struct {
	// Addr is where the public routes are served, as in net.Listen.
	Addr string
	// AdminAddr is where /healthz, /readyz, /metrics and /debug/pprof/ are served;
	// empty: the first three on Addr, pprof nowhere.
	AdminAddr string
	// RootPath is the prefix under which all routes are served too, such as
	// /transportation; empty or /: at the root only.
	RootPath string
	// CORSOrigins are the origins whose pages may read the answers, as scheme://host[:port].
	CORSOrigins []string
	// TrustedProxies are the peers whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
	// ServerName is the label http_server_name.
	ServerName string
	// StopTimeout is how long Stop waits for requests that are being served; 0: until
	// its context ends.
	StopTimeout time.Duration
}

// Server serves HTTP on one or two addresses. Start and Stop are called once each.
type Server struct {
	log         *zap.Logger
	stopTimeout time.Duration

	public *listener
	admin  *listener // nil without an AdminAddr

	serving sync.WaitGroup
	// failed is called where an address is served no more though nobody has asked for
	// that.
	failed func()
}

// listener is one address and what is served there.
type listener struct {
	address string
	server  *http.Server
	bound   net.Listener // nil before Start

	closeUnserved func()
}

// NewServer returns a server for the routes; those of opsRoutes are served on the
// admin address where there is one. A request that finds one of routes goes through
// the middlewares first. It registers its metrics with registerer and does not listen
// yet.
func NewServer(cfg Config, routes, opsRoutes []func(chi.Router), log *zap.Logger, registerer prometheus.Registerer, middlewares ...func(http.Handler) http.Handler) *Server {
	s := &Server{log: log, stopTimeout: cfg.StopTimeout, failed: func() {}}
	routes = behind(middlewares, routes)
	front, conns := newFront(cfg, log, registerer), newConnections(registerer)
	if cfg.AdminAddr == "" {
		s.public = newListener(cfg.Addr, front.router(normalRootPath(cfg.RootPath), append(opsRoutes[:len(opsRoutes):len(opsRoutes)], routes...)), conns, log)
		return s
	}
	s.public = newListener(cfg.Addr, front.router(normalRootPath(cfg.RootPath), routes), conns, log)
	s.admin = newListener(cfg.AdminAddr, front.router(normalRootPath(cfg.RootPath), append(opsRoutes[:len(opsRoutes):len(opsRoutes)], profiling)), conns, log)
	// A profile takes 30 seconds or what is asked for. pprof prolongs the deadline for
	// writing by itself, but not the one for reading; see readTimeout.
	s.admin.server.ReadTimeout = 0
	return s
}

func newListener(address string, handler http.Handler, conns *connections, log *zap.Logger) *listener {
	// What goes wrong on a connection before a handler runs is the client's doing.
	errorLog, err := zap.NewStdLogAt(log, zapcore.DebugLevel)
	if err != nil {
		// NewStdLogAt fails for levels that do not exist only.
		panic(fmt.Sprintf("httpapi: %v", err))
	}
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          errorLog,
	}
	return &listener{address: address, server: server, closeUnserved: conns.watch(server)}
}

// Start binds the addresses and serves them until Stop. An address that can't be
// bound is an error at once; nothing listens then.
func (s *Server) Start(ctx context.Context) error {
	for _, l := range s.listeners() {
		bound, err := (&net.ListenConfig{}).Listen(ctx, "tcp", l.address)
		if err != nil {
			s.closeListeners()
			return fmt.Errorf("listen for HTTP: %w", err)
		}
		l.bound = bound
	}
	for _, l := range s.listeners() {
		s.serving.Go(func() {
			if err := l.server.Serve(l.bound); !errors.Is(err, http.ErrServerClosed) {
				s.log.Error("HTTP is served no more", zap.Stringer("address", l.bound.Addr()), zap.Error(err))
				s.failed()
			}
		})
		s.log.Info("serving HTTP", zap.Stringer("address", l.bound.Addr()))
	}
	return nil
}

// Stop closes the listeners, waits for the requests that are being served, and cuts
// those that are not done within StopTimeout or when ctx ends. It neither closes nor
// awaits connections that have been upgraded: they belong to who upgraded them.
func (s *Server) Stop(ctx context.Context) error {
	if s.stopTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.stopTimeout)
		defer cancel()
	}
	listeners := s.listeners()
	errs := make([]error, len(listeners))
	var stopping sync.WaitGroup
	for i, l := range listeners {
		stopping.Go(func() { errs[i] = s.stop(ctx, l) })
	}
	stopping.Wait()
	s.serving.Wait()
	return errors.Join(errs...)
}

func (s *Server) stop(ctx context.Context, l *listener) error {
	// Browsers open connections that they never use, and Shutdown waits for those as if
	// a request were under way.
	unused := time.AfterFunc(unservedGrace, l.closeUnserved)
	defer unused.Stop()
	err := l.server.Shutdown(ctx)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		s.log.Warn("cutting HTTP requests that take too long", zap.String("address", l.address))
		err = nil
	}
	if closeErr := l.server.Close(); closeErr != nil && !errors.Is(closeErr, net.ErrClosed) {
		err = errors.Join(err, closeErr)
	}
	if err != nil {
		return fmt.Errorf("stop serving HTTP on %s: %w", l.address, err)
	}
	return nil
}

// Addr returns where the public routes are served, or nil before Start.
func (s *Server) Addr() net.Addr { return s.public.addr() }

// AdminAddr returns where the admin routes are served, or nil before Start and
// without an admin address.
func (s *Server) AdminAddr() net.Addr {
	if s.admin == nil {
		return nil
	}
	return s.admin.addr()
}

// Handler returns what is served on Addr. It is a chi.Routes, whose routes have no
// RootPath before them.
func (s *Server) Handler() http.Handler { return s.public.server.Handler }

func (s *Server) listeners() []*listener {
	if s.admin == nil {
		return []*listener{s.public}
	}
	return []*listener{s.public, s.admin}
}

func (s *Server) closeListeners() {
	for _, l := range s.listeners() {
		if l.bound != nil {
			// The error that brings us here is the one worth telling.
			_ = l.bound.Close()
		}
	}
}

func (l *listener) addr() net.Addr {
	if l.bound == nil {
		return nil
	}
	return l.bound.Addr()
}
