package metrics

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// receiver is an OTLP/gRPC receiver that keeps what it gets.
type receiver struct {
	collectorpb.UnimplementedMetricsServiceServer
	address string

	mu     sync.Mutex
	pushes []*metricspb.ResourceMetrics
}

func (r *receiver) Export(_ context.Context, request *collectorpb.ExportMetricsServiceRequest) (*collectorpb.ExportMetricsServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pushes = append(r.pushes, request.GetResourceMetrics()...)
	return &collectorpb.ExportMetricsServiceResponse{}, nil
}

func (r *receiver) received() []*metricspb.ResourceMetrics {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pushes)
}

// receive starts a receiver at the address; it ends with the test.
func receive(t *testing.T, address string, options ...grpc.ServerOption) *receiver {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{address: listener.Addr().String()}
	server := grpc.NewServer(options...)
	collectorpb.RegisterMetricsServiceServer(server, r)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		// A short test ends before the server has begun.
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve OTLP: %v", err)
		}
	})
	return r
}

// unusedAddress returns an address where nobody listens.
func unusedAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// blackHole returns an address where connections are taken and nothing is answered.
func blackHole(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Nobody accepts: the system does, up to its backlog.
	t.Cleanup(func() { _ = listener.Close() })
	return listener.Addr().String()
}

func startPush(t *testing.T, url string, interval time.Duration, registry prometheus.Gatherer) (*Push, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	push := NewPush(PushConfig{CollectorURL: url, ServiceName: "gateway", InstanceID: "host:1", StopTimeout: 2 * time.Second}, registry, zap.New(core))
	push.interval = interval
	if err := push.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return push, logs
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

// fullRegistry has metrics of every kind besides those of the process.
func fullRegistry() *prometheus.Registry {
	registry := NewRegistry()
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "things_total", Help: "Things."}, []string{"result", "kind"})
	now := prometheus.NewGauge(prometheus.GaugeOpts{Name: "things_now", Help: "Things now."})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "things_seconds", Help: "How long.", Buckets: []float64{0.1, 1}, ConstLabels: prometheus.Labels{"server": "gateway"},
	}, []string{"result"})
	registry.MustRegister(total, now, seconds)
	total.WithLabelValues("ok", "big").Add(3)
	total.WithLabelValues("failed", "big")
	now.Set(7)
	for _, v := range []float64{0.05, 0.5, 5} {
		seconds.WithLabelValues("ok").Observe(v)
	}
	return registry
}

// gathered lists the series of the registry as name{labels}, with their type.
func gathered(t *testing.T, registry prometheus.Gatherer) map[string]string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := make(map[string]string)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			var labels []string
			for _, label := range metric.GetLabel() {
				labels = append(labels, label.GetName()+"="+label.GetValue())
			}
			series[seriesName(family.GetName(), labels)] = map[dto.MetricType]string{
				dto.MetricType_COUNTER: "sum", dto.MetricType_GAUGE: "gauge", dto.MetricType_HISTOGRAM: "histogram", dto.MetricType_SUMMARY: "summary",
			}[family.GetType()]
		}
	}
	return series
}

func seriesName(name string, labels []string) string {
	slices.Sort(labels)
	return name + "{" + strings.Join(labels, ",") + "}"
}

// pushed lists the series of a push in the same way.
func pushed(push *metricspb.ResourceMetrics) map[string]string {
	series := make(map[string]string)
	for _, scope := range push.GetScopeMetrics() {
		for _, metric := range scope.GetMetrics() {
			add := func(kind string, attributes []*commonpb.KeyValue) {
				series[seriesName(metric.GetName(), texts(attributes))] = kind
			}
			for _, point := range metric.GetSum().GetDataPoints() {
				add("sum", point.GetAttributes())
			}
			for _, point := range metric.GetGauge().GetDataPoints() {
				add("gauge", point.GetAttributes())
			}
			for _, point := range metric.GetHistogram().GetDataPoints() {
				add("histogram", point.GetAttributes())
			}
			for _, point := range metric.GetSummary().GetDataPoints() {
				add("summary", point.GetAttributes())
			}
		}
	}
	return series
}

func texts(attributes []*commonpb.KeyValue) (list []string) {
	for _, attribute := range attributes {
		list = append(list, attribute.GetKey()+"="+attribute.GetValue().GetStringValue())
	}
	return list
}

// A push has the same names, labels, types and values as the registry.
func TestPushIsTheRegistry(t *testing.T) {
	collector, registry := receive(t, "127.0.0.1:0"), fullRegistry()
	push, logs := startPush(t, "http://"+collector.address, time.Hour, registry)
	if err := push.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	pushes := collector.received()
	if len(pushes) != 1 {
		t.Fatalf("%d pushes came, want the last one only; logged %v", len(pushes), logs.All())
	}
	if got := texts(pushes[0].GetResource().GetAttributes()); !slices.Contains(got, "service.name=gateway") || !slices.Contains(got, "service.instance.id=host:1") {
		t.Errorf("the resource is %q", got)
	}
	want, got := gathered(t, registry), pushed(pushes[0])
	if len(want) < 40 {
		t.Errorf("the registry has %d series only", len(want))
	}
	for series, kind := range want {
		if got[series] != kind {
			t.Errorf("%s came as %q, want %q", series, got[series], kind)
		}
	}
	for series := range got {
		if want[series] == "" {
			t.Errorf("%s is not in the registry", series)
		}
	}
	for _, scope := range pushes[0].GetScopeMetrics() {
		for _, metric := range scope.GetMetrics() {
			switch metric.GetName() {
			case "things_total":
				sum := metric.GetSum()
				if !sum.GetIsMonotonic() || sum.GetAggregationTemporality() != metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE {
					t.Errorf("the counter came as %v", sum)
				}
				if metric.GetDescription() != "Things." {
					t.Errorf("the help came as %q", metric.GetDescription())
				}
				if n := sum.GetDataPoints()[0].GetAsDouble() + sum.GetDataPoints()[1].GetAsDouble(); n != 3 {
					t.Errorf("the counters add up to %v", n)
				}
			case "things_now":
				if v := metric.GetGauge().GetDataPoints()[0].GetAsDouble(); v != 7 {
					t.Errorf("the gauge is %v", v)
				}
			case "things_seconds":
				point := metric.GetHistogram().GetDataPoints()[0]
				if point.GetCount() != 3 || point.GetSum() != 5.55 || fmt.Sprint(point.GetExplicitBounds(), point.GetBucketCounts()) != "[0.1 1] [1 1 1]" {
					t.Errorf("the histogram came as %v", point)
				}
			}
		}
	}
	if logs.Len() != 0 {
		t.Errorf("logged %v", logs.All())
	}
}

