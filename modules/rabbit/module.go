package rabbit

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// Module provides the publisher and the inboxes, each also as the port that it
// implements, and the readiness checks "broker" and "user_queues".
var Module = fx.Module("rabbit",
	fx.Provide(
		startedPublisher,
		startedInboxes,
		func(p *Publisher) app.Publisher { return p },
		func(x *Inboxes) app.Inboxes { return x },
		fx.Annotate(brokerCheck, fx.ResultTags(`group:"checks"`)),
		fx.Annotate(userQueuesCheck, fx.ResultTags(`group:"checks"`)),
	),
)

func startedPublisher(lc fx.Lifecycle, config Config, log *zap.Logger, registry prometheus.Registerer) *Publisher {
	p := NewPublisher(config, log, registry)
	lc.Append(fx.StartStopHook(p.Start, p.Stop))
	return p
}

func startedInboxes(lc fx.Lifecycle, config Config, log *zap.Logger, registry prometheus.Registerer) *Inboxes {
	x := NewInboxes(config, log, registry)
	lc.Append(fx.StartStopHook(x.Start, x.Stop))
	return x
}

// brokerCheck holds while the broker takes messages and inboxes can be opened.
func brokerCheck(p *Publisher, x *Inboxes) app.Check {
	return app.Check{Name: "broker", Probe: func(ctx context.Context) error {
		if err := x.Available(); err != nil {
			return err
		}
		return p.Check(ctx)
	}}
}

func userQueuesCheck(x *Inboxes) app.Check {
	return app.Check{Name: "user_queues", Probe: x.Check}
}
