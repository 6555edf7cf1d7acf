package rabbit

import (
	"errors"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// linkMetrics are the metrics of the two connections. Publisher and Inboxes share
// them through the registry, since one gauge speaks of both.
type linkMetrics struct {
	publisherUp, consumerUp atomic.Bool

	connected  *prometheus.Desc
	reconnects prometheus.Counter
}

// newLinkMetrics registers the metrics, or returns those that the registry has.
func newLinkMetrics(registry prometheus.Registerer) *linkMetrics {
	m := &linkMetrics{
		connected: prometheus.NewDesc("rabbitmq_connected",
			"1 while both connections to RabbitMQ, the publisher's and the consumer's, are up, else 0.", nil, nil),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rabbitmq_reconnects_total",
			Help: "Connections to RabbitMQ that were made anew after one had been lost.",
		}),
	}
	if err := registry.Register(m); err != nil {
		var registered prometheus.AlreadyRegisteredError
		if !errors.As(err, &registered) {
			panic(err) // as prometheus.MustRegister does: two metrics of one name are a mistake in the program
		}
		if existing, ok := registered.ExistingCollector.(*linkMetrics); ok {
			return existing
		}
		panic(err)
	}
	return m
}

// Describe implements prometheus.Collector.
func (m *linkMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- m.connected
	m.reconnects.Describe(descs)
}

// Collect implements prometheus.Collector.
func (m *linkMetrics) Collect(metrics chan<- prometheus.Metric) {
	connected := 0.0
	if m.publisherUp.Load() && m.consumerUp.Load() {
		connected = 1
	}
	metrics <- prometheus.MustNewConstMetric(m.connected, prometheus.GaugeValue, connected)
	m.reconnects.Collect(metrics)
}
