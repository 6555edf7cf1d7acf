package demo

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

func serve(t *testing.T, sign Signer, method, target, body string, header ...string) *http.Response {
	t.Helper()
	pages, err := NewPages(sign, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	router := chi.NewRouter()
	pages.Routes(router)
	router.Route("/transportation", pages.Routes)
	request := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	recorder := httptest.NewRecorder()
	router.ServeHTTP(recorder, request)
	return recorder.Result()
}

func signer(user domain.UserID) (string, error) { return "token of " + user.String(), nil }

func TestToken(t *testing.T) {
	for _, test := range []struct {
		name, body string
		status     int
		want       string
	}{
		{"a user", `{"user_id":1}`, 200, "token of 1"},
		{"the greatest id", ` {"user_id": 9223372036854775807} `, 200, "token of 9223372036854775807"},
		{"past 2^53", `{"user_id":9007199254740993}`, 200, "token of 9007199254740993"},
		{"other members", `{"a":[],"user_id":3}`, 200, "token of 3"},
		{"empty", ``, 400, ""},
		{"not JSON", `{user_id:1}`, 400, ""},
		{"not an object", `[1]`, 400, ""},
		{"missing", `{}`, 400, ""},
		{"another case", `{"USER_ID":1}`, 400, ""},
		{"null", `{"user_id":null}`, 400, ""},
		{"a string", `{"user_id":"1"}`, 400, ""},
		{"a fraction", `{"user_id":1.0}`, 400, ""},
		{"an exponent", `{"user_id":1e0}`, 400, ""},
		{"zero", `{"user_id":0}`, 400, ""},
		{"negative", `{"user_id":-1}`, 400, ""},
		{"too great", `{"user_id":9223372036854775808}`, 400, ""},
		{"twice", `{"user_id":1,"user_id":2}`, 400, ""},
		{"two values", `{"user_id":1}{"user_id":1}`, 400, ""},
		{"too long", `{"user_id":1,"x":"` + strings.Repeat("x", maxTokenRequest) + `"}`, 400, ""},
	} {
		for _, prefix := range []string{"", "/transportation"} {
			t.Run(test.name+prefix, func(t *testing.T) {
				response := serve(t, signer, "POST", prefix+"/demo/token", test.body)
				if response.StatusCode != test.status || response.Header.Get("Cache-Control") != "no-store" || response.Header.Get("Content-Type") != "application/json" {
					t.Fatalf("%d %v", response.StatusCode, response.Header)
				}
				var answer struct {
					AccessToken string `json:"access_token"`
					Detail      struct {
						Title   string            `json:"title"`
						Details map[string]string `json:"details"`
					} `json:"detail"`
				}
				if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
					t.Fatal(err)
				}
				if answer.AccessToken != test.want {
					t.Errorf("token %q, want %q", answer.AccessToken, test.want)
				}
				if (answer.Detail.Title != "" && answer.Detail.Details["non-field-error"] != "") != (test.status == 400) {
					t.Errorf("detail %+v", answer.Detail)
				}
			})
		}
	}
}

func TestTokenSignerFails(t *testing.T) {
	response := serve(t, func(domain.UserID) (string, error) { return "", errors.New("the key is s3cret") }, "POST", "/demo/token", `{"user_id":1}`)
	body, _ := io.ReadAll(response.Body)
	if response.StatusCode != 500 || strings.Contains(string(body), "s3cret") {
		t.Errorf("%d %s", response.StatusCode, body)
	}
}

