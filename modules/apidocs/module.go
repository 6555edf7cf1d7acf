package apidocs

import (
	"github.com/go-chi/chi/v5"
	"go.uber.org/fx"
)

// Module provides the routes of the documents. It needs a Config.
var Module = fx.Module("apidocs",
	fx.Provide(
		New,
		fx.Annotate(routes, fx.ResultTags(`group:"routes"`)),
	),
)

func routes(d *Docs) func(chi.Router) { return d.Routes }
