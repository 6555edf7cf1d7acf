package tracing

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/tracing/otlptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const body = "the body of a message"

var testConfig = Config{
	Enabled:            true,
	ServiceName:        "gateway",
	InstanceID:         "host:1",
	DatabaseExchange:   "database",
	WebsocketsExchange: "websockets",
	StopTimeout:        5 * time.Second,
}

// recorded returns a tracer whose spans go to the recorder.
func recorded() (*Tracer, *tracetest.SpanRecorder) {
	t, recorder := New(testConfig, zap.NewNop()), tracetest.NewSpanRecorder()
	t.provider.RegisterSpanProcessor(recorder)
	return t, recorder
}

// describe writes a span as one line: kind, name, status, attributes.
func describe(span sdktrace.ReadOnlySpan) string {
	line := span.SpanKind().String() + " " + span.Name() + " " + span.Status().Code.String()
	if span.Status().Description != "" {
		line += " (" + span.Status().Description + ")"
	}
	var attributes []string
	for _, attribute := range span.Attributes() {
		attributes = append(attributes, string(attribute.Key)+"="+attribute.Value.String())
	}
	slices.Sort(attributes)
	return line + ": " + strings.Join(attributes, " ")
}

// message returns a message of user 1 to user 2.
func message(tb testing.TB) domain.Message {
	tb.Helper()
	id, idFault := domain.NewClientMessageID("m1")
	chat, chatFault := domain.NewChatID("general")
	one, err := domain.NewUserID(1)
	two, otherErr := domain.NewUserID(2)
	if idFault != nil || chatFault != nil || err != nil || otherErr != nil {
		tb.Fatal("a part of the message is not valid")
	}
	return domain.NewMessage(one, id, chat, two, body, time.Now())
}

// broker is a Publisher and Inboxes that keeps what it is given.
type broker struct {
	ctx     context.Context
	settled func(error)
	receive func(app.Delivery)
	away    error
}

func (b *broker) Publish(ctx context.Context, _ domain.Message, _ time.Time, settled func(error)) {
	b.ctx, b.settled = ctx, settled
}

func (b *broker) Available() error            { return b.away }
func (b *broker) Check(context.Context) error { return b.away }

func (b *broker) Open(_ context.Context, _ domain.UserID, receive func(app.Delivery)) (app.Inbox, error) {
	b.receive = receive
	return inbox{}, b.away
}

type inbox struct{}

func (inbox) Close(context.Context) error { return nil }

// acks counts settlements.
type acks struct{ acked, rejected []uint64 }

func (a *acks) Ack(tag uint64)    { a.acked = append(a.acked, tag) }
func (a *acks) Reject(tag uint64) { a.rejected = append(a.rejected, tag) }

const publishAttributes = "messaging.destination.name=database messaging.message.id=m1 messaging.operation.name=publish messaging.operation.type=send messaging.system=rabbitmq"

func TestPublisher(t *testing.T) {
	secret := "amqp://user:password@host"
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, "producer publish database Unset: " + publishAttributes},
		{fmt.Errorf("%w: %s", app.ErrBrokerUnavailable, secret), "producer publish database Error (the message broker is unavailable): error.type=broker_unavailable " + publishAttributes},
		{app.ErrBrokerBlocked, "producer publish database Error (the message broker takes no messages at the moment): error.type=broker_blocked " + publishAttributes},
		{app.ErrBrokerBusy, "producer publish database Error (too many messages wait for the message broker): error.type=broker_busy " + publishAttributes},
		{app.ErrUnroutable, "producer publish database Error (no queue takes the message): error.type=unroutable " + publishAttributes},
		{app.ErrNotAcknowledged, "producer publish database Error (the message broker refused the message): error.type=not_acknowledged " + publishAttributes},
		{app.ErrConfirmTimeout, "producer publish database Error (the message broker did not confirm the message in time): error.type=confirm_timeout " + publishAttributes},
		{errors.New(secret), "producer publish database Error: error.type=_OTHER " + publishAttributes},
	} {
		tracer, recorder := recorded()
		next := &broker{}
		var got []error
		tracer.Publisher(next).Publish(t.Context(), message(t), time.Now(), func(err error) { got = append(got, err) })
		inner := trace.SpanContextFromContext(next.ctx)
		if !inner.IsSampled() || len(recorder.Ended()) != 0 {
			t.Errorf("%v: the publisher's context has %v, %d spans have ended before the verdict", c.err, inner, len(recorder.Ended()))
		}
		next.settled(c.err)
		if len(got) != 1 || got[0] != c.err {
			t.Errorf("settled with %v, want %v", got, c.err)
		}
		if spans := recorder.Ended(); len(spans) != 1 || describe(spans[0]) != c.want || spans[0].SpanContext().SpanID() != inner.SpanID() {
			t.Errorf("%v: spans %v, want %s", c.err, describe(spans[0]), c.want)
		}
	}
}

