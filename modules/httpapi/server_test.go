package httpapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

func ops(r chi.Router) {
	r.Get("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine") })
}

func TestOneAddress(t *testing.T) {
	b := newBench(Config{RootPath: "/transportation"}, []func(chi.Router){page}, []func(chi.Router){ops})
	b.start(t)
	url := "http://" + b.Addr().String()
	for path, want := range map[string]int{
		"/page": 200, "/transportation/page": 200, "/healthz": 200, "/transportation/healthz": 200,
		"/debug/pprof/": 404, "/debug/pprof/heap": 404, "/transportation/debug/pprof/": 404, "/debug/pprof/cmdline": 404,
	} {
		if response, _ := fetch(t, http.MethodGet, url+path); response.StatusCode != want {
			t.Errorf("%s is answered with %s, want %d", path, response.Status, want)
		}
	}
	if b.AdminAddr() != nil {
		t.Error("there is an admin address")
	}
}

func TestTwoAddresses(t *testing.T) {
	b := newBench(Config{RootPath: "/transportation", AdminAddr: "127.0.0.1:0"}, []func(chi.Router){page}, []func(chi.Router){ops})
	b.start(t)
	public, admin := "http://"+b.Addr().String(), "http://"+b.AdminAddr().String()
	for url, want := range map[string]int{
		public + "/page": 200, public + "/transportation/page": 200,
		public + "/healthz": 404, public + "/transportation/healthz": 404,
		public + "/debug/pprof/": 404, public + "/debug/pprof/cmdline": 404,
		admin + "/healthz": 200, admin + "/page": 404, admin + "/transportation/healthz": 200, admin + "/transportation/page": 404,
		admin + "/debug/pprof": 200, admin + "/debug/pprof/": 200, admin + "/debug/pprof/heap": 200, admin + "/debug/pprof/goroutine?debug=1": 200,
		admin + "/debug/pprof/cmdline": 200, admin + "/debug/pprof/symbol": 200, admin + "/debug/pprof/nothing": 404,
	} {
		if response, _ := fetch(t, http.MethodGet, url); response.StatusCode != want {
			t.Errorf("%s is answered with %s, want %d", url, response.Status, want)
		}
	}
}

// A profile takes longer than any deadline of the server.
func TestProfileOutlivesDeadlines(t *testing.T) {
	b := newBench(Config{AdminAddr: "127.0.0.1:0"}, nil, nil)
	b.admin.server.WriteTimeout = 300 * time.Millisecond
	b.admin.server.ReadHeaderTimeout = 300 * time.Millisecond
	b.start(t)
	began := time.Now()
	response, body := fetch(t, http.MethodGet, "http://"+b.AdminAddr().String()+"/debug/pprof/trace?seconds=1")
	if response.StatusCode != http.StatusOK || body == "" {
		t.Errorf("answered %s with %d bytes", response.Status, len(body))
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("the trace was cut after %s", took)
	}
}

func TestStartFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	if err := newBench(Config{Addr: taken.Addr().String()}, nil, nil).Start(t.Context()); err == nil {
		t.Error("an address that is taken was bound")
	}
	// Where the second can't be bound, the first is free again.
	b := newBench(Config{AdminAddr: taken.Addr().String()}, nil, nil)
	if err := b.Start(t.Context()); err == nil {
		t.Fatal("an admin address that is taken was bound")
	}
	again, err := net.Listen("tcp", b.Addr().String())
	if err != nil {
		t.Fatalf("the first address is still bound: %v", err)
	}
	_ = again.Close()
}

// TestListenerThatFailsIsTold: a process whose listener is gone can't know it otherwise.
func TestListenerThatFailsIsTold(t *testing.T) {
	b := newBench(Config{}, nil, nil)
	told := make(chan struct{})
	b.failed = func() { close(told) }
	b.start(t)
	if err := b.public.bound.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-told:
	case <-time.After(10 * time.Second):
		t.Error("the end of the listener was kept secret")
	}
}

func TestStopWithoutStart(t *testing.T) {
	b := newBench(Config{AdminAddr: "127.0.0.1:0"}, nil, nil)
	if b.Addr() != nil || b.AdminAddr() != nil {
		t.Error("there are addresses before Start")
	}
	if err := b.Stop(t.Context()); err != nil {
		t.Errorf("Stop: %v", err)
	}
}

// slow is a route whose answer waits; entered tells when a request is in it.
func slow(entered chan<- struct{}, release <-chan struct{}) func(chi.Router) {
	return func(r chi.Router) {
		r.Get("/slow", func(w http.ResponseWriter, r *http.Request) {
			entered <- struct{}{}
			select {
			case <-release:
				_, _ = io.WriteString(w, "done")
			case <-r.Context().Done():
			}
		})
	}
}

