package httpapi

import (
	"net/http"
	"net/http/pprof"
	"strings"

	"github.com/go-chi/chi/v5"
)

// router returns the routes behind everything that each request goes through. They
// are served at the root and under rootPath alike; without one, at the root only.
func (f *front) router(rootPath string, routes []func(chi.Router)) chi.Router {
	router := chi.NewRouter()
	router.Use(
		f.begin,
		knowRoutes(router, rootPath),
		f.resolveClient,
		f.logAccess,
		f.measure,
		f.cors,
		secure,
		catchPanic,
	)
	router.NotFound(func(w http.ResponseWriter, _ *http.Request) { problemNotFound.write(w) })
	router.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		allowed := methodsFor(router, pathToRoute(r, rootPath))
		if len(allowed) == 0 {
			// chi calls this for a method that it does not know, wherever it goes.
			problemNotFound.write(w)
			return
		}
		// RFC 9110, section 15.5.6: the answer must have an Allow.
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		problemMethodNotAllowed.write(w)
	})
	for _, register := range routes {
		register(router)
	}
	return router
}

// behind returns the routes with the middlewares before each handler: behind the router,
// so that they know the route, and not before requests that find none.
func behind(middlewares []func(http.Handler) http.Handler, routes []func(chi.Router)) []func(chi.Router) {
	if len(middlewares) == 0 {
		return routes
	}
	guarded := make([]func(chi.Router), 0, len(routes))
	for _, register := range routes {
		guarded = append(guarded, func(r chi.Router) { register(r.With(middlewares...)) })
	}
	return guarded
}

// normalRootPath returns the path with a slash before it and none behind it; the
// root itself is empty.
func normalRootPath(path string) string {
	path = strings.Trim(path, "/")
	if path == "" {
		return ""
	}
	return "/" + path
}

// knowRoutes lets chi route what comes under rootPath as if it came at the root: so a
// route has one pattern under both, and the URL stays as the client sent it. And it lets
// the exchange find the route of its path also where no handler of it was called.
func knowRoutes(router chi.Routes, rootPath string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			path := pathToRoute(r, rootPath)
			if rootPath != "" {
				chi.RouteContext(r.Context()).RoutePath = path
			}
			exchangeOf(r).routeOf = func(method string) string {
				// As chi's RoutePattern has it: a slash at the end makes no other route.
				return strings.TrimSuffix(router.Find(chi.NewRouteContext(), method, path), "/")
			}
			next.ServeHTTP(w, r)
		})
	}
}

// pathToRoute returns the path of the request without rootPath.
func pathToRoute(r *http.Request, rootPath string) string {
	path := r.URL.Path
	if r.URL.RawPath != "" {
		// As chi does it: an escaped slash separates nothing.
		path = r.URL.RawPath
	}
	if rest, found := strings.CutPrefix(path, rootPath); found && (rest == "" || rest[0] == '/') {
		path = rest
	}
	if path == "" {
		return "/"
	}
	return path
}

// methodsFor returns the methods for which there is a route at path.
func methodsFor(router chi.Routes, path string) []string {
	var allowed []string
	for _, method := range methods {
		if router.Match(chi.NewRouteContext(), method, path) {
			allowed = append(allowed, method)
		}
	}
	return allowed
}

// methods are the methods of RFC 9110, section 9.3, and RFC 5789: the values that the
// label http_method can take besides "other".
var methods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
	http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace,
}

// profiling are the routes of net/http/pprof. They show memory and can make the
// process slow, so they are for the admin address only.
func profiling(r chi.Router) {
	r.HandleFunc("/debug/pprof", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/debug/pprof/", http.StatusMovedPermanently)
	})
	r.HandleFunc("/debug/pprof/*", pprof.Index)
	for name, handler := range map[string]http.HandlerFunc{
		"cmdline": pprof.Cmdline,
		"profile": pprof.Profile,
		"symbol":  pprof.Symbol,
		"trace":   pprof.Trace,
	} {
		r.HandleFunc("/debug/pprof/"+name, handler)
	}
}
