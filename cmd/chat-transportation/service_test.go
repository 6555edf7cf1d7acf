package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/go-chi/chi/v5"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/fx"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/config"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/httpapi"
)

// run starts the service in this process and returns its server and a function that
// stops it.
func run(t *testing.T, env map[string]string, log *zap.Logger) (*httpapi.Server, func()) {
	t.Helper()
	env["HTTP_ADDR"] = "127.0.0.1:0"
	cfg, err := config.From(envconfig.MapLookuper(env))
	if err != nil {
		t.Fatal(err)
	}
	var server *httpapi.Server
	running := fx.New(service(cfg, log), fx.Populate(&server))
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if err := running.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return server, func() {
		ctx, cancel := context.WithTimeout(context.Background(), cfg.Shutdown.Total)
		defer cancel()
		if err := running.Stop(ctx); err != nil {
			t.Error(err)
		}
	}
}

// TestHookOrder compares the order in which the parts start and stop with the list
// that docs/architecture.md explains.
func TestHookOrder(t *testing.T) {
	for _, c := range []struct {
		name string
		env  map[string]string
		want []string
	}{
		{"demo", map[string]string{}, []string{"demo.(*Broker)", "demo.(*Backend)", "httpapi.(*Server)", "hub.(*Drain)"}},
		{"demo, metrics and traces", map[string]string{"OPENTELEMETRY_COLLECTOR_URL": "127.0.0.1:1", "OPENTELEMETRY_TRACES": "true"},
			[]string{"metrics.(*Push)", "tracing.(*Tracer)", "demo.(*Broker)", "demo.(*Backend)", "httpapi.(*Server)", "hub.(*Drain)"}},
		{"rabbit", map[string]string{
			"KEY": testKey, "RABBITMQ_URL": "amqp://127.0.0.1:1/", "REDIS_URL": "redis://127.0.0.1:1/",
		}, []string{"authpass.(*RedisStore)", "rabbit.(*Publisher)", "rabbit.(*Inboxes)", "httpapi.(*Server)", "hub.(*Drain)"}},
		{"rabbit, metrics and traces", map[string]string{
			"KEY": testKey, "RABBITMQ_URL": "amqp://127.0.0.1:1/", "REDIS_URL": "redis://127.0.0.1:1/",
			"OPENTELEMETRY_COLLECTOR_URL": "127.0.0.1:1", "OPENTELEMETRY_TRACES": "true",
		}, []string{"metrics.(*Push)", "tracing.(*Tracer)", "authpass.(*RedisStore)", "rabbit.(*Publisher)", "rabbit.(*Inboxes)", "httpapi.(*Server)", "hub.(*Drain)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			core, logs := observer.New(zap.DebugLevel)
			_, stop := run(t, c.env, zap.New(core))
			stop()
			started := hooks(logs, "OnStart hook executing", ".Start-fm()")
			stopped := hooks(logs, "OnStop hook executing", ".Stop-fm()")
			if !slices.Equal(started, c.want) {
				t.Errorf("start order %q, want %q", started, c.want)
			}
			slices.Reverse(stopped)
			if !slices.Equal(stopped, c.want) {
				t.Errorf("stop order, reversed, %q, want %q", stopped, c.want)
			}
		})
	}
}

func hooks(logs *observer.ObservedLogs, message, suffix string) (names []string) {
	for _, entry := range logs.FilterMessage(message).All() {
		callee, _ := entry.ContextMap()["callee"].(string)
		callee = callee[strings.LastIndex(callee, "/")+1:]
		names = append(names, strings.TrimSuffix(callee, suffix))
	}
	return names
}