func TestInboxes(t *testing.T) {
	user, err := domain.NewUserID(2)
	if err != nil {
		t.Fatal(err)
	}
	const attributes = "messaging.destination.name=websockets messaging.message.body.size=21 messaging.operation.name=deliver messaging.operation.type=process messaging.system=rabbitmq"
	remote := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, Remote: true})
	for _, c := range []struct {
		name   string
		ctx    context.Context
		settle func(app.Delivery)
		want   string
	}{
		{"acked, no trace", nil, app.Delivery.Ack, "consumer deliver Unset: " + attributes},
		{"acked, twice", nil, func(d app.Delivery) { d.Ack(); d.Ack() }, "consumer deliver Unset: " + attributes},
		{"rejected, with a trace", trace.ContextWithRemoteSpanContext(t.Context(), remote), app.Delivery.Reject,
			"consumer deliver Error (rejected): error.type=rejected " + attributes},
	} {
		t.Run(c.name, func(t *testing.T) {
			tracer, recorder := recorded()
			next, settled := &broker{}, &acks{}
			var got app.Delivery
			if _, err := tracer.Inboxes(next).Open(t.Context(), user, func(d app.Delivery) { got = d }); err != nil {
				t.Fatal(err)
			}
			next.receive(app.Delivery{Body: []byte(body), Type: "kind", Context: c.ctx, Tag: 7, Acks: settled})
			if string(got.Body) != body || got.Type != "kind" || got.Tag != 7 || len(recorder.Ended()) != 0 {
				t.Fatalf("received %+v, %d spans have ended", got, len(recorder.Ended()))
			}
			inner := trace.SpanContextFromContext(got.Context)
			c.settle(got)
			spans := recorder.Ended()
			if len(spans) != 1 || describe(spans[0]) != c.want || spans[0].SpanContext().SpanID() != inner.SpanID() {
				t.Fatalf("%d spans, want one: %s", len(spans), c.want)
			}
			if c.ctx != nil && (spans[0].Parent().SpanID() != remote.SpanID() || inner.TraceID() != remote.TraceID()) {
				t.Errorf("the parent is %v", spans[0].Parent())
			}
			if c.ctx == nil && spans[0].Parent().IsValid() {
				t.Errorf("the parent is %v, want none", spans[0].Parent())
			}
			if len(settled.acked)+len(settled.rejected) == 0 || len(settled.acked) > 0 && settled.acked[0] != 7 || len(settled.rejected) > 0 && settled.rejected[0] != 7 {
				t.Errorf("acked %v, rejected %v", settled.acked, settled.rejected)
			}
		})
	}
}

// What the ports say besides is passed on as it is.
func TestTheRestOfThePortsIsPassedOn(t *testing.T) {
	tracer, recorder := recorded()
	next := &broker{away: app.ErrBrokerBlocked}
	publisher, inboxes := tracer.Publisher(next), tracer.Inboxes(next)
	for _, err := range []error{publisher.Available(), publisher.Check(t.Context()), inboxes.Available(), inboxes.Check(t.Context())} {
		if err != app.ErrBrokerBlocked {
			t.Errorf("got %v", err)
		}
	}
	if _, err := inboxes.Open(t.Context(), domain.UserID{}, nil); err != app.ErrBrokerBlocked {
		t.Errorf("Open: %v", err)
	}
	if n := len(recorder.Started()); n != 0 {
		t.Errorf("%d spans were started", n)
	}
}

