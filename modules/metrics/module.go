package metrics

import (
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"
	"go.uber.org/zap"
)

// Module provides the registry, as *prometheus.Registry, prometheus.Registerer and
// prometheus.Gatherer, the route that shows it, and the *Push, which has hooks where a
// collector is configured. It wants a *zap.Logger and, for the *Push, a PushConfig.
var Module = fx.Module("metrics", fx.Provide(
	newPush,
	fx.Annotate(NewRegistry, fx.As(fx.Self()), fx.As(new(prometheus.Registerer)), fx.As(new(prometheus.Gatherer))),
	fx.Annotate(newRoute, fx.ResultTags(`group:"ops_routes"`)),
))

func newRoute(registry *prometheus.Registry, log *zap.Logger) func(chi.Router) {
	return NewRoute(registry, log.Named("metrics"))
}

func newPush(lifecycle fx.Lifecycle, cfg PushConfig, gatherer prometheus.Gatherer, log *zap.Logger) *Push {
	push := NewPush(cfg, gatherer, log.Named("metrics"))
	if cfg.CollectorURL != "" {
		lifecycle.Append(fx.StartStopHook(push.Start, push.Stop))
	}
	return push
}
