package httpapi

import (
	"bufio"
	"context"
	"net"
	"net/http"

	"github.com/go-chi/chi/v5"
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
	// unmatched says that no route was found.
	unmatched bool
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
	return &exchange{log: zap.NewNop(), response: &recorder{}}
}

// route returns the pattern of the route that serves the request, without ROOT_PATH.
// It is known once the handler has returned.
func (x *exchange) route(r *http.Request) string {
	pattern := chi.RouteContext(r.Context()).RoutePattern()
	if x.unmatched || pattern == "" {
		return other
	}
	return pattern
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
