package tracing

import (
	"net/http"

	"go.uber.org/fx"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// Module provides the *Tracer, which has hooks where traces are enabled. It wants a
// Config and a *zap.Logger.
var Module = fx.Module("tracing", fx.Provide(newTracer))

// Decorators put the *Tracer around app.Publisher, app.Inboxes and, through the group
// "middlewares", the public routes. A decorator counts only where it stands and below,
// so they are for the application itself, outside any module, and only where traces are
// enabled.
var Decorators = fx.Options(
	fx.Decorate(
		func(t *Tracer, next app.Publisher) app.Publisher { return t.Publisher(next) },
		func(t *Tracer, next app.Inboxes) app.Inboxes { return t.Inboxes(next) },
	),
	fx.Provide(fx.Annotate(provideMiddleware, fx.ResultTags(`group:"middlewares"`))),
)

func newTracer(lifecycle fx.Lifecycle, cfg Config, log *zap.Logger) *Tracer {
	t := New(cfg, log.Named("tracing"))
	if cfg.Enabled {
		lifecycle.Append(fx.StartStopHook(t.Start, t.Stop))
	}
	return t
}

func provideMiddleware(t *Tracer) func(http.Handler) http.Handler { return t.Middleware }