func TestMiddleware(t *testing.T) {
	const (
		secret = "s3cr3ts3cr3ts3cr3ts3cr3t"
		trace1 = "4bf92f3577b34da6a3ce929d0e0e4736"
	)
	tracer, recorder := recorded()
	router := chi.NewRouter()
	router.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if recover() != nil {
					w.WriteHeader(http.StatusInternalServerError)
				}
			}()
			next.ServeHTTP(w, r)
		})
	})
	status := func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Want") {
		case "panic":
			panic(secret)
		case "503":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "401":
			w.WriteHeader(http.StatusUnauthorized)
		}
		if sampled := trace.SpanFromContext(r.Context()).IsRecording(); sampled != (r.URL.Path != "/docs") {
			t.Errorf("%s: the handler has a span: %t", r.URL.Path, sampled)
		}
	}
	behind := router.With(tracer.Middleware)
	behind.Post("/messages/get-connection-pass", status)
	behind.Get("/messages/", status)
	behind.Get("/docs", status)

	const connect = "http.request.method=GET http.response.status_code=%d http.route=/messages url.path=/messages/ url.scheme=http"
	for _, c := range []struct {
		method, path, want string
		span               string
	}{
		{"POST", "/messages/get-connection-pass", "", "server POST /messages/get-connection-pass Unset: http.request.method=POST http.response.status_code=200 http.route=/messages/get-connection-pass url.path=/messages/get-connection-pass url.scheme=http"},
		{"GET", "/messages/", "401", "server GET /messages Unset: " + fmt.Sprintf(connect, 401)},
		{"GET", "/messages/", "503", "server GET /messages Error: error.type=503 " + fmt.Sprintf(connect, 503)},
		{"GET", "/messages/", "panic", "server GET /messages Error: error.type=500 " + fmt.Sprintf(connect, 500)},
		{"GET", "/docs", "", ""},
		{"GET", "/nowhere", "", ""},
		{"DELETE", "/messages/", "", ""},
	} {
		recorder.Reset()
		request := httptest.NewRequest(c.method, c.path+"?connection_pass="+secret, strings.NewReader(secret))
		request.Header.Set("Authorization", "Bearer "+secret)
		request.Header.Set("Want", c.want)
		request.Header.Set("Traceparent", "00-"+trace1+"-00f067aa0ba902b7-01")
		router.ServeHTTP(httptest.NewRecorder(), request)
		var got string
		for _, span := range recorder.Ended() {
			got += describe(span)
			if span.SpanContext().TraceID().String() != trace1 || span.Parent().SpanID().String() != "00f067aa0ba902b7" {
				t.Errorf("%s: the span does not continue the client's trace", c.path)
			}
			if strings.Contains(fmt.Sprint(span.Attributes(), span.Events(), span.Status()), secret) {
				t.Errorf("%s: a secret is in the span", c.path)
			}
		}
		if got != c.span {
			t.Errorf("%s %s: span %q, want %q", c.method, c.path, got, c.span)
		}
	}
}

// A client that has decided not to be sampled is not.
func TestClientsDecideOnSampling(t *testing.T) {
	tracer, recorder := recorded()
	router := chi.NewRouter()
	router.With(tracer.Middleware).Get("/messages", func(_ http.ResponseWriter, r *http.Request) {
		tracer.Publisher(&broker{}).Publish(r.Context(), message(t), time.Now(), nil)
	})
	request := httptest.NewRequest(http.MethodGet, "/messages", nil)
	request.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")
	router.ServeHTTP(httptest.NewRecorder(), request)
	if n := len(recorder.Started()); n != 0 {
		t.Errorf("%d spans were recorded", n)
	}
}

func start(t *testing.T, url string) (*Tracer, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	cfg := testConfig
	cfg.CollectorURL = url
	tracer := New(cfg, zap.New(core))
	if err := tracer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return tracer, logs
}

func publish(t *testing.T, tracer *Tracer, times int) {
	t.Helper()
	next := &broker{}
	publisher, settled := tracer.Publisher(next), 0
	for range times {
		publisher.Publish(t.Context(), message(t), time.Now(), func(error) { settled++ })
		next.settled(nil)
	}
	if settled != times {
		t.Errorf("%d of %d messages were settled", settled, times)
	}
}