func TestPage(t *testing.T) {
	response := serve(t, signer, "GET", "/transportation/demo", "")
	raw, _ := io.ReadAll(response.Body)
	page := string(raw)
	if response.StatusCode != 200 || response.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%d %v", response.StatusCode, response.Header)
	}
	policy := response.Header.Get("Content-Security-Policy")
	for _, directive := range []string{"default-src 'none'", "connect-src 'self'", "base-uri 'none'", "frame-ancestors 'none'"} {
		if !strings.Contains(policy, directive) {
			t.Errorf("the policy %q lacks %s", policy, directive)
		}
	}
	if strings.Contains(policy, "unsafe") {
		t.Errorf("the policy %q is not strict", policy)
	}
	// The hashes are those of what the browser sees, so they are taken from the page.
	for _, name := range []string{"style", "script"} {
		found := regexp.MustCompile(`(?s)<`+name+`>(.*)</`+name+`>`).FindAllStringSubmatch(page, -1)
		if len(found) != 1 {
			t.Fatalf("%d <%s> elements", len(found), name)
		}
		if !strings.Contains(policy, name+"-src "+cspHash([]byte(found[0][1]))) {
			t.Errorf("the policy does not allow the %s of the page", name)
		}
	}
	// Everything is relative, so it works under each prefix and asks no other host.
	for _, reference := range regexp.MustCompile(`(?:href|src|action)="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if strings.Contains(reference[1], "//") && !strings.HasPrefix(reference[1], "data:") || strings.HasPrefix(reference[1], "/") {
			t.Errorf("%q is not relative", reference[1])
		}
	}
	// The only absolute URL is the SVG namespace of the icon.
	for _, address := range regexp.MustCompile(`https?://[^'"\s]+`).FindAllString(page, -1) {
		if address != "http://www.w3.org/2000/svg" {
			t.Errorf("the page names %s", address)
		}
	}
	for _, danger := range []string{"innerHTML", "insertAdjacentHTML", "document.write", "eval("} {
		if strings.Contains(page, danger) {
			t.Errorf("the page uses %s", danger)
		}
	}
	// Nothing in the style or the script ends its element, or was left to fill in.
	for end, count := range map[string]int{"</style": 1, "</script": 1, "<!--": 0, "{{": 0} {
		if got := strings.Count(page, end); got != count {
			t.Errorf("the page has %d times %s, want %d", got, end, count)
		}
	}
	for _, id := range []string{"banner", "state", "close-detail", "toggle", "messages", "composer", "send", "frames"} {
		if !strings.Contains(page, `data-testid="`+id+`"`) {
			t.Errorf("the page lacks %s", id)
		}
	}

	again := serve(t, signer, "GET", "/demo", "", "If-None-Match", response.Header.Get("ETag"))
	if again.StatusCode != http.StatusNotModified {
		t.Errorf("with the ETag: %d", again.StatusCode)
	}
	slash := serve(t, signer, "GET", "/transportation/demo/", "")
	if location, err := slash.Location(); slash.StatusCode != 308 || err == nil && location.String() != "../demo" {
		t.Errorf("/demo/: %d %v", slash.StatusCode, location)
	}
}

// TestModule starts what the module provides, as main does.
func TestModule(t *testing.T) {
	var (
		publisher app.Publisher
		inboxes   app.Inboxes
		parts     struct {
			fx.In
			Checks []app.Check        `group:"checks"`
			Routes []func(chi.Router) `group:"routes"`
		}
	)
	running := fxtest.New(t, Module, fx.NopLogger,
		fx.Supply(zap.NewNop(), Signer(signer), fx.Annotate(prometheus.NewRegistry(), fx.As(new(prometheus.Registerer)))),
		fx.Populate(&publisher, &inboxes, &parts),
		fx.Invoke(func(*Broker, *Backend) {}),
	)
	running.RequireStart()
	defer running.RequireStop()
	if len(parts.Routes) != 1 {
		t.Errorf("%d routes", len(parts.Routes))
	}
	names := map[string]bool{}
	for _, check := range parts.Checks {
		names[check.Name] = true
		if err := check.Probe(t.Context()); err != nil {
			t.Errorf("%s: %v", check.Name, err)
		}
	}
	if !names["broker"] || !names["user_queues"] || len(names) != 2 {
		t.Errorf("checks %v", names)
	}
	if err := errors.Join(publisher.Available(), inboxes.Available()); err != nil {
		t.Error(err)
	}
}
