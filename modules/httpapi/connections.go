package httpapi

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// connections measures what never becomes a request and so is seen by no handler:
// clients that connect and say nothing, too little, too slowly or too much.
type connections struct {
	open     prometheus.Gauge
	unserved prometheus.Counter
}

func newConnections(registerer prometheus.Registerer) *connections {
	c := &connections{
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "http_server_open_connections",
			Help: "TCP connections that are open now. Upgraded ones (WebSockets) are not among them.",
		}),
		unserved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "http_server_unserved_connections_total",
			Help: "TCP connections that have ended without one request that could be read: the header came too slowly, was too large or malformed, or none came at all, as with the checks of a TCP load balancer.",
		}),
	}
	registerer.MustRegister(c.open, c.unserved)
	return c
}

// servedKey is the key of a connection's *atomic.Bool in the contexts of its requests.
type servedKey struct{}

// watch makes the server, which must not be serving yet, report its connections. The
// function that it returns closes those from which no request has been read so far.
func (c *connections) watch(server *http.Server) (closeUnserved func()) {
	var served sync.Map // *atomic.Bool by net.Conn, for as long as HTTP owns it
	server.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		mark := new(atomic.Bool)
		served.Store(conn, mark)
		return context.WithValue(ctx, servedKey{}, mark)
	}
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			c.open.Inc()
		case http.StateHijacked, http.StateClosed:
			c.open.Dec()
			mark, known := served.LoadAndDelete(conn)
			if known && state == http.StateClosed && !mark.(*atomic.Bool).Load() {
				c.unserved.Inc()
			}
		}
	}
	return func() {
		served.Range(func(conn, mark any) bool {
			if !mark.(*atomic.Bool).Load() {
				_ = conn.(net.Conn).Close()
			}
			return true
		})
	}
}

// markServed notes that a request has been read from its connection.
func markServed(r *http.Request) {
	if mark, ok := r.Context().Value(servedKey{}).(*atomic.Bool); ok {
		mark.Store(true)
	}
}
