package httpapi

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Middlewares see the requests of public routes, with their route, under both paths and
// in their order, and no others.
func TestMiddlewares(t *testing.T) {
	var seen []string
	note := func(name string) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				seen = append(seen, name+" "+chi.RouteContext(r.Context()).RoutePattern())
				next.ServeHTTP(w, r)
			})
		}
	}
	page := func(pattern string) func(chi.Router) {
		return func(r chi.Router) { r.Get(pattern, func(http.ResponseWriter, *http.Request) {}) }
	}
	for _, admin := range []string{"", "127.0.0.1:0"} {
		registry := prometheus.NewRegistry()
		server := NewServer(Config{RootPath: "/root", AdminAddr: admin},
			[]func(chi.Router){page("/page/{id}"), page("/other")}, []func(chi.Router){page("/healthz")}, zap.NewNop(), registry, note("a"), note("b"))
		for _, c := range []struct {
			path string
			want []string
		}{
			{"/page/1", []string{"a /page/{id}", "b /page/{id}"}},
			{"/root/page/1", []string{"a /page/{id}", "b /page/{id}"}},
			{"/other", []string{"a /other", "b /other"}},
			{"/nowhere", nil},
			{"/healthz", nil},
		} {
			seen = nil
			server.Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, c.path, nil))
			if !slices.Equal(seen, c.want) {
				t.Errorf("admin address %q, %s: the middlewares saw %q, want %q", admin, c.path, seen, c.want)
			}
		}
		if counts := observations(t, registry, ""); counts["GET /page/{id} 200"] != 2 {
			t.Errorf("counted %v", counts)
		}
	}
}
