package demo

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// meters are the broker's metrics under the names that RabbitMQ's have, so that a
// dashboard shows the same panels in demo mode.
type meters struct{ confirms *prometheus.HistogramVec }

// Results of the confirm histogram; an in-process broker loses none and is never late.
const (
	resultConfirmed = "confirmed"
	resultNacked    = "nacked"
	resultReturned  = "returned"
)

// newMeters registers the metrics; running says whether the broker takes messages.
func newMeters(running func() bool, registerer prometheus.Registerer) *meters {
	m := &meters{confirms: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "rabbitmq_publish_confirm_seconds",
		Help:    "Time from handing a client message over to the in-process broker's verdict.",
		Buckets: prometheus.ExponentialBucketsRange(0.0002, 10, 24),
	}, []string{"result"})}
	for _, result := range []string{resultConfirmed, resultNacked, resultReturned} {
		m.confirms.WithLabelValues(result)
	}
	registerer.MustRegister(
		m.confirms,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "rabbitmq_connected",
			Help: "1 while the in-process broker of demo mode runs, else 0.",
		}, func() float64 {
			if running() {
				return 1
			}
			return 0
		}),
		prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rabbitmq_reconnects_total",
			Help: "Connections to RabbitMQ that were made anew; demo mode has none, so it stays at 0.",
		}),
	)
	return m
}

// verdict observes what became of a message that the broker has looked at.
func (m *meters) verdict(err error, took time.Duration) {
	result := resultConfirmed
	switch {
	case errors.Is(err, app.ErrNotAcknowledged):
		result = resultNacked
	case errors.Is(err, app.ErrUnroutable):
		result = resultReturned
	case err != nil:
		return // it was not handed over
	}
	m.confirms.WithLabelValues(result).Observe(took.Seconds())
}
