package rabbit

import (
	"context"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/trace"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/app/apptest"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

const wellFormed = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

// traced returns a context with the trace that wellFormed names, and some trace state.
func traced(t *testing.T, state string) context.Context {
	t.Helper()
	traceID, err := trace.TraceIDFromHex("4bf92f3577b34da6a3ce929d0e0e4736")
	if err != nil {
		t.Fatal(err)
	}
	spanID, err := trace.SpanIDFromHex("00f067aa0ba902b7")
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := trace.ParseTraceState(state)
	if err != nil {
		t.Fatal(err)
	}
	return trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: traceID, SpanID: spanID, TraceFlags: trace.FlagsSampled, TraceState: parsed,
	}))
}

func TestTraceHeaders(t *testing.T) {
	if table := traceHeaders(t.Context()); table != nil {
		t.Errorf("without a trace there are headers: %v", table)
	}
	if table := traceHeaders(traced(t, "")); len(table) != 1 || table["traceparent"] != wellFormed {
		t.Errorf("the headers are %v", table)
	}
	if table := traceHeaders(traced(t, "vendor=1")); len(table) != 2 || table["tracestate"] != "vendor=1" {
		t.Errorf("with trace state the headers are %v", table)
	}
}

func TestTraceContext(t *testing.T) {
	for _, c := range []struct {
		name  string
		table amqp.Table
		valid bool
	}{
		{"no headers", nil, false},
		{"other headers", amqp.Table{"x": "y", "tracestate": "vendor=1"}, false},
		{"text", amqp.Table{"traceparent": wellFormed, "tracestate": "vendor=1"}, true},
		{"bytes", amqp.Table{"traceparent": []byte(wellFormed)}, true},
		{"broken state", amqp.Table{"traceparent": wellFormed, "tracestate": "==="}, true},
		{"another type", amqp.Table{"traceparent": int32(1)}, false},
		{"a table", amqp.Table{"traceparent": amqp.Table{}}, false},
		{"empty", amqp.Table{"traceparent": ""}, false},
		{"all zero", amqp.Table{"traceparent": "00-00000000000000000000000000000000-0000000000000000-01"}, false},
		{"cut", amqp.Table{"traceparent": wellFormed[:40]}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := traceContext(c.table)
			if (ctx != nil) != c.valid {
				t.Fatalf("the context is %v", ctx)
			}
			if !c.valid {
				return
			}
			got := trace.SpanContextFromContext(ctx)
			if !got.IsRemote() || !got.IsSampled() || got.TraceID().String() != "4bf92f3577b34da6a3ce929d0e0e4736" || got.SpanID().String() != "00f067aa0ba902b7" {
				t.Errorf("the trace is %v", got)
			}
		})
	}
}

// FuzzTraceContext: whatever a backend sends, there is a valid remote trace or none, and
// passing it on gives the same one.
func FuzzTraceContext(f *testing.F) {
	f.Add(wellFormed, "vendor=1,other=2")
	f.Add("00-00000000000000000000000000000000-0000000000000000-00", "")
	f.Add("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", "=")
	f.Add("", "\x00")
	f.Fuzz(func(t *testing.T, parent, state string) {
		ctx := traceContext(amqp.Table{"traceparent": parent, "tracestate": state})
		if ctx == nil {
			return
		}
		got := trace.SpanContextFromContext(ctx)
		if !got.IsValid() || !got.IsRemote() {
			t.Fatalf("the trace is %v", got)
		}
		if again := traceContext(traceHeaders(ctx)); again == nil || !trace.SpanContextFromContext(again).Equal(got) {
			t.Errorf("passed on, %v is another trace", got)
		}
	})
}

// TestTraceOverTheBroker: the trace of a published message is in its headers, and the
// headers of a delivery give its context, in both scopes.
func TestTraceOverTheBroker(t *testing.T) {
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		t.Run(string(scope), func(t *testing.T) {
			config := testConfig(rabbittest.URL(t), scope)
			p, x := startPublisher(t, config), startInboxes(t, config)
			eventually(t, "both are connected", func() bool { return p.Available() == nil && x.Available() == nil })
			backend := dialPeer(t, config.URLs[0])
			queue := bindDatabase(t, backend.conn, config.DatabaseExchange)
			for _, ctx := range []context.Context{traced(t, "vendor=1"), context.Background()} {
				settled := make(chan error, 1)
				p.Publish(ctx, apptest.NewMessage(t, 1, "id", 2, "x"), time.Now().Add(10*time.Second), func(err error) { settled <- err })
				if err := <-settled; err != nil {
					t.Fatal(err)
				}
			}
			var stored []amqp.Delivery
			eventually(t, "the messages are stored", func() bool {
				queue.mu.Lock()
				defer queue.mu.Unlock()
				stored = queue.all
				return len(stored) == 2
			})
			if headers := stored[0].Headers; len(headers) != 2 || headers["traceparent"] != wellFormed || headers["tracestate"] != "vendor=1" {
				t.Errorf("the headers are %v", headers)
			}
			if len(stored[1].Headers) != 0 {
				t.Errorf("without a trace there are headers: %v", stored[1].Headers)
			}

			received := make(chan app.Delivery, 2)
			inbox := openInbox(t, x, 2, func(d app.Delivery) { d.Ack(); received <- d })
			defer func() { _ = inbox.Close(t.Context()) }()
			for _, headers := range []amqp.Table{stored[0].Headers, {"x": "y"}} {
				if err := backend.channel.PublishWithContext(t.Context(), config.WebsocketsExchange, "2", false, false, amqp.Publishing{Headers: headers, Body: []byte("{}")}); err != nil {
					t.Fatal(err)
				}
			}
			got := trace.SpanContextFromContext((<-received).Context)
			if !got.IsRemote() || got.TraceID().String() != "4bf92f3577b34da6a3ce929d0e0e4736" || got.TraceState().String() != "vendor=1" {
				t.Errorf("the delivery's trace is %v", got)
			}
			if d := <-received; d.Context != nil {
				t.Errorf("without a trace the context is %v", d.Context)
			}
		})
	}
}
