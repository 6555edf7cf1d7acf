package metrics

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T, route func(chi.Router), method, accept string) *http.Response {
	t.Helper()
	router := chi.NewRouter()
	route(router)
	request := httptest.NewRequest(method, "/metrics", nil)
	request.Header.Set("Accept", accept)
	recorder := httptest.NewRecorder()
	router.ServeHTTP(recorder, request)
	return recorder.Result()
}

func TestExposition(t *testing.T) {
	registry := NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "things_total", Help: "Things."})
	registry.MustRegister(counter)
	counter.Add(3)
	route := NewRoute(registry, zap.NewNop())

	response := serve(t, route, http.MethodGet, "text/plain")
	if response.StatusCode != http.StatusOK || !strings.HasPrefix(response.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Fatalf("answered %s, %q", response.Status, response.Header.Get("Content-Type"))
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		t.Fatalf("the answer can't be parsed: %v", err)
	}
	for _, name := range []string{"things_total", "go_goroutines", "go_memstats_heap_alloc_bytes", "process_start_time_seconds", "promhttp_metric_handler_errors_total"} {
		if families[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
	if got := families["things_total"].GetMetric()[0].GetCounter().GetValue(); got != 3 {
		t.Errorf("things_total is %v, want 3", got)
	}

	open := serve(t, route, http.MethodGet, "application/openmetrics-text; version=1.0.0")
	body, err := io.ReadAll(open.Body)
	if err != nil || !strings.HasPrefix(open.Header.Get("Content-Type"), "application/openmetrics-text") || !strings.HasSuffix(string(body), "# EOF\n") {
		t.Errorf("OpenMetrics was answered as %q, %v", open.Header.Get("Content-Type"), err)
	}
	if head := serve(t, route, http.MethodHead, "*/*"); head.StatusCode != http.StatusOK {
		t.Errorf("HEAD was answered with %s", head.Status)
	}
}

// broken is a collector that fails.
type broken struct{ desc *prometheus.Desc }

func (b broken) Describe(ch chan<- *prometheus.Desc) { ch <- b.desc }

func (b broken) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(b.desc, errors.New("out of order"))
}

// One metric that can't be gathered does not hide the others.
func TestExpositionOfBrokenMetric(t *testing.T) {
	registry := NewRegistry()
	registry.MustRegister(broken{prometheus.NewDesc("broken", "A metric that fails.", nil, nil)})
	core, logs := observer.New(zap.ErrorLevel)
	response := serve(t, NewRoute(registry, zap.New(core)), http.MethodGet, "text/plain")
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(body), "go_goroutines") {
		t.Errorf("answered %s, %v", response.Status, err)
	}
	if logs.Len() != 1 {
		t.Errorf("logged %d lines, want 1", logs.Len())
	}
}

func TestModule(t *testing.T) {
	var got struct {
		fx.In
		Registry   *prometheus.Registry
		Registerer prometheus.Registerer
		Gatherer   prometheus.Gatherer
		Routes     []func(chi.Router) `group:"ops_routes"`
	}
	fxtest.New(t, fx.NopLogger, Module, fx.Supply(zap.NewNop()), fx.Populate(&got)).RequireStart().RequireStop()
	if got.Registerer != got.Registry || got.Gatherer != got.Registry {
		t.Error("there is more than one registry")
	}
	if len(got.Routes) != 1 {
		t.Fatalf("%d routes are provided, want 1", len(got.Routes))
	}
	if response := serve(t, got.Routes[0], http.MethodGet, "text/plain"); response.StatusCode != http.StatusOK {
		t.Errorf("answered %s", response.Status)
	}
}
