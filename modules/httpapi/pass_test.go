package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

func newPassBench(t *testing.T, policy app.PassPolicy) (*bench, *Passes, *passes) {
	t.Helper()
	issue, store := newIssuer(t, policy)
	route := NewPasses(issue, prometheus.NewRegistry())
	return newBench(Config{RootPath: "/transportation", CORSOrigins: []string{"http://localhost:3000"}}, []func(chi.Router){route.Routes}, nil), route, store
}

func passRequest(path string, authorization ...string) *http.Request {
	request := httptest.NewRequest(http.MethodPost, path, nil)
	request.Header["Authorization"] = authorization
	return request
}

const passPath = "/messages/get-connection-pass"

func TestPassIssued(t *testing.T) {
	b, route, store := newPassBench(t, app.PassPolicy{Length: 40, Lifetime: 45 * time.Second})
	for i, request := range []*http.Request{
		passRequest(passPath, "Bearer "+goodToken),
		passRequest("/transportation"+passPath, "bearer "+goodToken),
		passRequest(passPath, "BEARER   "+goodToken),
	} {
		response := b.serve(request)
		if response.Code != http.StatusOK {
			t.Fatalf("answered %d: %s", response.Code, response.Body)
		}
		for name, want := range map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store", "Pragma": "no-cache"} {
			if got := response.Header().Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		var body map[string]any
		if err := json.Unmarshal(response.Body.Bytes(), &body); err != nil || len(body) != 2 || body["expires_in"] != 45.0 {
			t.Fatalf("the body is %s", response.Body)
		}
		text, _ := body["connection_pass"].(string)
		pass, err := domain.ParseConnectionPass(text)
		if err != nil || len(text) != 40 {
			t.Fatalf("the pass is %q", text)
		}
		if grant, kept := store.kept[pass]; !kept || grant.User.Int64() != 42 {
			t.Errorf("the store has %+v, %t", grant, kept)
		}
		if got := testutil.ToFloat64(route.issued); got != float64(i+1) {
			t.Errorf("%v passes are counted, want %d", got, i+1)
		}
		for _, entry := range b.logs.All() {
			if line, err := json.Marshal(entry.ContextMap()); err != nil || strings.Contains(string(line), text) || strings.Contains(string(line), goodToken) {
				t.Errorf("a secret is in the log: %s, %v", line, err)
			}
		}
	}
}

func TestPassRefused(t *testing.T) {
	b, route, store := newPassBench(t, app.PassPolicy{Length: 32, Lifetime: time.Second})
	for name, authorization := range map[string][]string{
		"no header":           nil,
		"empty":               {""},
		"scheme only":         {"Bearer"},
		"scheme and space":    {"Bearer "},
		"no scheme":           {goodToken},
		"another scheme":      {"Basic " + goodToken},
		"no space":            {"Bearer" + goodToken},
		"a tab":               {"Bearer\t" + goodToken},
		"another prefix":      {"XBearer " + goodToken},
		"two tokens":          {"Bearer " + goodToken + " " + goodToken},
		"two tokens, a comma": {"Bearer " + goodToken + ", Bearer " + goodToken},
		"two headers":         {"Bearer " + goodToken, "Bearer " + goodToken},
		"padding only":        {"Bearer ==="},
		"padding inside":      {"Bearer good=.token"},
		"parameters":          {`Bearer token="` + goodToken + `"`},
		"not ASCII":           {"Bearer " + goodToken + "é"},
		"unknown token":       {"Bearer unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			request := passRequest(passPath, authorization...)
			request.Header.Set("Origin", "http://localhost:3000")
			response := b.serve(request)
			mustBeProblem(t, response, http.StatusUnauthorized, "Authentication exception.")
			if got := response.Header().Values("Www-Authenticate"); len(got) != 1 || got[0] != "Bearer" {
				t.Errorf("WWW-Authenticate is %q", got)
			}
			if got := response.Header().Get("Access-Control-Allow-Origin"); got != "http://localhost:3000" {
				t.Errorf("Access-Control-Allow-Origin is %q", got)
			}
			if got := response.Header().Values("Vary"); len(got) != 1 || got[0] != "Origin" {
				t.Errorf("Vary is %q", got)
			}
		})
	}
	if len(store.kept) != 0 || testutil.ToFloat64(route.issued) != 0 {
		t.Errorf("%d passes were issued", len(store.kept))
	}
}

