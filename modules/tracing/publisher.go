package tracing

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// publisher is an app.Publisher with a span for each message.
type publisher struct {
	app.Publisher
	tracer     trace.Tracer
	spanName   string
	attributes []attribute.KeyValue
}

// Publisher returns next with a span of kind producer around each message, "publish"
// and the exchange's name, from Publish to the verdict. It is a child of the span in the
// context of Publish, where there is one, and next finds it there.
func (t *Tracer) Publisher(next app.Publisher) app.Publisher {
	return &publisher{
		Publisher: next,
		tracer:    t.tracer,
		spanName:  "publish " + t.cfg.DatabaseExchange,
		attributes: []attribute.KeyValue{
			semconv.MessagingSystemRabbitMQ,
			semconv.MessagingOperationName("publish"),
			semconv.MessagingOperationTypeSend,
			semconv.MessagingDestinationName(t.cfg.DatabaseExchange),
		},
	}
}

// Publish implements app.Publisher.
func (p *publisher) Publish(ctx context.Context, message domain.Message, deadline time.Time, settled func(error)) {
	ctx, span := p.tracer.Start(ctx, p.spanName, trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(p.attributes...))
	if span.IsRecording() {
		span.SetAttributes(semconv.MessagingMessageID(message.ClientMessageID().String()))
	}
	p.Publisher.Publish(ctx, message, deadline, func(err error) {
		if err != nil {
			fail(span, err)
		}
		span.End() // does not block: a full queue drops the span
		settled(err)
	})
}

// faults are the errors that spans tell apart. Only these fixed texts get into a span,
// since a wrapped cause may quote anything.
var faults = []struct {
	err   error
	label string
}{
	{app.ErrBrokerUnavailable, "broker_unavailable"},
	{app.ErrBrokerBlocked, "broker_blocked"},
	{app.ErrBrokerBusy, "broker_busy"},
	{app.ErrUnroutable, "unroutable"},
	{app.ErrNotAcknowledged, "not_acknowledged"},
	{app.ErrConfirmTimeout, "confirm_timeout"},
}

// fail marks the span as failed.
func fail(span trace.Span, err error) {
	for _, fault := range faults {
		if errors.Is(err, fault.err) {
			span.SetStatus(codes.Error, fault.err.Error())
			span.SetAttributes(semconv.ErrorTypeKey.String(fault.label))
			return
		}
	}
	span.SetStatus(codes.Error, "")
	span.SetAttributes(semconv.ErrorTypeOther)
}
