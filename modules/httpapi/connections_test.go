package httpapi

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestConnectionsWithoutARequestAreCounted(t *testing.T) {
	b := newBench(Config{}, []func(chi.Router){page, func(r chi.Router) {
		r.Get("/upgrade", func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
		})
	}}, nil)
	b.public.server.ReadHeaderTimeout = 200 * time.Millisecond
	b.start(t)
	for _, c := range []struct {
		name, says string
		unserved   bool
	}{
		{"a request", "GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", false},
		{"no such route", "GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", false},
		{"an upgrade", "GET /upgrade HTTP/1.1\r\nHost: x\r\n\r\n", false},
		{"nothing", "", true},
		{"half a header", "GET /page HTTP/1.1\r\nHost: ", true},
		{"too large a header", "GET /page HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 2*maxHeaderBytes) + "\r\n\r\n", true},
		{"not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := b.connections(t, "http_server_unserved_connections_total")
			conn := b.dial(t)
			if _, err := io.WriteString(conn, c.says); err != nil {
				t.Fatal(err)
			}
			// The service ends the connection, if only with a reset.
			_, _ = io.Copy(io.Discard, conn)
			want := before
			if c.unserved {
				want++
			}
			deadline := time.After(10 * time.Second)
			for b.connections(t, "http_server_open_connections") != 0 {
				select {
				case <-deadline:
					t.Fatal("the connection is still counted as open")
				case <-time.After(time.Millisecond):
				}
			}
			if got := b.connections(t, "http_server_unserved_connections_total"); got != want {
				t.Errorf("%v connections were not served, want %v", got, want)
			}
		})
	}
}

// A connection that was opened and never used must not cost Stop its whole time.
func TestStopDoesNotWaitForUnusedConnections(t *testing.T) {
	b := newBench(Config{StopTimeout: time.Minute}, []func(chi.Router){page}, nil)
	b.start(t)
	conn := b.dial(t)
	deadline := time.After(10 * time.Second)
	for b.connections(t, "http_server_open_connections") != 1 {
		select {
		case <-deadline:
			t.Fatal("the connection is not accepted")
		case <-time.After(time.Millisecond):
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second) // net/http waits for five
	defer cancel()
	if err := b.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if cut := b.logs.FilterMessageSnippet("cutting").Len(); cut != 0 {
		t.Error("Stop has waited for a connection without a request")
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
}

func (b *bench) connections(t *testing.T, name string) float64 {
	t.Helper()
	families, err := b.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			metric := family.GetMetric()[0]
			return metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func TestConnectionMetricsAreLinted(t *testing.T) {
	b := newBench(Config{}, nil, nil)
	problems, err := testutil.GatherAndLint(b.registry, "http_server_open_connections", "http_server_unserved_connections_total")
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