func TestPassUnavailable(t *testing.T) {
	b, route, store := newPassBench(t, app.PassPolicy{Length: 32, Lifetime: time.Second})
	store.err = app.ErrPassStoreUnavailable
	response := b.serve(passRequest(passPath, "Bearer "+goodToken))
	mustBeProblem(t, response, http.StatusServiceUnavailable, "Service unavailable.")
	if response.Header().Get("Retry-After") == "" {
		t.Error("there is no Retry-After")
	}
	if n := testutil.ToFloat64(route.issued); n != 0 {
		t.Errorf("%v passes are counted", n)
	}
	if n := b.logs.FilterLevelExact(zap.ErrorLevel).Len(); n != 0 {
		t.Errorf("an outage of the store is logged %d times by each request", n)
	}
}

func TestPassRateLimit(t *testing.T) {
	b, _, _ := newPassBench(t, app.PassPolicy{Length: 32, Lifetime: time.Second, RequestsPerMinute: 2})
	for range 2 {
		if response := b.serve(passRequest(passPath, "Bearer "+goodToken)); response.Code != http.StatusOK {
			t.Fatalf("answered %d", response.Code)
		}
	}
	response := b.serve(passRequest(passPath, "Bearer "+goodToken))
	mustBeProblem(t, response, http.StatusTooManyRequests, "Rate limit exceeded.")
	if got := response.Header().Get("Retry-After"); got != "60" {
		t.Errorf("Retry-After is %q, want 60", got)
	}
}

// ready stands for a broker that is there.
type ready struct {
	app.Publisher
	app.Inboxes
}

func (ready) Available() error            { return nil }
func (ready) Check(context.Context) error { return nil }

// An instance past its admission limit says so to everybody, with a token or without.
func TestPassWhileOverloaded(t *testing.T) {
	_, store := newIssuer(t, app.PassPolicy{})
	connect := app.NewConnect(store, ready{}, ready{}, app.ConnectLimits{ConnectsPerSecond: 1})
	issue := app.NewIssuePass(tokens{}, store, app.PassPolicy{Length: 32, Lifetime: time.Second}, connect)
	b := newBench(Config{}, []func(chi.Router){NewPasses(issue, prometheus.NewRegistry()).Routes}, nil)
	for {
		if _, over := connect.Overloaded(); over {
			break
		}
		_, _ = connect.Admit(t.Context(), app.Attempt{})
	}
	for _, authorization := range [][]string{nil, {"Bearer unknown"}, {"Basic x"}} {
		response := b.serve(passRequest(passPath, authorization...))
		mustBeProblem(t, response, http.StatusTooManyRequests, "Rate limit exceeded.")
		if response.Header().Get("Retry-After") == "" {
			t.Error("there is no Retry-After")
		}
	}
}

// The contract names POST and no slash at the end.
func TestPassOtherRequests(t *testing.T) {
	b, _, _ := newPassBench(t, app.PassPolicy{Length: 32, Lifetime: time.Second})
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodOptions, "BREW"} {
		response := b.serve(httptest.NewRequest(method, passPath, nil))
		mustBeProblem(t, response, http.StatusMethodNotAllowed, "Method not allowed.")
		if got := response.Header().Get("Allow"); got != "POST" {
			t.Errorf("%s: Allow is %q, want POST", method, got)
		}
	}
	mustBeProblem(t, b.serve(passRequest(passPath+"/", "Bearer "+goodToken)), http.StatusNotFound, "Not found.")
}

func FuzzBearer(f *testing.F) {
	for _, seed := range []string{"Bearer abc", "bearer   a.b-c_d~e+f/g==", "Basic x", "Bearer", "Bearer a b", "Bearer \x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		token, err := bearerToken(http.Header{"Authorization": {value}})
		if err != nil {
			if !errors.Is(err, app.ErrUnauthenticated) || token != "" {
				t.Fatalf("%q: %q, %v", value, token, err)
			}
			return
		}
		if !strings.HasSuffix(value, " "+token) || !strings.EqualFold(strings.TrimRight(value[:len(value)-len(token)], " "), "bearer") {
			t.Fatalf("%q: the token is %q", value, token)
		}
		if strings.ContainsAny(token, " \t\r\n,;\"\x00") || strings.Trim(token, "=") == "" {
			t.Fatalf("%q: %q is no token", value, token)
		}
	})
}
