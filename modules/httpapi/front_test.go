package httpapi

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// observations returns how many requests the histogram has, by method, route and status.
func observations(t *testing.T, registry *prometheus.Registry, serverName string) map[string]uint64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]uint64)
	for _, family := range families {
		if !strings.HasPrefix(family.GetName(), "http_server_duration") {
			continue
		}
		if family.GetName() != "http_server_duration_milliseconds" || family.GetType().String() != "HISTOGRAM" {
			t.Errorf("there is a %s %s", family.GetType(), family.GetName())
			continue
		}
		for _, metric := range family.GetMetric() {
			labels := make(map[string]string)
			for _, pair := range metric.GetLabel() {
				labels[pair.GetName()] = pair.GetValue()
			}
			if len(labels) != 4 || labels["http_server_name"] != serverName {
				t.Errorf("the labels are %v", labels)
			}
			counts[labels["http_method"]+" "+labels["http_route"]+" "+labels["http_status_code"]] += metric.GetHistogram().GetSampleCount()
		}
	}
	return counts
}

// Each request is counted and logged once, with nothing in it that the client chose.
func TestLabels(t *testing.T) {
	for _, test := range []struct{ method, path, want string }{
		{"GET", "/page", "GET /page 200"},
		{"GET", "/transportation/page", "GET /page 200"},
		{"GET", "/page?connection_pass=sesame", "GET /page 200"},
		{"GET", "/files/sesame/x", "GET /files/* 200"},
		{"GET", "/transportation/files/sesame", "GET /files/* 200"},
		{"GET", "/both", "GET /both 200"},
		{"GET", "/both/", "GET /both 200"},
		{"GET", "/sesame", "GET other 404"},
		{"GET", "/transportation/sesame", "GET other 404"},
		{"GET", "/transportation", "GET other 404"},
		{"GET", "/transportationpage", "GET other 404"},
		{"DELETE", "/page", "DELETE /page 405"},
		{"DELETE", "/transportation/page", "DELETE /page 405"},
		{"OPTIONS", "/page", "OPTIONS /page 405"},
		{"PREFLIGHT", "/transportation/page", "OPTIONS /page 200"},
		{"PREFLIGHT", "/sesame", "OPTIONS other 200"},
		{"SESAME", "/page", "other /page 405"},
		{"SESAME", "/sesame", "other other 404"},
		{"get", "/page", "other /page 405"},
		{"PROPFIND", "/page", "other /page 405"},
		{"GET", "/silent", "GET /silent 200"},
		{"GET", "/panic", "GET /panic 500"},
	} {
		t.Run(test.method+" "+test.path, func(t *testing.T) {
			b := newBench(Config{RootPath: "/transportation", ServerName: "gateway"}, []func(chi.Router){page, func(r chi.Router) {
				r.Get("/silent", func(http.ResponseWriter, *http.Request) {})
				r.Get("/panic", func(http.ResponseWriter, *http.Request) { panic("out of order") })
			}}, nil)
			request := httptest.NewRequest(test.method, test.path, nil)
			if test.method == "PREFLIGHT" {
				request.Method = http.MethodOptions
				request.Header.Set("Origin", "https://sesame.example")
				request.Header.Set("Access-Control-Request-Method", http.MethodPost)
			}
			request.Header.Set("X-Sesame", "sesame")
			request.Header.Set("User-Agent", "sesame")
			response := b.serve(request)
			if got := observations(t, b.registry, "gateway"); len(got) != 1 || got[test.want] != 1 {
				t.Errorf("observed %v, want %q once", got, test.want)
			}
			lines := b.logs.FilterMessage("request").FilterLevelExact(zap.InfoLevel).All()
			if len(lines) != 1 {
				t.Fatalf("%d lines in the access log, want 1", len(lines))
			}
			fields := lines[0].ContextMap()
			if got := strings.Join([]string{fields["method"].(string), fields["route"].(string)}, " "); !strings.HasPrefix(test.want, got+" ") {
				t.Errorf("logged %q, want it as in %q", got, test.want)
			}
			if fields["request_id"] != response.Header().Get("X-Request-Id") || fields["client"] != "192.0.2.1" || fields["status"] != int64(response.Code) || fields["bytes"] != int64(response.Body.Len()) {
				t.Errorf("logged %v", fields)
			}
			for name, value := range fields {
				if text, ok := value.(string); ok && strings.Contains(text, "sesame") {
					t.Errorf("%s holds what the client sent: %q", name, text)
				}
			}
		})
	}
}

func TestRequestID(t *testing.T) {
	b := newBench(Config{}, []func(chi.Router){page}, nil)
	seen := make(map[string]bool)
	for range 20 {
		request := httptest.NewRequest(http.MethodGet, "/page", nil)
		request.Header.Set("X-Request-Id", "forged")
		ids := b.serve(request).Header().Values("X-Request-Id")
		if len(ids) != 1 || len(ids[0]) < 16 || ids[0] == "forged" || seen[ids[0]] {
			t.Fatalf("the request ids are %q", ids)
		}
		seen[ids[0]] = true
	}
}