// document loads the OpenAPI document that the server itself serves.
func document(t *testing.T, server http.Handler) *openapi3.T {
	t.Helper()
	answer := httptest.NewRecorder()
	server.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	doc, err := openapi3.NewLoader().LoadFromData(answer.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return doc
}

// TestRoutesAreTheDocumentedOnes compares the routes that the server has with the paths
// of the OpenAPI document, and asks for each of them under ROOT_PATH too.
func TestRoutesAreTheDocumentedOnes(t *testing.T) {
	server, stop := run(t, map[string]string{}, zap.NewNop())
	defer stop()
	documented := make(map[string]bool)
	for path, item := range document(t, server.Handler()).Paths.Map() {
		for method := range item.Operations() {
			documented[method+" "+trimSlash(path)] = true
		}
	}
	routes, ok := server.Handler().(chi.Routes)
	if !ok {
		t.Fatalf("the handler is a %T", server.Handler())
	}
	served := make(map[string]bool)
	err := chi.Walk(routes, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if method != http.MethodHead {
			served[method+" "+trimSlash(route)] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for operation := range served {
		if !documented[operation] {
			t.Errorf("%s is served and not documented", operation)
		}
		_, path, _ := strings.Cut(operation, " /")
		first, _, _ := strings.Cut(path, "/")
		if _, err := config.From(envconfig.MapLookuper(map[string]string{"ROOT_PATH": "/" + first})); err == nil {
			t.Errorf("ROOT_PATH may be /%s, which would hide %s", first, operation)
		}
	}
	for operation := range documented {
		if !served[operation] {
			t.Errorf("%s is documented and not served", operation)
		}
		method, path, _ := strings.Cut(operation, " ")
		path = strings.Replace(path, "{asset}", "swagger-ui.css", 1)
		answer := httptest.NewRecorder()
		server.Handler().ServeHTTP(answer, httptest.NewRequest(method, "/transportation"+path, nil))
		if answer.Code == http.StatusNotFound || answer.Code == http.StatusMethodNotAllowed {
			t.Errorf("%s under the root path: %d", operation, answer.Code)
		}
	}
}

// TestContractsMetricsAreThereFromTheStart asks for each name of the wire contract's
// section 6 before anything has happened; a dashboard must not have to wait for the first
// fault.
func TestContractsMetricsAreThereFromTheStart(t *testing.T) {
	for mode, env := range map[string]map[string]string{
		"demo":   {},
		"rabbit": {"KEY": testKey, "RABBITMQ_URL": "amqp://127.0.0.1:1/"},
	} {
		t.Run(mode, func(t *testing.T) {
			server, stop := run(t, env, zap.NewNop())
			defer stop()
			get := func(path string) string {
				answer := httptest.NewRecorder()
				server.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
				return answer.Body.String()
			}
			get("/healthz") // a histogram of requests needs one
			page := get("/metrics")
			for name, kind := range map[string]string{
				"http_server_duration_milliseconds":  "histogram",
				"websocket_hub_active_connections":   "gauge",
				"websocket_hub_active_users":         "gauge",
				"websocket_closes_total":             "counter",
				"websocket_messages_received_total":  "counter",
				"websocket_messages_delivered_total": "counter",
				"websocket_deliveries_dropped_total": "counter",
				"rabbitmq_publish_confirm_seconds":   "histogram",
				"rabbitmq_connected":                 "gauge",
				"rabbitmq_reconnects_total":          "counter",
				"connection_passes_issued_total":     "counter",
				"connection_passes_redeemed_total":   "counter",
				"go_goroutines":                      "gauge",
				"process_start_time_seconds":         "gauge",
			} {
				if !strings.Contains(page, "\n# TYPE "+name+" "+kind+"\n") {
					t.Errorf("there is no %s %s", kind, name)
				}
			}
		})
	}
}

// trimSlash makes one of the two spellings of a route.
func trimSlash(route string) string { return strings.TrimSuffix(route, "/") }

// TestAnswersAreAsDocumented sends requests of every kind and holds the real answers
// against the OpenAPI document.
func TestAnswersAreAsDocumented(t *testing.T) {
	server, stop := run(t, map[string]string{"PASS_REQUESTS_PER_MINUTE": "2"}, zap.NewNop())
	defer stop()
	doc := document(t, server.Handler())
	doc.Servers = nil // the router would match hosts
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	demoToken := func() string {
		answer := httptest.NewRecorder()
		request := httptest.NewRequest(http.MethodPost, "/demo/token", strings.NewReader(`{"user_id":1}`))
		request.Header.Set("Content-Type", "application/json")
		server.Handler().ServeHTTP(answer, request)
		_, rest, _ := strings.Cut(answer.Body.String(), `"access_token":"`)
		token, _, _ := strings.Cut(rest, `"`)
		return token
	}()
	pass := func(h http.Header) { h.Set("Authorization", "Bearer "+demoToken) }
	upgrade := func(h http.Header) {
		h.Set("Connection", "Upgrade")
		h.Set("Upgrade", "websocket")
		h.Set("Sec-WebSocket-Version", "13")
		h.Set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")
	}
	for _, c := range []struct {
		method, path, body string
		header             func(http.Header)
		want               int
	}{
		{"POST", "/messages/get-connection-pass", "", pass, 200},
		{"POST", "/messages/get-connection-pass", "", pass, 200},
		{"POST", "/messages/get-connection-pass", "", pass, 429},
		{"POST", "/messages/get-connection-pass", "", nil, 401},
		{"GET", "/messages/", "", nil, 426},
		{"GET", "/messages/", "", func(h http.Header) { upgrade(h); h.Set("Sec-WebSocket-Key", "x") }, 400},
		{"GET", "/messages/", "", func(h http.Header) { upgrade(h); h.Set("Origin", "https://elsewhere.example") }, 403},
		{"GET", "/docs", "", nil, 200},
		{"GET", "/docs/asyncapi", "", nil, 200},
		{"GET", "/docs/asyncapi.yaml", "", nil, 200},
		{"GET", "/docs/openapi.yaml", "", nil, 200},
		{"GET", "/openapi.json", "", nil, 200},
		{"GET", "/healthz", "", nil, 200},
		{"GET", "/readyz", "", nil, 200},
		{"GET", "/metrics", "", nil, 200},
		{"GET", "/demo", "", nil, 200},
		{"POST", "/demo/token", `{"user_id":1}`, nil, 200},
		{"POST", "/demo/token", `{"user_id":0}`, nil, 400},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			request := httptest.NewRequest(c.method, "http://localhost"+c.path, strings.NewReader(c.body))
			if c.body != "" {
				request.Header.Set("Content-Type", "application/json")
			}
			if c.header != nil {
				c.header(request.Header)
			}
			answer := httptest.NewRecorder()
			server.Handler().ServeHTTP(answer, request)
			if answer.Code != c.want {
				t.Fatalf("status %d, want %d: %s", answer.Code, c.want, answer.Body)
			}
			route, parameters, err := router.FindRoute(request)
			if err != nil {
				t.Fatal(err)
			}
			validate(t, request, route, parameters, answer)
		})
	}
}

func validate(t *testing.T, request *http.Request, route *routers.Route, parameters map[string]string, answer *httptest.ResponseRecorder) {
	t.Helper()
	options := &openapi3filter.Options{
		IncludeResponseStatus: true,
		AuthenticationFunc:    openapi3filter.NoopAuthenticationFunc,
		// Pages and YAML are text; only JSON has a schema.
		ExcludeResponseBody: !strings.Contains(answer.Header().Get("Content-Type"), "json"),
	}
	input := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: request, PathParams: parameters, Route: route, Options: options},
		Status:                 answer.Code,
		Header:                 answer.Header(),
		Options:                options,
	}
	input.SetBodyBytes(answer.Body.Bytes())
	if err := openapi3filter.ValidateResponse(t.Context(), input); err != nil {
		t.Error(err)
	}
}

