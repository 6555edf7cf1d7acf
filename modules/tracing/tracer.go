// Package tracing makes spans of what goes through the gateway: the request for a pass,
// the connect, each message of a client up to its confirm, and each delivery. It puts
// itself around the ports of app and the HTTP routes as a decorator, so that without
// traces there is nothing in the way. Attributes follow OpenTelemetry's semantic
// conventions for HTTP and messaging (RabbitMQ); none holds a pass, a token, a query or
// the body of a message.
package tracing

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

const (
	// scopeName is the instrumentation scope of all spans.
	scopeName = "github.com/aleksandrshaulskyi/chat-transportation"
	// spanQueue is how many ended spans wait to be exported; further ones are dropped.
	spanQueue = 8192
	// exportTimeout bounds the export of one batch.
	exportTimeout = 5 * time.Second
	// faultInterval is how often the log says that the collector takes nothing.
	faultInterval = time.Minute
)

// Config says whether spans are made and where they go.
type Config struct {
	// Enabled: without it there are no spans, and the rest is of no interest.
	Enabled bool
	// CollectorURL is an OTLP/gRPC endpoint: http://host:port in plain text, or
	// https://host:port over TLS with the roots of the system.
	CollectorURL string
	// ServiceName and InstanceID are the resource attributes service.name and
	// service.instance.id.
	ServiceName, InstanceID string
	// DatabaseExchange and WebsocketsExchange are the destinations that the spans of
	// messages and of deliveries name.
	DatabaseExchange, WebsocketsExchange string
	// StopTimeout bounds Stop, and with it the last export.
	StopTimeout time.Duration
}

// Tracer makes spans and exports them in batches over OTLP/gRPC. Its decorators are
// safe for concurrent use and never wait for the collector: what it does not take in
// time is dropped, and logged once a minute. Start and Stop are called once each.
//
// All traces are sampled that a caller has not decided otherwise; the sampler, headers,
// compression and certificates can be set by OpenTelemetry's own variables
// (OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_*).
type Tracer struct {
	cfg        Config
	log        *zap.Logger
	provider   *sdktrace.TracerProvider
	tracer     trace.Tracer
	propagator propagation.TraceContext
	cut        context.CancelFunc // ends the export that is under way; set by Start
}

// New returns a tracer whose spans go nowhere until Start.
func New(cfg Config, log *zap.Logger) *Tracer {
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithResource(resource.NewWithAttributes(semconv.SchemaURL,
			semconv.ServiceName(cfg.ServiceName), semconv.ServiceInstanceID(cfg.InstanceID))),
		// The text of a panic could hold anything.
		sdktrace.WithoutPanicRecording(),
	)
	return &Tracer{
		cfg:      cfg,
		log:      log,
		provider: provider,
		tracer:   provider.Tracer(scopeName, trace.WithSchemaURL(semconv.SchemaURL)),
	}
}

// Start begins to export spans. It neither connects nor waits for the collector.
func (t *Tracer) Start(ctx context.Context) error {
	exporter, err := otlptracegrpc.New(ctx,
		otlptracegrpc.WithEndpointURL(t.cfg.CollectorURL),
		otlptracegrpc.WithTimeout(exportTimeout),
		// While a batch is tried again the queue behind it fills, and a shutdown would
		// wait for it.
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: false}),
	)
	if err != nil {
		return fmt.Errorf("make the exporter of spans: %w", err)
	}
	over, cut := context.WithCancel(context.Background())
	t.cut = cut
	t.provider.RegisterSpanProcessor(sdktrace.NewBatchSpanProcessor(
		&patientExporter{Exporter: exporter, over: over, log: t.log, faults: rate.Sometimes{Interval: faultInterval}},
		sdktrace.WithMaxQueueSize(spanQueue),
		sdktrace.WithExportTimeout(exportTimeout),
	))
	return nil
}

// Stop exports the spans that have ended and disconnects, until ctx or StopTimeout
// ends. That the collector does not take them is logged and is no error.
func (t *Tracer) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.StopTimeout)
	defer cancel()
	// The processor's own goroutine exports what is left, whatever ctx says. It is cut
	// short a little earlier, so that it has ended when Stop returns.
	flush, cancelFlush := context.WithTimeout(ctx, t.cfg.StopTimeout*3/4)
	defer cancelFlush()
	defer context.AfterFunc(flush, t.cut)()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.Warn("the export of spans was cut short", zap.Error(err))
	}
	t.cut()
	return nil
}

// patientExporter logs what goes wrong, now and then, and keeps it from the processor.
type patientExporter struct {
	*otlptrace.Exporter
	over     context.Context // ends when there is no more time
	log      *zap.Logger
	faults   rate.Sometimes
	failures int  // in a row; batches come one after the other
	told     bool // the log has it that exports fail
}

// ExportSpans implements sdktrace.SpanExporter.
func (e *patientExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.export(ctx, spans)
	if err == nil {
		if e.told {
			e.log.Info("the collector takes spans again", zap.Int("failures", e.failures))
		}
		e.failures, e.told = 0, false
		return nil
	}
	e.failures++
	e.faults.Do(func() {
		e.told = true
		e.log.Warn("spans are lost: they could not be sent to the collector",
			zap.Error(err), zap.Int("spans", len(spans)), zap.Int("failures", e.failures))
	})
	return nil
}

// export is bounded by over. Once that has ended the exporter is not asked: it would
// encode a whole batch before it looked at its context, and a full queue holds many.
func (e *patientExporter) export(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := e.over.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.over, cancel)()
	return e.Exporter.ExportSpans(ctx, spans)
}