func TestSecurityHeaders(t *testing.T) {
	b := newBench(Config{}, []func(chi.Router){page}, nil)
	for _, path := range []string{"/page", "/nothing"} {
		header := b.serve(httptest.NewRequest(http.MethodGet, path, nil)).Header()
		if header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s is answered with %v", path, header)
		}
	}
}

func TestNotFound(t *testing.T) {
	b := newBench(Config{RootPath: "/transportation/"}, []func(chi.Router){page}, nil)
	for _, path := range []string{"/", "/nothing", "/page/", "/transportation", "/transportation/", "/transportation/nothing", "/transportation/transportation/page", "/transportationx/page"} {
		mustBeProblem(t, b.serve(httptest.NewRequest(http.MethodGet, path, nil)), http.StatusNotFound, "Not found.")
	}
}

func TestMethodNotAllowed(t *testing.T) {
	b := newBench(Config{RootPath: "/transportation"}, []func(chi.Router){page}, nil)
	for path, allow := range map[string]string{"/page": "GET, POST", "/transportation/page": "GET, POST", "/files/x": "GET"} {
		response := b.serve(httptest.NewRequest(http.MethodDelete, path, nil))
		mustBeProblem(t, response, http.StatusMethodNotAllowed, "Method not allowed.")
		if got := response.Header().Get("Allow"); got != allow {
			t.Errorf("%s: Allow is %q, want %q", path, got, allow)
		}
	}
}

func TestRootPath(t *testing.T) {
	for _, test := range []struct {
		rootPath, path, want string // want "": 404
	}{
		{"", "/page", "hello"},
		{"", "/transportation/page", ""},
		{"/", "/page", "hello"},
		{"/", "//page", ""},
		{"/transportation", "/page", "hello"},
		{"/transportation", "/transportation/page", "hello"},
		{"/transportation/", "/transportation/page", "hello"},
		{"transportation", "/transportation/page", "hello"},
		{"/a/b", "/a/b/page", "hello"},
		{"/a/b", "/a/page", ""},
		{"/transportation", "/transportation/both", "without"},
		{"/transportation", "/transportation/both/", "with"},
		{"/transportation", "/transportation/files/a/b", "a/b"},
		{"/transportation", "/transportation/files/transportation/x", "transportation/x"},
		{"/transportation", "/transportation/files/a%2Fb", "a%2Fb"},
		{"/transportation", "/TRANSPORTATION/page", ""},
	} {
		b := newBench(Config{RootPath: test.rootPath}, []func(chi.Router){page}, nil)
		response := b.serve(httptest.NewRequest(http.MethodGet, test.path, nil))
		if test.want == "" {
			if response.Code != http.StatusNotFound {
				t.Errorf("%s under %q is answered with %d, want 404", test.path, test.rootPath, response.Code)
			}
		} else if got := response.Body.String(); response.Code != http.StatusOK || got != test.want {
			t.Errorf("%s under %q is answered with %d %q, want %q", test.path, test.rootPath, response.Code, got, test.want)
		}
	}
}

// The routes of the document and of the router are compared by walking this.
func TestHandlerCanBeWalked(t *testing.T) {
	b := newBench(Config{RootPath: "/transportation"}, []func(chi.Router){page}, nil)
	routes, ok := b.Handler().(chi.Routes)
	if !ok {
		t.Fatal("the handler is no chi.Routes")
	}
	found := make(map[string]bool)
	err := chi.Walk(routes, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		found[method+" "+route] = true
		return nil
	})
	if err != nil || len(found) != 5 || !found["POST /page"] || !found["GET /both/"] {
		t.Errorf("found %v, %v", found, err)
	}
}