// Stop has everything exported.
func TestExport(t *testing.T) {
	collector := otlptest.Start(t)
	tracer, logs := start(t, collector.URL())
	publish(t, tracer, 2000)
	if err := tracer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	spans := collector.Spans()
	if len(spans) != 2000 || logs.Len() != 0 {
		t.Errorf("%d spans came, want 2000; logged %v", len(spans), logs.All())
	}
	resource := fmt.Sprint(collector.Batches()[0].GetResource().GetAttributes())
	if !strings.Contains(resource, "gateway") || !strings.Contains(resource, "host:1") {
		t.Errorf("the resource is %s", resource)
	}
	for _, span := range spans {
		if strings.Contains(span.String(), body) {
			t.Fatal("the body of the message is in a span")
		}
	}
}

// A collector that is away costs spans and one line in the log: nobody waits for it, and
// the end comes in time and is no error.
func TestExportWithoutCollector(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }() // nobody accepts: the system does
	for name, address := range map[string]string{"refuses": "127.0.0.1:1", "black hole": listener.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			tracer, logs := start(t, "http://"+address)
			tracer.cfg.StopTimeout = 100 * time.Millisecond
			publish(t, tracer, 3*spanQueue) // more than the queue holds
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := tracer.Stop(ctx); err != nil {
				t.Errorf("Stop: %v", err)
			}
			if ctx.Err() != nil {
				t.Error("Stop did not keep to its own timeout")
			}
			if n := logs.FilterMessageSnippet("spans are lost").Len(); n != 1 {
				t.Errorf("the loss was logged %d times: %v", n, logs.All())
			}
		})
	}
}

func TestModule(t *testing.T) {
	for _, enabled := range []bool{false, true} {
		t.Run(fmt.Sprint("enabled ", enabled), func(t *testing.T) {
			collector := otlptest.Start(t)
			cfg := testConfig
			cfg.Enabled, cfg.CollectorURL = enabled, collector.URL()
			next := &broker{}
			var got struct {
				fx.In
				Publisher   app.Publisher
				Inboxes     app.Inboxes
				Middlewares []func(http.Handler) http.Handler `group:"middlewares"`
			}
			decorators := fx.Options()
			if enabled {
				decorators = Decorators
			}
			running := fxtest.New(t, fx.NopLogger, Module, decorators, fx.Supply(zap.NewNop(), cfg),
				// In a module of their own, as they are in the program.
				fx.Module("broker", fx.Provide(func() (app.Publisher, app.Inboxes) { return next, next })),
				fx.Module("hub", fx.Invoke(func(p app.Publisher, x app.Inboxes) {
					if p == app.Publisher(next) == enabled || x == app.Inboxes(next) == enabled {
						t.Errorf("a module got %T and %T", p, x)
					}
				})),
				fx.Populate(&got))
			running.RequireStart()
			if got.Publisher == app.Publisher(next) == enabled || len(got.Middlewares) == 1 != enabled {
				t.Errorf("the application got %T and %d middlewares", got.Publisher, len(got.Middlewares))
			}
			got.Publisher.Publish(t.Context(), message(t), time.Now(), func(error) {})
			next.settled(nil)
			running.RequireStop()
			if n := len(collector.Spans()); n == 1 != enabled {
				t.Errorf("%d spans came", n)
			}
		})
	}
}

// settling is a publisher that does nothing but settle.
type settling struct{ broker }

func (s *settling) Publish(_ context.Context, _ domain.Message, _ time.Time, settled func(error)) {
	settled(nil)
}

// BenchmarkPublish shows what a message pays for its span. Off, which is how the program
// is assembled without OPENTELEMETRY_TRACES, the publisher itself is called.
func BenchmarkPublish(b *testing.B) {
	tracer := New(testConfig, zap.NewNop())
	tracer.provider.RegisterSpanProcessor(sdktrace.NewBatchSpanProcessor(nowhere{}, sdktrace.WithMaxQueueSize(spanQueue)))
	b.Cleanup(func() { _ = tracer.provider.Shutdown(context.Background()) })
	for name, publisher := range map[string]app.Publisher{"off": &settling{}, "on": tracer.Publisher(&settling{})} {
		b.Run(name, func(b *testing.B) {
			m, deadline := message(b), time.Now()
			settled := func(error) {}
			b.ReportAllocs()
			for b.Loop() {
				publisher.Publish(context.Background(), m, deadline, settled)
			}
		})
	}
}

// nowhere is an exporter that takes everything.
type nowhere struct{}

func (nowhere) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (nowhere) Shutdown(context.Context) error                             { return nil }
