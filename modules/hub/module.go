package hub

import (
	"context"

	"github.com/go-chi/chi/v5"
	"go.uber.org/fx"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// Module provides the hub, its routes, its drain, and the readiness check that fails
// once a shutdown has begun. It needs app.Connect, app.Send, app.Inboxes and a Refuse.
var Module = fx.Module("hub",
	fx.Provide(
		New,
		provideDrain,
		fx.Annotate(provideRoutes, fx.ResultTags(`group:"routes"`)),
		fx.Annotate(provideCheck, fx.ResultTags(`group:"checks"`)),
	),
)

func provideDrain(lifecycle fx.Lifecycle, h *Hub) *Drain {
	drain := NewDrain(h)
	lifecycle.Append(fx.StartStopHook(drain.Start, drain.Stop))
	return drain
}

func provideRoutes(h *Hub) func(chi.Router) { return h.Routes }

func provideCheck(connect *app.Connect) app.Check {
	return app.Check{Name: "shutdown", Probe: func(context.Context) error { return connect.Draining() }}
}
