package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/rabbitmq/amqp091-go"
	"github.com/sethvargo/go-envconfig"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/fx"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/config"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/demo"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/tracing/otlptest"
)

const (
	clientTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	clientSpan  = "00f067aa0ba902b7"
	secretBody  = "the words of a message that no collector may see"
)

// TestTelemetry follows a message through the service and a backend that passes the
// trace on, and compares what the collector got at last with what /metrics showed.
func TestTelemetry(t *testing.T) {
	node, collector := rabbittest.Start(t), otlptest.Start(t)
	p := serveWith(t, map[string]string{
		"RABBITMQ_URL": node.URL(), "KEY": blackBoxLog.secret(testKey), "SERVICE_NAME": "gateway-under-test",
		"OPENTELEMETRY_COLLECTOR_URL": collector.Address(), "OPENTELEMETRY_TRACES": "true",
	})
	backend := newPeer(t, node.URL())
	stored := backend.consume()

	traceparent := http.Header{"Traceparent": {"00-" + clientTrace + "-" + clientSpan + "-01"}}
	pass := func(user int64) (string, string) {
		token := tokenFor(t, user, time.Hour)
		request, err := http.NewRequest(http.MethodPost, p.url+"/transportation/messages/get-connection-pass", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header = traceparent.Clone()
		request.Header.Set("Authorization", "Bearer "+token)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		var answer struct {
			Pass string `json:"connection_pass"`
		}
		if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		return blackBoxLog.secret(answer.Pass), token
	}
	var secrets []string
	connect := func(user int64) *client {
		onePass, token := pass(user)
		secrets = append(secrets, onePass, token)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		conn, _, err := websocket.Dial(ctx, strings.Replace(p.url, "http", "ws", 1)+"/messages/?connection_pass="+onePass,
			&websocket.DialOptions{HTTPHeader: traceparent.Clone()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.CloseNow() })
		return &client{t: t, conn: conn}
	}
	alice, bob := connect(1), connect(2)
	alice.send("m1", "general", 2, secretBody)
	var message amqp091.Delivery
	select {
	case message = <-stored:
	case <-time.After(15 * time.Second):
		t.Fatal("the message was not published")
	}
	if keys := len(message.Headers); keys != 1 {
		t.Errorf("the message has the headers %v", message.Headers)
	}
	err := backend.channel.PublishWithContext(t.Context(), "websockets", "2", true, false,
		amqp091.Publishing{ContentType: "application/json", Headers: message.Headers, Body: []byte(`{"body":"` + secretBody + `"}`)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if _, frame, err := bob.conn.Read(ctx); err != nil || !strings.Contains(string(frame), secretBody) {
		t.Fatalf("bob got %q, %v", frame, err)
	}
	// A frame that is refused has no span; a delivery that is rejected has one, and by the
	// next one it has ended.
	alice.send("", "general", 2, "")
	if _, _, err := alice.conn.Read(ctx); err != nil {
		t.Fatal(err)
	}
	backend.publish(2, "", "not JSON")
	backend.publish(2, "", "{}")
	if _, frame, err := bob.conn.Read(ctx); err != nil || string(frame) != "{}" {
		t.Fatalf("bob got %q, %v", frame, err)
	}
	shown := exposed(t, p.url)
	p.signal(syscall.SIGTERM)
	if code := p.ended(20 * time.Second); code != 0 {
		t.Fatalf("exit code %d", code)
	}

	checkSpans(t, collector, message.Headers, secrets)
	checkPush(t, collector, shown)
	if strings.Contains(p.out.String(), "collector") {
		t.Errorf("the log complains of the collector:\n%s", p.out)
	}
}

// checkSpans holds the spans against the story that TestTelemetry tells.
func checkSpans(t *testing.T, collector *otlptest.Collector, headers amqp091.Table, secrets []string) {
	t.Helper()
	byName := make(map[string][]*tracepb.Span)
	for _, span := range collector.Spans() {
		byName[span.GetName()] = append(byName[span.GetName()], span)
		text := span.String()
		for _, secret := range append(secrets, secretBody, "connection_pass=") {
			if strings.Contains(text, secret) {
				t.Errorf("a secret is in a span: %s", text)
			}
		}
	}
	for name, want := range map[string]struct {
		count int
		kind  tracepb.Span_SpanKind
	}{
		"POST /messages/get-connection-pass": {2, tracepb.Span_SPAN_KIND_SERVER},
		"GET /messages":                      {2, tracepb.Span_SPAN_KIND_SERVER},
		"publish database":                   {1, tracepb.Span_SPAN_KIND_PRODUCER},
		"deliver":                            {3, tracepb.Span_SPAN_KIND_CONSUMER},
	} {
		if len(byName[name]) != want.count || byName[name][0].GetKind() != want.kind {
			t.Fatalf("%s: %d spans %v, want %d of kind %v", name, len(byName[name]), byName[name], want.count, want.kind)
		}
	}
	if len(byName) != 4 {
		t.Errorf("there are spans of %d names, want 4: %v", len(byName), byName)
	}
	for _, span := range slices.Concat(byName["POST /messages/get-connection-pass"], byName["GET /messages"]) {
		if hex.EncodeToString(span.GetTraceId()) != clientTrace || hex.EncodeToString(span.GetParentSpanId()) != clientSpan {
			t.Errorf("%s does not continue the client's trace", span.GetName())
		}
	}
	published, delivered := byName["publish database"][0], byName["deliver"]
	want := fmt.Sprintf("00-%x-%x-01", published.GetTraceId(), published.GetSpanId())
	if headers["traceparent"] != want {
		t.Errorf("the message has traceparent %v, want %s", headers["traceparent"], want)
	}
	follows := slices.IndexFunc(delivered, func(span *tracepb.Span) bool {
		return string(span.GetTraceId()) == string(published.GetTraceId()) && string(span.GetParentSpanId()) == string(published.GetSpanId())
	})
	if follows < 0 {
		t.Fatalf("no delivery follows the message: %v", delivered)
	}
	if got := delivered[follows].GetStatus().GetCode(); got != tracepb.Status_STATUS_CODE_UNSET {
		t.Errorf("the delivery's status is %v", got)
	}
	rejected := 0
	for _, span := range slices.Delete(delivered, follows, follows+1) {
		if len(span.GetParentSpanId()) != 0 {
			t.Errorf("a delivery without a trace has a parent: %v", span)
		}
		if span.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
			rejected++
		}
	}
	if rejected != 1 {
		t.Errorf("%d deliveries are marked as rejected, want 1", rejected)
	}
	if got := resourceOf(collector.Batches()[0].GetResource().GetAttributes()); got["service.name"] != "gateway-under-test" {
		t.Errorf("the resource of the spans is %v", got)
	}
}

// exposed returns the series that /metrics shows, as name{label,label}.
func exposed(t *testing.T, url string) map[string]bool {
	t.Helper()
	response, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	series := make(map[string]bool)
	for name, family := range families {
		for _, metric := range family.GetMetric() {
			var labels []string
			for _, label := range metric.GetLabel() {
				labels = append(labels, label.GetName()+"="+label.GetValue())
			}
			slices.Sort(labels)
			series[name+"{"+strings.Join(labels, ",")+"}"] = true
		}
	}
	return series
}

// checkPush holds the last push against what /metrics showed before the end.
func checkPush(t *testing.T, collector *otlptest.Collector, shown map[string]bool) {
	t.Helper()
	pushes := collector.Pushes()
	if len(pushes) == 0 {
		t.Fatal("no metrics were pushed")
	}
	last := pushes[len(pushes)-1]
	if got := resourceOf(last.GetResource().GetAttributes()); got["service.name"] != "gateway-under-test" || got["service.instance.id"] == "" {
		t.Errorf("the resource of the metrics is %v", got)
	}
	got := make(map[string]bool)
	for _, scope := range last.GetScopeMetrics() {
		for _, metric := range scope.GetMetrics() {
			for _, attributes := range points(metric) {
				labels := make([]string, 0, len(attributes))
				for name, value := range resourceOf(attributes) {
					labels = append(labels, name+"="+value)
				}
				slices.Sort(labels)
				got[metric.GetName()+"{"+strings.Join(labels, ",")+"}"] = true
			}
			if metric.GetName() == "websocket_hub_active_connections" {
				if n := metric.GetGauge().GetDataPoints()[0].GetAsDouble(); n != 0 {
					t.Errorf("the last push has %v connections: it came before they were closed", n)
				}
			}
		}
	}
	for series := range shown {
		if !got[series] {
			t.Errorf("%s is at /metrics and was not pushed", series)
		}
	}
	for series := range got {
		// Requests that came after the scrape, the scrape itself among them.
		if !shown[series] && !strings.HasPrefix(series, "http_server_duration_milliseconds{") {
			t.Errorf("%s was pushed and is not at /metrics", series)
		}
	}
	if len(shown) < 60 {
		t.Errorf("/metrics has %d series only", len(shown))
	}
}

// points returns the attributes of the metric's data points.
func points(metric *metricspb.Metric) (all [][]*commonpb.KeyValue) {
	for _, point := range metric.GetSum().GetDataPoints() {
		all = append(all, point.GetAttributes())
	}
	for _, point := range metric.GetGauge().GetDataPoints() {
		all = append(all, point.GetAttributes())
	}
	for _, point := range metric.GetHistogram().GetDataPoints() {
		all = append(all, point.GetAttributes())
	}
	for _, point := range metric.GetSummary().GetDataPoints() {
		all = append(all, point.GetAttributes())
	}
	return all
}

func resourceOf(attributes []*commonpb.KeyValue) map[string]string {
	texts := make(map[string]string)
	for _, attribute := range attributes {
		texts[attribute.GetKey()] = attribute.GetValue().GetStringValue()
	}
	return texts
}

// TestCollectorAway: the service starts, serves and ends as ever, and says so once.
func TestCollectorAway(t *testing.T) {
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hole.Close() }() // nobody accepts: the system does, and says nothing
	for name, address := range map[string]string{"refuses": freeAddress(t), "black hole": hole.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			p := serveWith(t, map[string]string{"OPENTELEMETRY_COLLECTOR_URL": address, "OPENTELEMETRY_TRACES": "true"})
			answer, err := http.Post(p.url+"/messages/get-connection-pass", "", nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = answer.Body.Close()
			p.signal(syscall.SIGTERM)
			if code := p.ended(15 * time.Second); code != 0 {
				t.Errorf("exit code %d", code)
			}
			for _, line := range []string{"metrics could not be pushed", "spans are lost"} {
				if n := strings.Count(p.out.String(), line); n != 1 {
					t.Errorf("%q is in the log %d times", line, n)
				}
			}
		})
	}
}