func TestStopWaitsForRequests(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	b := newBench(Config{StopTimeout: 30 * time.Second}, []func(chi.Router){slow(entered, release)}, nil)
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	address := b.Addr().String()
	answer := make(chan string, 1)
	go func() {
		response, err := http.Get("http://" + address + "/slow")
		if err != nil {
			answer <- err.Error()
			return
		}
		body, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		answer <- string(body)
	}()
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- b.Stop(t.Context()) }()
	// The listener goes first, while the request is still being served.
	for deadline := time.Now().Add(10 * time.Second); ; {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			break
		}
		_ = conn.Close()
		if time.Now().After(deadline) {
			t.Fatal("the listener is still open")
		}
	}
	select {
	case err := <-stopped:
		t.Fatalf("Stop did not wait: %v", err)
	default:
	}
	close(release)
	if got := <-answer; got != "done" {
		t.Errorf("the request was answered with %q", got)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Stop: %v", err)
	}
}

func TestStopIsBounded(t *testing.T) {
	for name, bound := range map[string]struct{ own, context time.Duration }{
		"by StopTimeout":  {50 * time.Millisecond, time.Minute},
		"by its context":  {time.Minute, 50 * time.Millisecond},
		"by its only one": {0, 50 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			entered := make(chan struct{})
			b := newBench(Config{StopTimeout: bound.own}, []func(chi.Router){slow(entered, nil)}, nil)
			if err := b.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			failed := make(chan error, 1)
			go func() {
				response, err := http.Get("http://" + b.Addr().String() + "/slow")
				if err == nil {
					_ = response.Body.Close()
				}
				failed <- err
			}()
			<-entered
			ctx, cancel := context.WithTimeout(t.Context(), bound.context)
			defer cancel()
			began := time.Now()
			if err := b.Stop(ctx); err != nil {
				t.Errorf("Stop: %v", err)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("Stop took %s", took)
			}
			if err := <-failed; err == nil {
				t.Error("the request was answered")
			}
			if n := b.logs.FilterMessage("cutting HTTP requests that take too long").Len(); n != 1 {
				t.Errorf("logged %d times", n)
			}
		})
	}
}

// mustBeCut demands that the server ends the connection without being asked to.
func mustBeCut(t *testing.T, conn net.Conn) string {
	t.Helper()
	answer, err := io.ReadAll(conn)
	if errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Fatalf("the connection is still open; read %q", answer)
	}
	return string(answer)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestSlowClientsAreCut(t *testing.T) {
	b := newBench(Config{}, []func(chi.Router){page}, nil)
	b.public.server.ReadHeaderTimeout = 100 * time.Millisecond
	b.public.server.ReadTimeout = 200 * time.Millisecond
	b.public.server.IdleTimeout = 100 * time.Millisecond
	b.start(t)
	for name, bytes := range map[string]string{
		"says nothing":           "",
		"half a request line":    "GET /pa",
		"headers without an end": "GET /page HTTP/1.1\r\nHost: x\r\nX-A: b\r\n",
		"half a body":            "POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
		"half a chunk":           "POST /page HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
		"idle after an answer":   "GET /page HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := b.dial(t)
			if _, err := io.WriteString(conn, bytes); err != nil {
				t.Fatal(err)
			}
			mustBeCut(t, conn)
		})
	}
}

func TestDefaultDeadlines(t *testing.T) {
	b := newBench(Config{AdminAddr: "127.0.0.1:0"}, nil, nil)
	for _, l := range b.listeners() {
		s := l.server
		if s.ReadHeaderTimeout <= 0 || s.WriteTimeout <= 0 || s.IdleTimeout <= 0 || s.MaxHeaderBytes <= 0 || s.ErrorLog == nil {
			t.Errorf("%s lacks a limit: %+v", l.address, s)
		}
	}
	if b.public.server.ReadTimeout <= 0 {
		t.Error("bodies of the public address may take for ever")
	}
}

func TestHeaderFlood(t *testing.T) {
	b := newBench(Config{}, []func(chi.Router){page}, nil)
	b.start(t)
	for name, header := range map[string]string{
		"one large header": "X-A: " + strings.Repeat("a", 64<<10) + "\r\n",
		"many headers":     strings.Repeat("X-A: a\r\n", 8<<10),
		"a long path":      "",
	} {
		t.Run(name, func(t *testing.T) {
			path := "/page"
			if header == "" {
				path += "?" + strings.Repeat("q", 64<<10)
			}
			conn := b.dial(t)
			// The server may answer and cut before it has all of it.
			_, _ = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n", path, header)
			answer, _ := bufio.NewReader(conn).ReadString('\n')
			if !strings.HasPrefix(answer, "HTTP/1.1 431 ") {
				t.Errorf("answered %q, want 431", answer)
			}
		})
	}
	// What real clients send fits.
	conn := b.dial(t)
	if _, err := fmt.Fprintf(conn, "GET /page HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", strings.Repeat("a", 8<<10)); err != nil {
		t.Fatal(err)
	}
	if answer, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
		t.Errorf("a long token is answered with %q, %v", answer, err)
	}
}