// Pushes come again and again, a collector that comes late or is away meanwhile is
// told of in one line each way, and no push is lost for good.
func TestPushWhileTheCollectorComesAndGoes(t *testing.T) {
	address := unusedAddress(t)
	push, logs := startPush(t, "http://"+address, 5*time.Millisecond, fullRegistry())
	eventually(t, "the log says that the collector is away", func() bool { return logs.FilterMessageSnippet("could not be pushed").Len() == 1 })
	collector := receive(t, address)
	eventually(t, "pushes come", func() bool { return len(collector.received()) >= 3 })
	if again := logs.FilterMessageSnippet("takes metrics again").All(); len(again) != 1 {
		t.Errorf("the return was logged %d times", len(again))
	}
	before := len(collector.received())
	if err := push.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(collector.received()) <= before {
		t.Error("there was no last push")
	}
	if n := logs.FilterLevelExact(zap.WarnLevel).Len(); n != 1 {
		t.Errorf("%d warnings, want one: %v", n, logs.All())
	}
}

// A collector that is away delays neither the start nor the end, and is no error.
func TestPushWithoutCollector(t *testing.T) {
	for name, address := range map[string]string{"refuses": unusedAddress(t), "black hole": blackHole(t)} {
		for _, interval := range []time.Duration{time.Hour, time.Millisecond} {
			t.Run(fmt.Sprint(name, ", pushes every ", interval), func(t *testing.T) {
				push, logs := startPush(t, "http://"+address, interval, fullRegistry())
				push.cfg.StopTimeout = 50 * time.Millisecond
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				if err := push.Stop(ctx); err != nil {
					t.Errorf("Stop: %v", err)
				}
				if ctx.Err() != nil {
					t.Error("Stop did not keep to its own timeout")
				}
				if logs.FilterMessageSnippet("could not be pushed").Len() != 1 {
					t.Errorf("logged %v", logs.All())
				}
			})
		}
	}
}

// https:// is spoken over TLS, and the certificate is checked.
func TestPushOverTLS(t *testing.T) {
	web := httptest.NewUnstartedServer(nil) // for its certificate
	web.StartTLS()
	defer web.Close()
	collector := receive(t, "127.0.0.1:0", grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: web.TLS.Certificates, MinVersion: tls.VersionTLS12})))

	stranger, logs := startPush(t, "https://"+collector.address, time.Hour, fullRegistry())
	if err := stranger.Stop(t.Context()); err != nil || len(collector.received()) != 0 || logs.FilterMessageSnippet("could not be pushed").Len() != 1 {
		t.Errorf("an unknown certificate: %v, %d pushes, logged %v", err, len(collector.received()), logs.All())
	}

	file := filepath.Join(t.TempDir(), "ca.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})
	if err := os.WriteFile(file, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", file)
	push, logs := startPush(t, "https://"+collector.address, time.Hour, fullRegistry())
	if err := push.Stop(t.Context()); err != nil || len(collector.received()) != 1 {
		t.Errorf("a known certificate: %v, %d pushes, logged %v", err, len(collector.received()), logs.All())
	}
}

// One metric that can't be gathered is logged and does not hide the others.
func TestPushOfBrokenMetric(t *testing.T) {
	collector, registry := receive(t, "127.0.0.1:0"), fullRegistry()
	registry.MustRegister(broken{prometheus.NewDesc("broken", "A metric that fails.", nil, nil)})
	push, logs := startPush(t, "http://"+collector.address, time.Millisecond, registry)
	eventually(t, "pushes come", func() bool { return len(collector.received()) >= 3 })
	if err := push.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	for _, push := range collector.received() {
		if series := pushed(push); series["things_now{}"] != "gauge" || series["broken{}"] != "" {
			t.Fatalf("pushed %v", series)
		}
	}
	if logs.Len() != 1 || logs.FilterMessageSnippet("gather metrics").Len() != 1 {
		t.Errorf("logged %v", logs.All())
	}
}

func TestPushModule(t *testing.T) {
	collector := receive(t, "127.0.0.1:0")
	for _, c := range []struct {
		url  string
		want int
	}{{"", 0}, {"http://" + collector.address, 1}} {
		var push *Push
		fxtest.New(t, fx.NopLogger, Module, fx.Populate(&push),
			fx.Supply(zap.NewNop(), PushConfig{CollectorURL: c.url, ServiceName: "gateway", StopTimeout: 5 * time.Second}),
		).RequireStart().RequireStop()
		if n := len(collector.received()); n != c.want {
			t.Errorf("collector %q: %d pushes, want %d", c.url, n, c.want)
		}
	}
}