// TestWithoutTracesNothingIsInTheWay: what the use cases publish through is the broker's
// own, not something around it.
func TestWithoutTracesNothingIsInTheWay(t *testing.T) {
	for _, traces := range []bool{false, true} {
		cfg, err := config.From(envconfig.MapLookuper(map[string]string{
			"HTTP_ADDR": "127.0.0.1:0", "OPENTELEMETRY_COLLECTOR_URL": "127.0.0.1:1", "OPENTELEMETRY_TRACES": fmt.Sprint(traces),
		}))
		if err != nil {
			t.Fatal(err)
		}
		var parts struct {
			fx.In
			Publisher   app.Publisher
			Inboxes     app.Inboxes
			Middlewares []func(http.Handler) http.Handler `group:"middlewares"`
		}
		if err := fx.New(service(cfg, zap.NewNop()), fx.Populate(&parts)).Err(); err != nil {
			t.Fatal(err)
		}
		_, plainPublisher := parts.Publisher.(*demo.Broker)
		_, plainInboxes := parts.Inboxes.(*demo.Broker)
		if plainPublisher == traces || plainInboxes == traces || (len(parts.Middlewares) == 0) == traces {
			t.Errorf("traces %t: the publisher is a %T, the inboxes are %T, there are %d middlewares", traces, parts.Publisher, parts.Inboxes, len(parts.Middlewares))
		}
	}
}