func TestBodyLimit(t *testing.T) {
	b := newBench(Config{}, []func(chi.Router){page}, nil)
	b.start(t)
	for size, want := range map[int]int{0: 200, maxBodyBytes: 200, maxBodyBytes + 1: 413, 10 << 20: 413} {
		response, err := http.Post("http://"+b.Addr().String()+"/page", "text/plain", strings.NewReader(strings.Repeat("x", size)))
		if err != nil {
			// The server cuts who goes on sending; that may come before its answer.
			if want != 413 {
				t.Errorf("%d bytes: %v", size, err)
			}
			continue
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%d bytes are answered with %s, want %d", size, response.Status, want)
		}
	}
	response := b.serve(httptest.NewRequest(http.MethodPost, "/page", strings.NewReader(strings.Repeat("x", maxBodyBytes+1))))
	mustBeProblem(t, response, http.StatusRequestEntityTooLarge, "Request too large.")
}

// socket upgrades to a WebSocket that says what it hears, in a goroutine that outlives
// the handler.
func socket(t *testing.T) func(chi.Router) {
	return func(r chi.Router) {
		r.Get("/socket", func(w http.ResponseWriter, r *http.Request) {
			if _, ok := w.(http.Hijacker); !ok {
				t.Error("the writer can't be hijacked")
			}
			ws, err := websocket.Accept(w, r, nil)
			if err != nil {
				t.Errorf("Accept: %v", err)
				return
			}
			go func() {
				defer func() { _ = ws.CloseNow() }()
				for {
					kind, data, err := ws.Read(context.Background())
					if err != nil || ws.Write(context.Background(), kind, data) != nil {
						return
					}
				}
			}()
		})
	}
}

// An upgraded connection is under no deadline of the server, and is neither measured
// nor logged as a request.
func TestUpgrade(t *testing.T) {
	b := newBench(Config{RootPath: "/transportation"}, []func(chi.Router){page, socket(t)}, nil)
	const limit = 150 * time.Millisecond
	b.public.server.ReadHeaderTimeout, b.public.server.ReadTimeout, b.public.server.WriteTimeout, b.public.server.IdleTimeout = limit, limit, limit, limit
	b.start(t)
	ws, _, err := websocket.Dial(t.Context(), "ws://"+b.Addr().String()+"/transportation/socket", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ws.CloseNow() }()
	wait := time.NewTimer(3 * limit)
	defer wait.Stop()
	<-wait.C
	if err := ws.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
		t.Fatalf("write after the deadlines: %v", err)
	}
	if _, data, err := ws.Read(t.Context()); err != nil || string(data) != "hello" {
		t.Fatalf("read after the deadlines: %q, %v", data, err)
	}
	if got := observations(t, b.registry, ""); len(got) != 0 {
		t.Errorf("the upgrade was measured: %v", got)
	}
	if n := b.logs.FilterMessage("request").Len(); n != 0 {
		t.Errorf("the upgrade is %d times in the access log", n)
	}
	// A refused upgrade is a request as any other.
	if response, _ := fetch(t, http.MethodGet, "http://"+b.Addr().String()+"/page"); response.StatusCode != http.StatusOK {
		t.Errorf("answered %s", response.Status)
	}
	if got := observations(t, b.registry, ""); got["GET /page 200"] != 1 {
		t.Errorf("observed %v", got)
	}
}

// An answer can be flushed in parts through the recorder.
func TestFlush(t *testing.T) {
	release := make(chan struct{})
	b := newBench(Config{}, []func(chi.Router){func(r chi.Router) {
		r.Get("/stream", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "one\n")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Errorf("Flush: %v", err)
			}
			<-release
			_, _ = io.WriteString(w, "two\n")
		})
	}}, nil)
	b.start(t)
	response, err := http.Get("http://" + b.Addr().String() + "/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	lines := bufio.NewReader(response.Body)
	if line, err := lines.ReadString('\n'); err != nil || line != "one\n" {
		t.Errorf("read %q, %v", line, err)
	}
	close(release)
	if line, err := lines.ReadString('\n'); err != nil || line != "two\n" {
		t.Errorf("read %q, %v", line, err)
	}
	if response.StatusCode != http.StatusOK {
		t.Errorf("answered %s", response.Status)
	}
}

func TestModule(t *testing.T) {
	issue, _ := newIssuer(t, app.PassPolicy{Length: 32, Lifetime: time.Second})
	registry := prometheus.NewRegistry()
	var server *Server
	running := fxtest.New(t, fx.NopLogger, Module,
		fx.Supply(Config{Addr: "127.0.0.1:0", RootPath: "/transportation"}, zap.NewNop(), issue, app.NewReadiness(nil)),
		fx.Provide(func() prometheus.Registerer { return registry }),
		fx.Provide(fx.Annotate(func() func(chi.Router) { return page }, fx.ResultTags(`group:"routes"`))),
		fx.Populate(&server))
	running.RequireStart()
	defer running.RequireStop()
	url := "http://" + server.Addr().String() + "/transportation"
	for path, want := range map[string]int{"/page": 200, "/healthz": 200, "/readyz": 200, passPath: 405} {
		if response, _ := fetch(t, http.MethodGet, url+path); response.StatusCode != want {
			t.Errorf("%s is answered with %s, want %d", path, response.Status, want)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, family := range families {
		found[family.GetName()] = true
	}
	if !found["connection_passes_issued_total"] || !found["http_server_duration_milliseconds"] {
		t.Errorf("the metrics are %v", found)
	}
}
