package rabbit

import (
	"context"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// traceParent is the header that every trace context has; tracestate may go with it (W3C
// Trace Context, sections 3.2 and 3.3; in AMQP under the same names, W3C Trace Context:
// AMQP protocol).
const traceParent = "traceparent"

// traceHeaders returns the headers by which a consumer can continue the trace in ctx;
// nil where there is none, so that nothing is added to the message.
func traceHeaders(ctx context.Context) amqp.Table {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return nil
	}
	table := make(amqp.Table, 2)
	propagation.TraceContext{}.Inject(ctx, traceCarrier(table))
	return table
}

// traceContext returns a context with the trace that the headers name; nil where they
// name none, or none that is well-formed.
func traceContext(table amqp.Table) context.Context {
	if _, ok := table[traceParent]; !ok {
		return nil
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), traceCarrier(table))
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return nil
	}
	return ctx
}

// traceCarrier is a propagation.TextMapCarrier over AMQP headers. Clients write texts
// as long strings or as byte arrays; other types count as absent.
type traceCarrier amqp.Table

// Get implements propagation.TextMapCarrier.
func (c traceCarrier) Get(key string) string {
	switch value := c[key].(type) {
	case string:
		return value
	case []byte:
		return string(value)
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (c traceCarrier) Set(key, value string) { c[key] = value }

// Keys implements propagation.TextMapCarrier.
func (c traceCarrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for key := range c {
		keys = append(keys, key)
	}
	return keys
}
