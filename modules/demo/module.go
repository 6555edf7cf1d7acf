package demo

import (
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// Module provides the broker in the place of the real one, the stand-in of the
// messaging service, and the chat page. It needs a Signer.
var Module = fx.Module("demo",
	fx.Provide(
		provideBroker,
		provideBackend,
		NewMessaging,
		NewPages,
		publisher,
		func(b *Broker) app.Inboxes { return b },
		fx.Annotate(brokerCheck, fx.ResultTags(`group:"checks"`)),
		fx.Annotate(userQueuesCheck, fx.ResultTags(`group:"checks"`)),
		fx.Annotate(routes, fx.ResultTags(`group:"routes"`)),
	),
)

func provideBroker(lifecycle fx.Lifecycle, log *zap.Logger, metrics prometheus.Registerer) *Broker {
	b := NewBroker(log, metrics)
	lifecycle.Append(fx.StartStopHook(b.Start, b.Stop))
	return b
}

func provideBackend(lifecycle fx.Lifecycle, broker *Broker, messaging *Messaging, log *zap.Logger) *Backend {
	b := NewBackend(broker, messaging, log)
	lifecycle.Append(fx.StartStopHook(b.Start, b.Stop))
	return b
}

// publisher takes the backend too, so that whoever publishes starts after it and
// stops before it: without its queue every message would be unroutable.
func publisher(b *Broker, _ *Backend) app.Publisher { return b }

func brokerCheck(b *Broker) app.Check { return app.Check{Name: "broker", Probe: b.Check} }

func userQueuesCheck(b *Broker) app.Check { return app.Check{Name: "user_queues", Probe: b.Check} }

func routes(p *Pages) func(chi.Router) { return p.Routes }
