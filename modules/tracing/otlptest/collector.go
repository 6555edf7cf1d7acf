// Package otlptest runs small OpenTelemetry collectors for tests: gRPC servers on the
// loopback interface that keep what they receive.
package otlptest

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	collectormetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectortrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// Collector is an OTLP/gRPC receiver for metrics and traces. It is safe for concurrent
// use.
type Collector struct {
	address string

	mu      sync.Mutex
	metrics []*metricspb.ResourceMetrics
	spans   []*tracepb.ResourceSpans
}

// Start starts a collector on a free port; it ends with the test.
func Start(tb testing.TB, options ...grpc.ServerOption) *Collector {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	c := &Collector{address: listener.Addr().String()}
	server := grpc.NewServer(options...)
	collectormetrics.RegisterMetricsServiceServer(server, &metricsService{collector: c})
	collectortrace.RegisterTraceServiceServer(server, &traceService{collector: c})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	tb.Cleanup(func() {
		server.Stop()
		// A short test ends before the server has begun.
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			tb.Errorf("serve OTLP: %v", err)
		}
	})
	return c
}

// Address returns where the collector listens, as host:port.
func (c *Collector) Address() string { return c.address }

// URL returns the address as a URL for plain text.
func (c *Collector) URL() string { return "http://" + c.address }

// Pushes returns the pushes of metrics that have come, in their order.
func (c *Collector) Pushes() []*metricspb.ResourceMetrics {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.metrics[:len(c.metrics):len(c.metrics)]
}

// Batches returns the batches of spans that have come, in their order.
func (c *Collector) Batches() []*tracepb.ResourceSpans {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spans[:len(c.spans):len(c.spans)]
}

// Spans returns the spans of all batches.
func (c *Collector) Spans() []*tracepb.Span {
	var spans []*tracepb.Span
	for _, batch := range c.Batches() {
		for _, scope := range batch.GetScopeSpans() {
			spans = append(spans, scope.GetSpans()...)
		}
	}
	return spans
}

// metricsService is the collector as a receiver of metrics.
type metricsService struct {
	collectormetrics.UnimplementedMetricsServiceServer
	collector *Collector
}

// Export implements collectormetrics.MetricsServiceServer.
func (s *metricsService) Export(_ context.Context, request *collectormetrics.ExportMetricsServiceRequest) (*collectormetrics.ExportMetricsServiceResponse, error) {
	s.collector.mu.Lock()
	defer s.collector.mu.Unlock()
	s.collector.metrics = append(s.collector.metrics, request.GetResourceMetrics()...)
	return &collectormetrics.ExportMetricsServiceResponse{}, nil
}

// traceService is the collector as a receiver of spans.
type traceService struct {
	collectortrace.UnimplementedTraceServiceServer
	collector *Collector
}

// Export implements collectortrace.TraceServiceServer.
func (s *traceService) Export(_ context.Context, request *collectortrace.ExportTraceServiceRequest) (*collectortrace.ExportTraceServiceResponse, error) {
	s.collector.mu.Lock()
	defer s.collector.mu.Unlock()
	s.collector.spans = append(s.collector.spans, request.GetResourceSpans()...)
	return &collectortrace.ExportTraceServiceResponse{}, nil
}
