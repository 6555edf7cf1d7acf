package httpapi

import (
	"net/http"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// Module provides the *Server over the groups "routes", "ops_routes" and "middlewares"
// (func(http.Handler) http.Handler, before the handlers of "routes"), and the routes of
// passes and health in these groups. It wants a Config, an *app.IssuePass, an
// *app.Readiness, a *zap.Logger and a prometheus.Registerer.
var Module = fx.Module("httpapi", fx.Provide(
	fx.Annotate(newServer, fx.ParamTags(``, ``, `group:"routes"`, `group:"ops_routes"`, `group:"middlewares"`)),
	fx.Annotate(newPassRoute, fx.ResultTags(`group:"routes"`)),
	fx.Annotate(newHealthRoutes, fx.ResultTags(`group:"ops_routes"`)),
))

func newServer(lifecycle fx.Lifecycle, cfg Config, routes, opsRoutes []func(chi.Router), middlewares []func(http.Handler) http.Handler, log *zap.Logger, registerer prometheus.Registerer, shutdowner fx.Shutdowner) *Server {
	server := NewServer(cfg, routes, opsRoutes, log.Named("http"), registerer, middlewares...)
	// Without its listener the process is of no use: whoever started it starts it anew.
	server.failed = func() { _ = shutdowner.Shutdown(fx.ExitCode(1)) }
	lifecycle.Append(fx.StartStopHook(server.Start, server.Stop))
	return server
}

func newPassRoute(issue *app.IssuePass, registerer prometheus.Registerer) func(chi.Router) {
	return NewPasses(issue, registerer).Routes
}

func newHealthRoutes(readiness *app.Readiness) func(chi.Router) {
	return NewHealth(readiness).Routes
}
