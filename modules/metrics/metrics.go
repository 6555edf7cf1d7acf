// Package metrics holds the registry in which the modules register their metrics, and
// shows it to Prometheus.
package metrics

import (
	"net/http"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// maxScrapes bounds how many scrapes are served at a time; the others get 503.
const maxScrapes = 4

// NewRegistry returns a registry that has the metrics of the Go runtime and of the
// process.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return registry
}

// NewRoute returns the route GET /metrics, which shows what the registry gathers in
// the Prometheus text format, or as OpenMetrics to who asks for that. A metric that
// can't be gathered is logged, and the others are shown.
func NewRoute(registry *prometheus.Registry, log *zap.Logger) func(chi.Router) {
	handler := promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:            errorLog{log},
		ErrorHandling:       promhttp.ContinueOnError,
		Registry:            registry,
		MaxRequestsInFlight: maxScrapes,
		EnableOpenMetrics:   true,
	})
	return func(r chi.Router) {
		r.Method(http.MethodGet, "/metrics", handler)
		r.Method(http.MethodHead, "/metrics", handler)
	}
}

// errorLog is a promhttp.Logger.
type errorLog struct{ log *zap.Logger }

// Println implements promhttp.Logger.
func (l errorLog) Println(v ...any) { l.log.Error("gather metrics", zap.Any("fault", v)) }
