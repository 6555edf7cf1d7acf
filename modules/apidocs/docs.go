package apidocs

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
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

// pageData is what the templates of the pages know.
type pageData struct {
	// Root is where the routes begin, relative to the page.
	Root string
	// Prefix is the same as an absolute path: empty, or Config.RootPath.
	Prefix string
	Demo   bool
	// Metrics says whether the bar links the metrics.
	Metrics bool
	// Here marks the page in the bar.
	Here  string
	Async asyncDocument
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
	pages, err := template.New("").Funcs(template.FuncMap{"prose": prose}).ParseFS(pageFiles, "page/*.html")
	if err != nil {
		return nil, fmt.Errorf("parse the document pages: %w", err)
	}
	render := func(name, policy string, data pageData) (file, error) {
		data.Demo = config.Demo
		data.Metrics = config.Metrics
		var page bytes.Buffer
		if err := pages.ExecuteTemplate(&page, name, data); err != nil {
			return file{}, fmt.Errorf("render the page %s: %w", name, err)
		}
		f := newFile("text/html; charset=utf-8", page.Bytes())
		f.policy = policy
		return f, nil
	}
	for _, prefix := range []string{"", config.RootPath} {
		if d.openAPI[prefix], err = renderOpenAPI(docs.OpenAPI, config, prefix); err != nil {
			return nil, err
		}
		data := pageData{Root: "..", Prefix: prefix, Here: "asyncapi", Async: async}
		if d.async[prefix], err = render("asyncapi.html", asyncPolicy, data); err != nil {
			return nil, err
		}
	}
	for address, root := range map[string]string{"/docs": ".", "/docs/": ".."} {
		if d.swagger[address], err = render("swagger.html", swaggerPolicy, pageData{Root: root, Here: "openapi"}); err != nil {
			return nil, err
		}
	}
	return d, d.loadAssets()
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