func TestCORS(t *testing.T) {
	const friend, foe = "http://localhost:3000", "http://evil.example"
	b := newBench(Config{RootPath: "/transportation", CORSOrigins: []string{"http://localhost", friend, "https://Chat.example.com"}}, []func(chi.Router){page}, nil)
	for _, test := range []struct{ origin, allowed string }{
		{friend, friend},
		{"http://localhost", "http://localhost"},
		{"https://chat.example.com", "https://chat.example.com"},
		{foe, ""},
		{"http://localhost:3001", ""},
		{"https://localhost:3000", ""},
		{"http://localhost:3000.evil.example", ""},
		{"null", ""},
		{"*", ""},
		{"", ""},
	} {
		for _, path := range []string{"/page", "/transportation/page", "/nothing"} {
			t.Run(test.origin+" "+path, func(t *testing.T) {
				request := httptest.NewRequest(http.MethodGet, path, nil)
				if test.origin != "" {
					request.Header.Set("Origin", test.origin)
				}
				header := b.serve(request).Header()
				if got := header.Get("Access-Control-Allow-Origin"); got != test.allowed {
					t.Errorf("Access-Control-Allow-Origin is %q, want %q", got, test.allowed)
				}
				if got := header.Get("Access-Control-Allow-Credentials"); (got == "true") != (test.allowed != "") {
					t.Errorf("Access-Control-Allow-Credentials is %q", got)
				}
				if got := header.Get("Vary"); got != "Origin" {
					t.Errorf("Vary is %q, want Origin", got)
				}
				if got := header.Get("Access-Control-Expose-Headers"); test.allowed != "" && got != "Retry-After, X-Request-Id" {
					t.Errorf("Access-Control-Expose-Headers is %q", got)
				}

				preflight := httptest.NewRequest(http.MethodOptions, path, nil)
				preflight.Header.Set("Access-Control-Request-Method", http.MethodPost)
				preflight.Header.Set("Access-Control-Request-Headers", "authorization,content-type,x-custom")
				if test.origin == "" {
					return
				}
				preflight.Header.Set("Origin", test.origin)
				response := b.serve(preflight)
				header = response.Header()
				if response.Code != http.StatusOK || header.Get("Access-Control-Allow-Origin") != test.allowed {
					t.Errorf("the preflight is answered with %d, %v", response.Code, header)
				}
				if test.allowed != "" && (header.Get("Access-Control-Allow-Methods") != "POST" ||
					!strings.EqualFold(header.Get("Access-Control-Allow-Headers"), "authorization, content-type, x-custom") ||
					header.Get("Access-Control-Allow-Credentials") != "true") {
					t.Errorf("the preflight is answered with %v", header)
				}
				if vary := header.Values("Vary"); len(vary) == 0 || vary[0] != "Origin" {
					t.Errorf("Vary of the preflight is %q", vary)
				}
			})
		}
	}
}

// No origins means none, not all; and "*" is no origin.
func TestCORSWithoutOrigins(t *testing.T) {
	for _, origins := range [][]string{nil, {"*"}} {
		b := newBench(Config{CORSOrigins: origins}, []func(chi.Router){page}, nil)
		request := httptest.NewRequest(http.MethodGet, "/page", nil)
		request.Header.Set("Origin", "http://evil.example")
		if got := b.serve(request).Header().Get("Access-Control-Allow-Origin"); got != "" {
			t.Errorf("with origins %q, Access-Control-Allow-Origin is %q", origins, got)
		}
	}
}

// Handlers find the client in RemoteAddr, whatever stands before the service.
func TestRemoteAddr(t *testing.T) {
	route := func(r chi.Router) {
		r.Get("/", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) })
	}
	b := newBench(Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, []func(chi.Router){route}, nil)
	for _, test := range []struct{ peer, want string }{
		{"192.0.2.1:1234", "198.51.100.7:0"},
		{"203.0.113.9:1234", "203.0.113.9:1234"},
		{"@", "@"},
	} {
		request := httptest.NewRequest(http.MethodGet, "/", nil)
		request.RemoteAddr = test.peer
		request.Header["X-Forwarded-For"] = []string{"8.8.8.8", "198.51.100.7"}
		if got := b.serve(request).Body.String(); got != test.want {
			t.Errorf("from %s, RemoteAddr is %s, want %s", test.peer, got, test.want)
		}
	}
}

func TestPanicIsLoggedOnce(t *testing.T) {
	b := newBench(Config{}, []func(chi.Router){func(r chi.Router) {
		r.Get("/before", func(http.ResponseWriter, *http.Request) { panic("out of order") })
		r.Get("/during", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat("x", 10000))
			panic("out of order")
		})
		r.Get("/abort", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	}}, nil)
	b.start(t)
	url := "http://" + b.Addr().String()

	response, body := fetch(t, http.MethodGet, url+"/before")
	if response.StatusCode != http.StatusInternalServerError || strings.Contains(body, "out of order") {
		t.Errorf("answered %s, %s", response.Status, body)
	}
	// An answer that had begun must not look complete.
	for _, path := range []string{"/during", "/abort"} {
		response, err := http.Get(url + path)
		if err == nil {
			_, err = io.ReadAll(response.Body)
			_ = response.Body.Close()
		}
		if err == nil {
			t.Errorf("%s: the answer looks complete", path)
		}
	}
	if n := b.logs.FilterMessage("a handler panicked").FilterLevelExact(zap.ErrorLevel).Len(); n != 2 {
		t.Errorf("2 panics are logged %d times", n)
	}
	if n := b.logs.FilterMessage("request").Len(); n != 3 {
		t.Errorf("3 requests have %d lines in the access log", n)
	}
}
