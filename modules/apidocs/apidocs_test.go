package apidocs

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-chi/chi/v5"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"
	"gopkg.in/yaml.v3"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/docs"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// routers keeps what serve has made: rendering takes a while under the race detector.
var routers = map[Config]chi.Router{}

// serve answers a request as the service does: under the root and under RootPath,
// the path of the request being what the client sent.
func serve(t *testing.T, config Config, method, target string, header ...string) (*http.Response, string) {
	t.Helper()
	router, known := routers[config]
	if !known {
		d, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		router = chi.NewRouter()
		d.Routes(router)
		if config.RootPath != "" {
			router.Route(config.RootPath, d.Routes)
		}
		routers[config] = router
	}
	request := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	recorder := httptest.NewRecorder()
	router.ServeHTTP(recorder, request)
	response := recorder.Result()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

var demo = Config{RootPath: "/transportation", Demo: true, Metrics: true}

func loadOpenAPI(t *testing.T, document string) *openapi3.T {
	t.Helper()
	loaded, err := openapi3.NewLoader().LoadFromData([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	if err := loaded.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return loaded
}

func TestOpenAPIIsValid(t *testing.T) {
	source := loadOpenAPI(t, string(docs.OpenAPI))
	if !strings.HasPrefix(source.OpenAPI, "3.1.") {
		t.Errorf("version %s", source.OpenAPI)
	}
	for _, config := range []Config{demo, {RootPath: "/transportation"}, {}, {RootPath: "/a/b/"}} {
		root := strings.TrimSuffix(config.RootPath, "/")
		for _, prefix := range slices.Compact([]string{"", root}) {
			_, asJSON := serve(t, config, "GET", prefix+"/openapi.json")
			_, asYAML := serve(t, config, "GET", prefix+"/docs/openapi.yaml")
			for _, document := range []string{asJSON, asYAML} {
				loaded := loadOpenAPI(t, document)
				want := prefix
				if want == "" {
					want = "/"
				}
				if loaded.Servers[0].URL != want {
					t.Errorf("%+v under %q: the first server is %s", config, prefix, loaded.Servers[0].URL)
				}
				if count := map[bool]int{true: 1, false: 2}[root == ""]; len(loaded.Servers) != count {
					t.Errorf("%+v: %d servers, want %d", config, len(loaded.Servers), count)
				}
				if has := loaded.Paths.Find("/demo/token") != nil; has != config.Demo {
					t.Errorf("%+v: the demo's paths are there: %v", config, has)
				}
				if has := loaded.Tags.Get("Demo") != nil; has != config.Demo {
					t.Errorf("%+v: the demo's tag is there: %v", config, has)
				}
			}
		}
	}
}

// TestOpenAPIExamples: every answer that has a body has an example that its schema
// takes, and every header has one.
func TestOpenAPIExamples(t *testing.T) {
	document := loadOpenAPI(t, string(docs.OpenAPI))
	count := 0
	for path, item := range document.Paths.Map() {
		for method, operation := range item.Operations() {
			if operation.OperationID == "" || operation.Summary == "" || len(operation.Tags) != 1 {
				t.Errorf("%s %s lacks an id, a summary or its tag", method, path)
			}
			for status, response := range operation.Responses.Map() {
				where := method + " " + path + " " + status
				for mediaType, content := range response.Value.Content {
					if content.Example == nil {
						t.Errorf("%s: %s has no example", where, mediaType)
						continue
					}
					if err := content.Schema.Value.VisitJSON(content.Example, openapi3.EnableJSONSchema2020()); err != nil {
						t.Errorf("%s: %v", where, err)
					}
					count++
				}
				for name, header := range response.Value.Headers {
					if header.Value.Example == nil {
						t.Errorf("%s: the header %s has no example", where, name)
					}
				}
			}
		}
	}
	if count < 30 {
		t.Errorf("only %d examples were looked at", count)
	}
}

// TestOpenAPIRoutes: the routes of this package are in the document, and no other
// path is under /docs.
func TestOpenAPIRoutes(t *testing.T) {
	document := loadOpenAPI(t, string(docs.OpenAPI))
	d, err := New(demo)
	if err != nil {
		t.Fatal(err)
	}
	router := chi.NewRouter()
	d.Routes(router)
	served := map[string]bool{}
	_ = chi.Walk(router, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		served[route] = true
		if item := document.Paths.Value(route); item == nil || item.Get == nil {
			t.Errorf("%s %s is not in the document", method, route)
		}
		return nil
	})
	for path := range document.Paths.Map() {
		if (strings.HasPrefix(path, "/docs") || path == "/openapi.json") && !served[path] {
			t.Errorf("%s is in the document and not served", path)
		}
	}
	var names []string
	for name := range d.assets {
		names = append(names, name)
	}
	slices.Sort(names)
	var documented []string
	for _, name := range document.Paths.Value("/docs/{asset}").Get.Parameters[0].Value.Schema.Value.Enum {
		documented = append(documented, name.(string))
	}
	if !slices.Equal(names, documented) {
		t.Errorf("assets %q, in the document %q", names, documented)
	}
}

// TestAsyncAPICloseCodes holds the table of the document to that of the code, and
// the table in the OpenAPI document's text too.
func TestAsyncAPICloseCodes(t *testing.T) {
	document, err := readAsyncAPI(docs.AsyncAPI)
	if err != nil {
		t.Fatal(err)
	}
	var got []app.CloseCodeInfo
	for _, channel := range document.Channels {
		for _, c := range channel.CloseCodes {
			got = append(got, app.CloseCodeInfo{Code: app.CloseCode(c.Code), Sent: c.Sent, Reason: c.Reason, When: c.When, Client: c.Client})
		}
	}
	if !slices.Equal(got, app.CloseCodes) {
		t.Errorf("the document has\n%+v\nthe code has\n%+v", got, app.CloseCodes)
	}
	rows := regexp.MustCompile(`(?m)^ *\| (\d{4}) \|`).FindAllStringSubmatch(string(docs.OpenAPI), -1)
	var listed []string
	for _, row := range rows {
		listed = append(listed, row[1])
	}
	var sent []string
	for _, c := range app.CloseCodes {
		if c.Sent {
			code, _ := json.Marshal(c.Code)
			sent = append(sent, string(code))
		}
	}
	if !slices.Equal(listed, sent) {
		t.Errorf("the OpenAPI document lists %q, the service sends %q", listed, sent)
	}
}

func parseYAML(t *testing.T, source []byte) *yaml.Node {
	t.Helper()
	var file yaml.Node
	if err := yaml.Unmarshal(source, &file); err != nil {
		t.Fatal(err)
	}
	return file.Content[0]
}

// TestAsyncAPIReferences: each reference leads somewhere.
func TestAsyncAPIReferences(t *testing.T) {
	root := parseYAML(t, docs.AsyncAPI)
	if version := text(root, "asyncapi"); !strings.HasPrefix(version, "3.") {
		t.Errorf("version %s", version)
	}
	r := &asyncReader{root: root}
	count := 0
	var walk func(node *yaml.Node)
	walk = func(node *yaml.Node) {
		if text(node, "$ref") != "" {
			count++
			r.resolve(node)
		}
		for _, child := range node.Content {
			walk(child)
		}
	}
	walk(root)
	if r.err != nil || count < 20 {
		t.Errorf("%d references: %v", count, r.err)
	}
}

// TestAsyncAPIExamples: each example is JSON, has the members that its schema asks
// for, and is what the code makes or takes.
func TestAsyncAPIExamples(t *testing.T) {
	root := parseYAML(t, docs.AsyncAPI)
	r := &asyncReader{root: root}
	compiled := compileSchemas(t, root)
	examples := map[string][][]byte{}
	r.each(member(member(root, "components"), "messages"), func(id string, message *yaml.Node) {
		schema := strings.TrimPrefix(text(member(message, "payload"), "$ref"), "#/components/schemas/")
		for _, example := range member(message, "examples").Content {
			payload, err := appendJSON(nil, member(example, "payload"))
			if err != nil {
				t.Fatal(err)
			}
			value := decodeAny(t, payload)
			if err := compiled.Schemas[schema].Value.VisitJSON(value, openapi3.EnableJSONSchema2020()); err != nil {
				t.Errorf("%s: %s: %v", id, payload, err)
			}
			examples[id] = append(examples[id], payload)
		}
	})
	if len(examples) != 9 {
		t.Errorf("%d messages have examples, want 9", len(examples))
	}

	// The entity that the first client message of the examples becomes.
	var client struct {
		ID        string `json:"client_message_id"`
		Chat      string `json:"chat_id"`
		Recipient int64  `json:"recipient_id"`
		Body      string `json:"body"`
	}
	if err := json.Unmarshal(examples["clientMessage"][0], &client); err != nil {
		t.Fatal(err)
	}
	id, fault := domain.NewClientMessageID(client.ID)
	chat, chatFault := domain.NewChatID(client.Chat)
	sender, err := domain.NewUserID(1)
	recipient, recipientErr := domain.NewUserID(client.Recipient)
	if fault != nil || chatFault != nil || err != nil || recipientErr != nil {
		t.Fatal(fault, chatFault, err, recipientErr)
	}
	sentAt := time.Date(2026, 1, 2, 3, 4, 5, 678_901_000, time.UTC)
	want, err := app.AppendEntity(nil, domain.NewMessage(sender, id, chat, recipient, client.Body, sentAt))
	if err != nil {
		t.Fatal(err)
	}
	if got := examples["entity"][0]; !bytes.Equal(got, want) {
		t.Errorf("the entity\n got %s\nwant %s", got, want)
	}

	for _, body := range examples["disconnect"] {
		to := &recipientSpy{}
		if err := (app.Deliver{}).Receive(to, app.Delivery{Body: body, Type: app.ControlDisconnect, Acks: to}); err != nil || to.reason == "" {
			t.Errorf("%s: %v", body, err)
		}
	}
	for _, body := range slices.Concat(examples["delivery"], examples["message"]) {
		to := &recipientSpy{}
		if err := (app.Deliver{}).Receive(to, app.Delivery{Body: body, Acks: to}); err != nil || !to.delivered {
			t.Errorf("%s: %v", body, err)
		}
	}
}

func decodeAny(t *testing.T, body []byte) any {
	t.Helper()
	var value any
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber() // a float64 would make 2^63-1 greater than it may be
	if err := decoder.Decode(&value); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return value
}

// compileSchemas has kin-openapi read the schemas: JSON Schema is the same in both.
func compileSchemas(t *testing.T, root *yaml.Node) *openapi3.Components {
	t.Helper()
	schemas, err := appendJSON(nil, member(member(root, "components"), "schemas"))
	if err != nil {
		t.Fatal(err)
	}
	return loadOpenAPI(t, `{"openapi":"3.1.0","info":{"title":"schemas","version":"1"},"paths":{},"components":{"schemas":`+string(schemas)+`}}`).Components
}

type recipientSpy struct {
	reason    string
	delivered bool
}

func (s *recipientSpy) Deliver(app.Delivery)     { s.delivered = true }
func (s *recipientSpy) Disconnect(reason string) { s.reason = reason }
func (s *recipientSpy) Ack(uint64)               {}
func (s *recipientSpy) Reject(uint64)            {}

func TestPages(t *testing.T) {
	for _, test := range []struct {
		target string
		config Config
		has    []string
		lacks  []string
	}{
		{"/docs", demo, []string{`href="./demo"`, `src="./docs/swagger-ui-bundle.js"`, `data-document="./openapi.json"`}, nil},
		{"/docs/", demo, []string{`href="../demo"`, `src="../docs/swagger-ui-bundle.js"`, `data-document="../openapi.json"`}, nil},
		{"/transportation/docs", Config{RootPath: "/transportation"}, []string{`data-document="./openapi.json"`}, []string{"demo"}},
		{"/docs/asyncapi", demo, []string{"</span>/messages/?connection_pass=", "</span>/demo/token", `-H 'Content-Type: application/json'`, "4408", "closed with 1002", `id="clientMessage"`, `id="control.disconnect"`, "websocat", "mandatory: true"}, []string{"/transportation/messages", "Delivery error. |"}},
		{"/transportation/docs/asyncapi", Config{RootPath: "/transportation"}, []string{"</span>/transportation/messages/?connection_pass=", "token -user 1", "rabbitmqadmin"}, []string{"/demo"}},
	} {
		response, page := serve(t, test.config, "GET", test.target)
		if response.StatusCode != 200 || response.Header.Get("Content-Type") != "text/html; charset=utf-8" {
			t.Errorf("%s: %d %v", test.target, response.StatusCode, response.Header)
		}
		for _, part := range test.has {
			if !strings.Contains(page, part) {
				t.Errorf("%s lacks %s", test.target, part)
			}
		}
		for _, part := range test.lacks {
			if strings.Contains(page, part) {
				t.Errorf("%s has %s", test.target, part)
			}
		}
		policy := response.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; script-src 'self';") || strings.Contains(policy, "//") {
			t.Errorf("%s: policy %q", test.target, policy)
		}
		if strings.Contains(page, "<script>") || strings.Contains(page, "<style") || strings.Contains(page, " style=") || strings.Contains(page, " onclick") {
			t.Errorf("%s has something inline, which its policy forbids", test.target)
		}
		onlyRelative(t, test.config, test.target, page)
	}
}

// onlyRelative follows every reference of the page: each is relative, and those to
// the documents are served.
func onlyRelative(t *testing.T, config Config, target, page string) {
	t.Helper()
	references := regexp.MustCompile(`(?:href|src|data-document)="([^"]*)"`).FindAllStringSubmatch(page, -1)
	if len(references) < 8 {
		t.Errorf("%s: only %d references", target, len(references))
	}
	base := httptest.NewRequest("GET", target, nil).URL
	for _, reference := range references {
		address := reference[1]
		if strings.HasPrefix(address, "data:") {
			continue
		}
		if id, ok := strings.CutPrefix(address, "#"); ok {
			if !strings.Contains(page, `id="`+id+`"`) {
				t.Errorf("%s: nothing has the id %s", target, id)
			}
			continue
		}
		to, err := base.Parse(address)
		if err != nil || strings.HasPrefix(address, "/") || to.Host != base.Host {
			t.Errorf("%s: %s is not relative", target, address)
			continue
		}
		if prefix := strings.TrimSuffix(strings.TrimSuffix(target, "/"), "/docs"); !strings.Contains(target, "asyncapi") && !strings.HasPrefix(to.Path, prefix+"/") {
			t.Errorf("%s: %s leads out of the prefix", target, address)
		}
		if strings.Contains(to.Path, "/docs") || strings.HasSuffix(to.Path, "openapi.json") {
			if response, _ := serve(t, config, "GET", to.Path); response.StatusCode != 200 {
				t.Errorf("%s: %s is answered with %d", target, address, response.StatusCode)
			}
		}
	}
	for _, address := range regexp.MustCompile(`\b(?:https?|wss?)://[^'"<\s]+`).FindAllString(page, -1) {
		// The icon's namespace, and what the script replaces by the page's own origin.
		if !slices.Contains([]string{"http://www.w3.org/2000/svg", "http://localhost:8001", "ws://localhost:8001"}, address) {
			t.Errorf("%s names %s", target, address)
		}
	}
}

func TestSwaggerSettings(t *testing.T) {
	_, script := serve(t, demo, "GET", "/docs/docs.js")
	if !strings.Contains(script, "validatorUrl: null") {
		t.Error("Swagger UI would ask a foreign validator")
	}
	for _, name := range []string{"docs.js", "docs.css"} {
		if _, content := serve(t, demo, "GET", "/docs/"+name); strings.Contains(content, "//") && regexp.MustCompile(`https?://|url\(`).MatchString(content) {
			t.Errorf("%s names an address", name)
		}
	}
}

func TestAssets(t *testing.T) {
	plainOf := map[string]string{}
	for _, name := range []string{"docs.css", "docs.js", "swagger-ui.css", "swagger-ui-bundle.js"} {
		response, plain := serve(t, demo, "GET", "/transportation/docs/"+name)
		kind := "text/css; charset=utf-8"
		if strings.HasSuffix(name, ".js") {
			kind = "text/javascript; charset=utf-8"
		}
		if response.StatusCode != 200 || response.Header.Get("Content-Type") != kind || response.Header.Get("Content-Encoding") != "" || len(plain) < 500 {
			t.Errorf("%s: %d %v, %d bytes", name, response.StatusCode, response.Header, len(plain))
		}
		plainOf[name] = plain

		etag := response.Header.Get("ETag")
		if again, body := serve(t, demo, "GET", "/docs/"+name, "If-None-Match", etag); again.StatusCode != http.StatusNotModified || body != "" || again.Header.Get("ETag") != etag {
			t.Errorf("%s with its ETag: %d", name, again.StatusCode)
		}
		if head, body := serve(t, demo, "HEAD", "/docs/"+name); head.StatusCode != 200 || body != "" {
			t.Errorf("HEAD %s: %d, %d bytes", name, head.StatusCode, len(body))
		}
	}
	for header, compressed := range map[string]bool{"gzip, br": true, "br, GZIP;q=0.5": true, "gzip;q=0": false, "br": false, "": false, "gzip;q=x": false} {
		response, body := serve(t, demo, "GET", "/docs/swagger-ui.css", "Accept-Encoding", header)
		if got := response.Header.Get("Content-Encoding") == "gzip"; got != compressed || response.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("Accept-Encoding %q: compressed %v, %v", header, got, response.Header)
		}
		if compressed {
			reader, err := gzip.NewReader(strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			unpacked, err := io.ReadAll(reader)
			if err != nil || string(unpacked) != plainOf["swagger-ui.css"] {
				t.Errorf("Accept-Encoding %q: other content: %v", header, err)
			}
		}
	}
	response, body := serve(t, demo, "GET", "/docs/nothing.js")
	if response.StatusCode != 404 || !json.Valid([]byte(body)) || !strings.Contains(body, `"non-field-error"`) {
		t.Errorf("an unknown asset: %d %s", response.StatusCode, body)
	}
}

func TestRawAsyncAPI(t *testing.T) {
	response, body := serve(t, demo, "GET", "/docs/asyncapi.yaml")
	if response.Header.Get("Content-Type") != "application/yaml" || body != string(docs.AsyncAPI) {
		t.Errorf("%v, %d bytes", response.Header, len(body))
	}
}

func TestAppendJSON(t *testing.T) {
	for source, want := range map[string]string{
		`{b: 1, a: [x, "1", 'y', null, true, 1.5]}`: `{"b":1,"a":["x","1","y",null,true,1.5]}`,
		`{a: &x {b: <&>}, c: *x}`:                   `{"a":{"b":"<&>"},"c":{"b":"<&>"}}`,
		`{}`:                                        `{}`,
		`9223372036854775807`:                       `9223372036854775807`,
		`~`:                                         `null`,
	} {
		got, err := appendJSON(nil, parseYAML(t, []byte(source)))
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, %v, want %s", source, got, err, want)
		}
	}
	for _, source := range []string{`0x1f`, `[.inf]`, `{a: .nan}`, `True`} {
		if got, err := appendJSON(nil, parseYAML(t, []byte(source))); err == nil {
			t.Errorf("%s became %s", source, got)
		}
	}
}

