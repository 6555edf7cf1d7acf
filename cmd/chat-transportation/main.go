// Command chat-transportation is a WebSocket gateway for RabbitMQ. Without arguments
// it serves; its small commands are listed by -h.
//
// The way of a message, from here:
//
//	pass      httpapi pass route   -> app.IssuePass -> authpass tokens and passes
//	inbound   hub session, frame   -> app.Send      -> domain.Message -> rabbit.Publisher
//	delivery  rabbit.Inboxes       -> app.Deliver   -> hub member     -> session -> socket -> ack
//	shutdown  the order line of this file, backwards
package main

import (
	"os"

	"go.uber.org/fx"
	"go.uber.org/fx/fxevent"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/apidocs"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/config"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/demo"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/httpapi"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/hub"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/metrics"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/tracing"
)

func main() { os.Exit(command(os.Args[1:])) }

// service puts the parts together. Each module is independent of the others; they
// meet through the ports of app, the groups of routes and checks, and a
// prometheus.Registerer.
func service(cfg config.Config, log *zap.Logger) fx.Option {
	return fx.Options(
		fx.StartTimeout(startTimeout),
		fx.StopTimeout(cfg.Shutdown.Total),
		fx.Supply(log),
		fx.WithLogger(func() fxevent.Logger {
			events := &fxevent.ZapLogger{Logger: log.Named("fx")}
			events.UseLogLevel(zapcore.DebugLevel)
			return events
		}),

		config.Module(cfg),
		metrics.Module,
		tracing.Module,
		traces(cfg),
		authpass.Module,
		useCases(cfg),
		hub.Module,
		httpapi.Module,
		apidocs.Module,
		broker(cfg),
	)
}

// broker returns where messages go, and the order in which the parts start. Start
// order is the order of construction, which is the order of the parameters here; stop
// order is its reverse: first the connections are drained while the listener still
// says that the instance is not ready, then it closes, then the users' queues go,
// then the publisher, which has had its last confirm, then the pass store, and at last
// the spans and the metrics of all this are sent to the collector, where there is one.
func broker(cfg config.Config) fx.Option {
	if cfg.Demo {
		return fx.Options(demo.Module, fx.Provide(demoSigner), fx.Invoke(func(
			*metrics.Push, *tracing.Tracer, app.PassStore, *demo.Broker, *demo.Backend, *httpapi.Server, *hub.Drain) {
		}))
	}
	return fx.Options(rabbit.Module, fx.Invoke(func(
		*metrics.Push, *tracing.Tracer, app.PassStore, *rabbit.Publisher, *rabbit.Inboxes, *httpapi.Server, *hub.Drain) {
	}))
}

// traces puts spans around the ports and the routes; without traces it puts nothing.
func traces(cfg config.Config) fx.Option {
	if !cfg.Tracing.Enabled {
		return fx.Options()
	}
	return tracing.Decorators
}

// useCases provides the use cases over the ports that the modules implement.
func useCases(cfg config.Config) fx.Option {
	return fx.Provide(
		app.NewConnect,
		app.NewIssuePass,
		func(publisher app.Publisher) *app.Send { return app.NewSend(publisher, cfg.ConfirmTimeout) },
		fx.Annotate(app.NewReadiness, fx.ParamTags(`group:"checks"`)),
		func() hub.Refuse { return httpapi.WriteError },
	)
}
