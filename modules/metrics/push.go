package metrics

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

const (
	// pushInterval is the time between two pushes.
	pushInterval = 10 * time.Second
	// pushTimeout bounds one push, so that it is over before the next one is due.
	pushTimeout = 5 * time.Second
	// pushFaultInterval is how often the log says that the collector takes nothing.
	pushFaultInterval = time.Minute
)

// PushConfig says where the metrics are pushed to.
type PushConfig struct {
	// CollectorURL is an OTLP/gRPC endpoint: http://host:port in plain text, or
	// https://host:port over TLS with the roots of the system. Empty: nothing is pushed.
	CollectorURL string
	// ServiceName is the resource attribute service.name.
	ServiceName string
	// InstanceID is the resource attribute service.instance.id: without it a collector
	// would take the counters of several instances for one.
	InstanceID string
	// StopTimeout bounds Stop, and with it the last push.
	StopTimeout time.Duration
}

// Push pushes what the registry gathers to an OpenTelemetry collector over OTLP/gRPC,
// every ten seconds and once when it stops. Names, labels and values are those that
// /metrics shows. Start and Stop are called once each.
//
// A push that fails is not tried again: the metrics are cumulative, so the next one
// makes up for it. A collector that is away costs one log line a minute.
//
// The exporter also heeds OpenTelemetry's own OTEL_EXPORTER_OTLP_* variables for what
// CollectorURL leaves open: headers, compression and certificates.
type Push struct {
	cfg      PushConfig
	gatherer prometheus.Gatherer
	log      *zap.Logger
	interval time.Duration
	faults   rate.Sometimes        // of gathering, and of the libraries
	provider *metric.MeterProvider // set by Start
}

// NewPush returns a Push for what the gatherer gathers. It does nothing until Start.
func NewPush(cfg PushConfig, gatherer prometheus.Gatherer, log *zap.Logger) *Push {
	return &Push{
		cfg:      cfg,
		gatherer: gatherer,
		log:      log,
		interval: pushInterval,
		faults:   rate.Sometimes{Interval: pushFaultInterval},
	}
}

// Start begins to push, first after an interval. It neither connects nor waits for the
// collector.
func (p *Push) Start(ctx context.Context) error {
	exporter, err := otlpmetricgrpc.New(ctx,
		otlpmetricgrpc.WithEndpointURL(p.cfg.CollectorURL),
		otlpmetricgrpc.WithTimeout(pushTimeout),
		otlpmetricgrpc.WithRetry(otlpmetricgrpc.RetryConfig{Enabled: false}),
	)
	if err != nil {
		return fmt.Errorf("make the exporter of metrics: %w", err)
	}
	// What the OpenTelemetry libraries tell nobody else; they would write it to stderr as
	// plain text.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		if errors.Is(err, context.Canceled) {
			return // the reader was stopped while it collected
		}
		p.faults.Do(func() { p.log.Warn("OpenTelemetry reports a fault", zap.Error(err)) })
	}))
	p.provider = metric.NewMeterProvider(
		metric.WithResource(resource.NewWithAttributes(semconv.SchemaURL,
			semconv.ServiceName(p.cfg.ServiceName), semconv.ServiceInstanceID(p.cfg.InstanceID))),
		metric.WithReader(metric.NewPeriodicReader(
			&patientExporter{Exporter: exporter, log: p.log, faults: rate.Sometimes{Interval: pushFaultInterval}},
			metric.WithInterval(p.interval),
			metric.WithTimeout(pushTimeout),
			metric.WithProducer(bridge.NewMetricProducer(bridge.WithGatherer(prometheus.GathererFunc(p.gather)))),
		)),
	)
	return nil
}

// Stop pushes once more and disconnects, until ctx or StopTimeout ends. That the
// collector does not take the last push is logged and is no error.
func (p *Push) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.StopTimeout)
	defer cancel()
	if err := p.provider.Shutdown(ctx); err != nil {
		p.log.Warn("the push of metrics was cut short", zap.Error(err))
	}
	return nil
}

// gather returns what can be gathered, as /metrics shows it: the bridge would drop it all
// for one metric that can't be.
func (p *Push) gather() ([]*dto.MetricFamily, error) {
	families, err := p.gatherer.Gather()
	if err != nil {
		p.faults.Do(func() { p.log.Error("gather metrics to push", zap.Error(err)) })
	}
	return families, nil
}

// patientExporter logs what goes wrong, now and then, and keeps it from the reader.
type patientExporter struct {
	metric.Exporter
	log      *zap.Logger
	faults   rate.Sometimes
	failures int  // in a row; exports come one after the other
	told     bool // the log has it that pushes fail
}

// Export implements metric.Exporter.
func (e *patientExporter) Export(ctx context.Context, metrics *metricdata.ResourceMetrics) error {
	err := e.Exporter.Export(ctx, metrics)
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil // Stop cuts the push that is under way, and pushes anew
	}
	if err == nil {
		if e.told {
			e.log.Info("the collector takes metrics again", zap.Int("failures", e.failures))
		}
		e.failures, e.told = 0, false
		return nil
	}
	e.failures++
	e.faults.Do(func() {
		e.told = true
		e.log.Warn("metrics could not be pushed to the collector", zap.Error(err), zap.Int("failures", e.failures))
	})
	return nil
}
