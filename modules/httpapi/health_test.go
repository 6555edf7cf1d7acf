package httpapi

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/go-chi/chi/v5"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

func check(name string, err error) app.Check {
	return app.Check{Name: name, Probe: func(context.Context) error { return err }}
}

func TestHealth(t *testing.T) {
	for _, test := range []struct {
		name, path string
		checks     []app.Check
		status     int
		body       string
	}{
		{"alive", "/healthz", []app.Check{check("broker", errors.New("away"))}, 200, `{"status":"ok"}`},
		{"ready", "/readyz", []app.Check{check("broker", nil), check("pass_store", nil)}, 200,
			`{"status":"ready","checks":{"broker":"ok","pass_store":"ok"}}`},
		{"not ready", "/readyz", []app.Check{check("broker", errors.New("away")), check("pass_store", nil)}, 503,
			`{"status":"not ready","checks":{"broker":"away","pass_store":"ok"}}`},
		{"no checks", "/readyz", nil, 200, `{"status":"ready","checks":{}}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(Config{RootPath: "/transportation"}, nil, []func(chi.Router){NewHealth(app.NewReadiness(test.checks)).Routes})
			for _, path := range []string{test.path, "/transportation" + test.path} {
				for _, method := range []string{http.MethodGet, http.MethodHead} {
					response := b.serve(httptest.NewRequest(method, path, nil))
					if response.Code != test.status {
						t.Errorf("%s %s is answered with %d, want %d", method, path, response.Code, test.status)
					}
					if got := response.Body.String(); method == http.MethodGet && got != test.body+"\n" {
						t.Errorf("%s is answered with %s, want %s", path, got, test.body)
					}
					if got := response.Header().Get("Cache-Control"); got != "no-store" {
						t.Errorf("Cache-Control is %q", got)
					}
				}
			}
			response := b.serve(httptest.NewRequest(http.MethodPost, test.path, nil))
			mustBeProblem(t, response, http.StatusMethodNotAllowed, "Method not allowed.")
			if got := response.Header().Get("Allow"); got != "GET, HEAD" {
				t.Errorf("Allow is %q", got)
			}
		})
	}
}