// TestDemoRoutesAreOnlyThereInDemoMode looks for them with a broker configured.
func TestDemoRoutesAreOnlyThereInDemoMode(t *testing.T) {
	server, stop := run(t, map[string]string{"KEY": testKey, "RABBITMQ_URL": "amqp://127.0.0.1:1/"}, zap.NewNop())
	defer stop()
	for _, path := range []string{"/demo", "/demo/", "/demo/token", "/transportation/demo", "/transportation/demo/token"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			answer := httptest.NewRecorder()
			server.Handler().ServeHTTP(answer, httptest.NewRequest(method, path, strings.NewReader(`{"user_id":1}`)))
			if answer.Code != http.StatusNotFound {
				t.Errorf("%s %s: %d", method, path, answer.Code)
			}
		}
	}
}

// TestReadmeNamesEveryVariable holds the README's table against what is read.
func TestReadmeNamesEveryVariable(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, variable := range config.Variables() {
		if !strings.Contains(string(readme), "`"+variable.Name+"`") {
			t.Errorf("%s is not in the README", variable.Name)
		}
	}
}

func TestLocalAddress(t *testing.T) {
	for address, want := range map[string]string{
		":8001": "localhost:8001", "0.0.0.0:80": "localhost:80", "[::]:80": "localhost:80",
		"127.0.0.2:80": "127.0.0.2:80", "[::1]:80": "[::1]:80", "chat.example:80": "chat.example:80",
	} {
		if got := localAddress(address); got != want {
			t.Errorf("localAddress(%q) = %q, want %q", address, got, want)
		}
	}
}

func TestTokenCommand(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("KEY", "")
	var stdout, stderr strings.Builder
	if code := printToken([]string{"-user", "42"}, &stdout, &stderr); code != exitFailed || stdout.Len() != 0 {
		t.Errorf("without KEY: exit code %d, %q", code, stdout.String())
	}
	t.Setenv("KEY", testKey)
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"-user", "42"}, exitOK},
		{[]string{"-user", "42", "-ttl", "5m"}, exitOK},
		{[]string{"-user", "0"}, exitUsage},
		{[]string{"-user", "42", "-ttl", "-5m"}, exitUsage},
		{[]string{"42"}, exitUsage},
		{nil, exitUsage},
	} {
		var stdout, stderr strings.Builder
		if code := printToken(c.args, &stdout, &stderr); code != c.want {
			t.Errorf("%q: exit code %d, %s", c.args, code, stderr.String())
		}
		if parts := strings.Count(stdout.String(), "."); (c.want == exitOK) != (parts == 2) {
			t.Errorf("%q prints %q", c.args, stdout.String())
		}
	}
}

// TestSignalIsNoFailure: a signal reaches the program by two ways, and whichever is looked
// at first, it is one signal and no failure.
func TestSignalIsNoFailure(t *testing.T) {
	for range 200 {
		signals, ends := make(chan os.Signal, 2), make(chan fx.ShutdownSignal, 1)
		signals <- syscall.SIGTERM
		ends <- fx.ShutdownSignal{Signal: syscall.SIGTERM}
		if received, failed := awaitEnd(signals, ends); failed || received != syscall.SIGTERM {
			t.Fatalf("%v, failed: %t", received, failed)
		}
		if len(signals) > 0 {
			t.Fatal("the signal would count twice, and end the process at once")
		}
	}
	ends := make(chan fx.ShutdownSignal, 1)
	ends <- fx.ShutdownSignal{Signal: syscall.SIGTERM, ExitCode: 1}
	if _, failed := awaitEnd(nil, ends); !failed {
		t.Error("a part that failed is taken for a signal")
	}
}
