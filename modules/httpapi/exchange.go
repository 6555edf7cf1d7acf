package httpapi

import (
	"bufio"
	"context"
	"net"
	"net/http"

	"go.uber.org/zap"
)

// other is the label of what clients choose freely: unknown methods, and paths
// without a route.
const other = "other"

// exchange is what is known about one request and its answer. It belongs to the
// goroutine that serves the request.
type exchange struct {
	id       string
	log      *zap.Logger
	response *recorder
	// routeOf returns the pattern of the route for a method at the request's path, empty
	// where there is none.
	routeOf func(method string) string
}

type exchangeKey struct{}

func withExchange(r *http.Request, x *exchange) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
}

// exchangeOf returns the exchange of a request that a Server serves; of any other
// request, one that logs nothing.
func exchangeOf(r *http.Request) *exchange {
	if x, ok := r.Context().Value(exchangeKey{}).(*exchange); ok {
		return x
	}
	return &exchange{log: zap.NewNop(), response: &recorder{}, routeOf: func(string) string { return "" }}
}

// route returns the pattern of the route that the request goes to, without ROOT_PATH,
// also where the path has a route for other methods only.
func (x *exchange) route(r *http.Request) string {
	if pattern := x.routeOf(r.Method); pattern != "" {
		return pattern
	}
	for _, method := range methods {
		if pattern := x.routeOf(method); pattern != "" {
			return pattern
		}
	}
	return other
}

// method returns the method of the request where it is a known one.
func (x *exchange) method(r *http.Request) string {
	for _, known := range methods {
		if r.Method == known {
			return known
		}
	}
	return other
}

// recorder is a http.ResponseWriter that remembers what was answered. It lets
// http.ResponseController and websocket.Accept through to the connection.
type recorder struct {
	http.ResponseWriter
	status   int // 0 until the header is written
	bytes    int64
	upgraded bool
}

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	// The other 1xx are not the answer: RFC 9110, section 15.2.
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
		w.upgraded = status == http.StatusSwitchingProtocols
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Flush implements http.Flusher.
func (w *recorder) Flush() { _ = w.FlushError() }

// FlushError is what http.ResponseController.Flush calls.
func (w *recorder) FlushError() error {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack implements http.Hijacker.
func (w *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.upgraded = true
	}
	return conn, buffered, err
}

// Unwrap is what http.ResponseController looks for.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// answered returns the status of the answer; a handler that writes nothing answers 200.
func (w *recorder) answered() int {
	if w.status == 0 {
		return http.StatusOK
	}
	return w.status
}
