package metrics

import (
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"
	"go.uber.org/zap"
)

// Module provides the registry, as *prometheus.Registry, prometheus.Registerer and
// prometheus.Gatherer, and the route that shows it. It wants a *zap.Logger.
var Module = fx.Module("metrics", fx.Provide(
	fx.Annotate(NewRegistry, fx.As(fx.Self()), fx.As(new(prometheus.Registerer)), fx.As(new(prometheus.Gatherer))),
	fx.Annotate(newRoute, fx.ResultTags(`group:"ops_routes"`)),
))

func newRoute(registry *prometheus.Registry, log *zap.Logger) func(chi.Router) {
	return NewRoute(registry, log.Named("metrics"))
}
