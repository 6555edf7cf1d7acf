package tracing

import (
	"net/http"
	"strconv"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// tracedRoutes are the routes that have spans, as chi.Context.RoutePattern writes them,
// without a slash at the end: the pass and the connect. Documents, health and metrics
// have none: scrapers would fill the collector with them.
var tracedRoutes = map[string]bool{
	"/messages/get-connection-pass": true,
	"/messages":                     true,
}

// Middleware returns next with a span of kind server around each request for a pass and
// each connect, up to the answer: the span of a connect ends with the upgrade. It
// continues the trace that the client names (W3C Trace Context). It must be behind the
// router, where the route is known.
func (t *Tracer) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route := chi.RouteContext(r.Context()).RoutePattern()
		if !tracedRoutes[route] {
			next.ServeHTTP(w, r)
			return
		}
		ctx := t.propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		// The method is one that a route has, and the path that of a route: the client
		// chooses neither. The query holds the pass and is left out.
		ctx, span := t.tracer.Start(ctx, r.Method+" "+route, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
			semconv.HTTPRequestMethodKey.String(r.Method),
			semconv.HTTPRoute(route),
			semconv.URLPath(r.URL.Path),
			semconv.URLScheme("http"),
		))
		answer := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		returned := false
		defer func() {
			status := answer.Status()
			switch {
			case !returned: // it panics, and the front answers
				status = http.StatusInternalServerError
			case status == 0:
				status = http.StatusOK
			}
			span.SetAttributes(semconv.HTTPResponseStatusCode(status))
			if status >= http.StatusInternalServerError {
				span.SetStatus(codes.Error, "")
				span.SetAttributes(semconv.ErrorTypeKey.String(strconv.Itoa(status)))
			}
			span.End()
		}()
		next.ServeHTTP(answer, r.WithContext(ctx))
		returned = true
	})
}
