package tracing

import (
	"context"
	"sync/atomic"

	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// inboxes is an app.Inboxes with a span for each delivery.
type inboxes struct {
	app.Inboxes
	tracer  trace.Tracer
	options []trace.SpanStartOption
}

// Inboxes returns next with a span of kind consumer around each delivery, "deliver",
// from its being received to its being settled. It continues the trace that the
// delivery came with, and begins one where there is none.
func (t *Tracer) Inboxes(next app.Inboxes) app.Inboxes {
	return &inboxes{
		Inboxes: next,
		tracer:  t.tracer,
		options: []trace.SpanStartOption{
			trace.WithSpanKind(trace.SpanKindConsumer),
			trace.WithAttributes(
				semconv.MessagingSystemRabbitMQ,
				semconv.MessagingOperationName("deliver"),
				semconv.MessagingOperationTypeProcess,
				semconv.MessagingDestinationName(t.cfg.WebsocketsExchange),
			),
		},
	}
}

// Open implements app.Inboxes.
func (x *inboxes) Open(ctx context.Context, user domain.UserID, receive func(app.Delivery)) (app.Inbox, error) {
	return x.Inboxes.Open(ctx, user, func(d app.Delivery) {
		parent := d.Context
		if parent == nil {
			parent = context.Background()
		}
		traced, span := x.tracer.Start(parent, "deliver", x.options...)
		if span.IsRecording() {
			span.SetAttributes(semconv.MessagingMessageBodySize(len(d.Body)))
		}
		d.Context = traced
		d.Acks = &settlement{acks: d.Acks, span: span}
		receive(d)
	})
}

// settlement is the app.Acknowledger of one delivery: it ends the delivery's span.
type settlement struct {
	acks    app.Acknowledger
	span    trace.Span
	settled atomic.Bool
}

// Ack implements app.Acknowledger.
func (s *settlement) Ack(tag uint64) {
	if !s.settled.Swap(true) {
		s.span.End()
	}
	s.acks.Ack(tag)
}

// Reject implements app.Acknowledger.
func (s *settlement) Reject(tag uint64) {
	if !s.settled.Swap(true) {
		s.span.SetStatus(codes.Error, "rejected")
		s.span.SetAttributes(semconv.ErrorTypeKey.String("rejected"))
		s.span.End()
	}
	s.acks.Reject(tag)
}
