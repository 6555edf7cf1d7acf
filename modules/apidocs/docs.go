package apidocs

import (
	"embed"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/swaggest/swgui/v5/static"

	"github.com/aleksandrshaulskyi/chat-transportation/docs"
)

//go:embed page
var pageFiles embed.FS

// Content-Security-Policy of the pages: they load nothing from another host and run
// no script but their own files. Swagger UI sets style attributes and has its icons
// in data URLs.
const (
	swaggerPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
		"font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	asyncPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; base-uri 'none'; " +
		"form-action 'none'; frame-ancestors 'none'"
)

// Docs serves the documents. All is rendered when it is made; it is safe for
// concurrent use.
type Docs struct {
	config Config
	// openAPI and async are there for each prefix, "" and Config.RootPath.
	openAPI map[string]openAPI
	async   map[string]file
	// swagger by how the page is addressed: /docs and /docs/ are at different
	// depths, and every link is relative.
	swagger map[string]file
	raw     file
	assets  map[string]file
}

// New renders the documents. An error means that an embedded document is broken,
// which the tests of this package rule out.
func New(config Config) (*Docs, error) {
	config.RootPath = strings.TrimSuffix(config.RootPath, "/")
	d := &Docs{
		config:  config,
		openAPI: make(map[string]openAPI),
		async:   make(map[string]file),
		swagger: make(map[string]file),
		raw:     newFile("application/yaml", docs.AsyncAPI),
		assets:  make(map[string]file),
	}
	async, err := readAsyncAPI(docs.AsyncAPI)
	if err != nil {
		return nil, err
	}
	layouts, err := readLayouts()
	if err != nil {
		return nil, err
	}
	for _, prefix := range []string{"", config.RootPath} {
		if d.openAPI[prefix], err = renderOpenAPI(docs.OpenAPI, config, prefix); err != nil {
			return nil, err
		}
		p := page{root: "..", prefix: prefix, here: "asyncapi", demo: config.Demo, metrics: config.Metrics}
		d.async[prefix] = newPage(layouts.asyncPage(p, async), asyncPolicy)
	}
	for address, root := range map[string]string{"/docs": ".", "/docs/": ".."} {
		p := page{root: root, here: "openapi", demo: config.Demo, metrics: config.Metrics}
		d.swagger[address] = newPage(layouts.swaggerPage(p), swaggerPolicy)
	}
	return d, d.loadAssets()
}

func newPage(content markup, policy string) file {
	f := newFile("text/html; charset=utf-8", []byte(content))
	f.policy = policy
	return f
}

// loadAssets reads the style sheets and scripts: those of this package, and those of
// Swagger UI, which are compressed already.
func (d *Docs) loadAssets() error {
	const css, script = "text/css; charset=utf-8", "text/javascript; charset=utf-8"
	for name, contentType := range map[string]string{"docs.css": css, "docs.js": script} {
		body, err := pageFiles.ReadFile("page/" + name)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		d.assets[name] = newFile(contentType, body)
	}
	for name, contentType := range map[string]string{"swagger-ui.css": css, "swagger-ui-bundle.js": script} {
		body, err := static.FS.ReadFile(name + ".gz")
		if err != nil {
			return fmt.Errorf("read %s of Swagger UI: %w", name, err)
		}
		f := newFile(contentType, body)
		f.gzipped = true
		d.assets[name] = f
	}
	return nil
}

// Routes mounts the documents. It may be called for the root and for a router under
// Config.RootPath alike.
func (d *Docs) Routes(r chi.Router) {
	get := func(pattern string, serve http.Handler) {
		r.Method(http.MethodGet, pattern, serve)
		r.Method(http.MethodHead, pattern, serve)
	}
	byPrefix := func(path string, choose func(prefix string) file) {
		get(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			choose(d.prefix(r, path)).ServeHTTP(w, r)
		}))
	}
	byPrefix("/openapi.json", func(prefix string) file { return d.openAPI[prefix].json })
	byPrefix("/docs/openapi.yaml", func(prefix string) file { return d.openAPI[prefix].yaml })
	byPrefix("/docs/asyncapi", func(prefix string) file { return d.async[prefix] })
	get("/docs/asyncapi.yaml", d.raw)
	for address, page := range d.swagger {
		get(address, page)
	}
	get("/docs/{asset}", http.HandlerFunc(d.asset))
}

// notFound is what the wire contract answers where there is nothing.
const notFound = `{"detail":{"title":"Not found.","details":{"non-field-error":"There is nothing at this address."}}}` + "\n"

// asset serves a file that the pages load.
func (d *Docs) asset(w http.ResponseWriter, r *http.Request) {
	asset, ok := d.assets[chi.URLParam(r, "asset")]
	if !ok {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, notFound) // fails only where the client has gone
		return
	}
	asset.ServeHTTP(w, r)
}

// prefix returns the prefix under which path was asked for.
func (d *Docs) prefix(r *http.Request, path string) string {
	if d.config.RootPath != "" && r.URL.Path == d.config.RootPath+path {
		return d.config.RootPath
	}
	return ""
}