func TestReadAsyncAPIFaults(t *testing.T) {
	for name, source := range map[string]string{
		"no YAML":        "\t",
		"empty":          "",
		"lost reference": `{channels: {c: {}}, operations: {o: {channel: {$ref: "#/channels/c"}, messages: [{$ref: "#/x"}]}}}`,
		"circle":         `{a: {$ref: "#/a"}, channels: {c: {}}, operations: {o: {channel: {$ref: "#/channels/c"}, messages: [{$ref: "#/a"}]}}}`,
		"close codes":    `{channels: {c: {x-close-codes: 5}}}`,
	} {
		if _, err := readAsyncAPI([]byte(source)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestProseEscapes(t *testing.T) {
	got := string(prose("a <b> & `c <d>`\nmore\n\nnext `"))
	want := "<p>a &lt;b&gt; &amp; <code>c &lt;d&gt;</code>\nmore</p><p>next <code></code></p>"
	if got != want {
		t.Errorf("got %s", got)
	}
}

func TestModule(t *testing.T) {
	var parts struct {
		fx.In
		Routes []func(chi.Router) `group:"routes"`
	}
	fxtest.New(t, Module, fx.NopLogger, fx.Supply(demo), fx.Populate(&parts)).RequireStart().RequireStop()
	if len(parts.Routes) != 1 {
		t.Errorf("%d routes", len(parts.Routes))
	}
}
