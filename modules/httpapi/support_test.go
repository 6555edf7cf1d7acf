package httpapi

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(int) { http.DefaultClient.CloseIdleConnections() }))
}

// bench is a server under test with what it logs and measures.
type bench struct {
	*Server
	logs     *observer.ObservedLogs
	registry *prometheus.Registry
}

func newBench(cfg Config, routes, opsRoutes []func(chi.Router)) *bench {
	core, logs := observer.New(zap.DebugLevel)
	registry := prometheus.NewRegistry()
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	return &bench{NewServer(cfg, routes, opsRoutes, zap.New(core), registry), logs, registry}
}

// start starts the server for the time of the test.
func (b *bench) start(t *testing.T) {
	t.Helper()
	if err := b.Start(t.Context()); err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := b.Stop(ctx); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
}

// serve hands a request to the handler of the public address.
func (b *bench) serve(request *http.Request) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	b.Handler().ServeHTTP(recorder, request)
	return recorder
}

func (b *bench) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func fetch(t *testing.T, method, url string) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

// mustBeProblem demands an error answer in the shape of the wire contract.
func mustBeProblem(t *testing.T, response *httptest.ResponseRecorder, status int, title string) {
	t.Helper()
	if response.Code != status {
		t.Errorf("answered %d, want %d", response.Code, status)
	}
	var body map[string]map[string]json.RawMessage
	if err := json.Unmarshal(response.Body.Bytes(), &body); err != nil || len(body) != 1 || len(body["detail"]) != 2 {
		t.Fatalf("the body is %s", response.Body)
	}
	var gotTitle string
	var details map[string]string
	if json.Unmarshal(body["detail"]["title"], &gotTitle) != nil || json.Unmarshal(body["detail"]["details"], &details) != nil {
		t.Fatalf("the body is %s", response.Body)
	}
	if gotTitle != title || len(details) != 1 || details["non-field-error"] == "" {
		t.Errorf("the body is %s, want the title %q and a non-field-error", response.Body, title)
	}
	if got := response.Header().Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control is %q", got)
	}
	if got := response.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type is %q", got)
	}
}

// tokens is an app.TokenVerifier that knows some tokens.
type tokens map[string]app.Grant

func (k tokens) Verify(token string) (app.Grant, error) {
	if grant, ok := k[token]; ok {
		return grant, nil
	}
	return app.Grant{}, app.ErrUnauthenticated
}

// passes is an app.PassStore that remembers what is put, or fails.
type passes struct {
	mu   sync.Mutex
	err  error
	kept map[domain.ConnectionPass]app.PassGrant
}

func (p *passes) Put(_ context.Context, pass domain.ConnectionPass, grant app.PassGrant) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.kept[pass] = grant
	}
	return p.err
}

func (p *passes) Take(context.Context, domain.ConnectionPass) (app.PassGrant, error) {
	return app.PassGrant{}, app.ErrPassInvalid
}

func (p *passes) Available() error            { return p.err }
func (p *passes) Check(context.Context) error { return p.err }

// newIssuer returns the use case over the two, where the token "good.to-ken_1" is
// that of user 42.
func newIssuer(t *testing.T, policy app.PassPolicy) (*app.IssuePass, *passes) {
	t.Helper()
	user, err := domain.NewUserID(42)
	if err != nil {
		t.Fatal(err)
	}
	store := &passes{kept: make(map[domain.ConnectionPass]app.PassGrant)}
	known := tokens{goodToken: {User: user, TokenExpiresAt: time.Now().Add(time.Hour)}}
	return app.NewIssuePass(known, store, policy, app.NewConnect(store, nil, nil, app.ConnectLimits{})), store
}

const goodToken = "good.to-ken_1"

// page is a route that answers "hello" and knows both methods and wildcards.
func page(r chi.Router) {
	r.Get("/page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	r.Post("/page", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			WriteError(w, r, err)
			return
		}
		_, _ = io.WriteString(w, strings.Repeat("x", int(n)))
	})
	r.Get("/files/*", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, chi.URLParam(r, "*")) })
	r.Get("/both", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "without") })
	r.Get("/both/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "with") })
}
