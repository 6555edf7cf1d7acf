package compose

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/rabbitmq/amqp091-go"
	"gopkg.in/yaml.v3"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass/redistest"
)

func TestPrometheusFiles(t *testing.T) {
	promtool := program(t, "promtool")
	mustRun(t, "prometheus", nil, promtool, "check", "config", "--lint=all", "prometheus.yml")
	mustRun(t, "prometheus", nil, promtool, "check", "rules", "--lint=all", "rules.yml")
	// Each alert fires when it should, and is silent otherwise.
	mustRun(t, "prometheus", nil, promtool, "test", "rules", "rules_test.yml")
	tests := file(t, "scripts/compose/prometheus/rules_test.yml")
	for _, rule := range alerts(t) {
		if !strings.Contains(tests, `alertname="`+rule.Alert+`"`) {
			t.Errorf("rules_test.yml does not test %s", rule.Alert)
		}
	}
}

type alert struct {
	Alert, Expr string
	Labels      map[string]string
	Annotations map[string]string
}

func alerts(t *testing.T) []alert {
	t.Helper()
	var rules struct {
		Groups []struct{ Rules []alert }
	}
	if err := yaml.Unmarshal([]byte(file(t, "scripts/compose/prometheus/rules.yml")), &rules); err != nil {
		t.Fatal(err)
	}
	var list []alert
	for _, group := range rules.Groups {
		list = append(list, group.Rules...)
	}
	if len(list) == 0 {
		t.Fatal("there are no alerts")
	}
	return list
}

// query is an expression of the dashboard or of the rules.
type query struct{ of, expr string }

var threshold = regexp.MustCompile(`^(?s:(.*)) (?:==|!=|>=|<=|>|<) [0-9.]+\s*$`)

// queries lists them all. Of an alert it is the value without its threshold: an alert
// that has no data when nothing is wrong is as it should be, a value that has none is
// misspelt.
func queries(t *testing.T) []query {
	t.Helper()
	var list []query
	for _, rule := range alerts(t) {
		value := threshold.FindStringSubmatch(rule.Expr)
		if value == nil {
			t.Fatalf("the alert %s is not of the form: value operator threshold", rule.Alert)
		}
		list = append(list, query{"alert " + rule.Alert, value[1]})
	}
	for _, panel := range dashboard(t).Panels {
		for _, target := range panel.Targets {
			expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "30s")
			expr = strings.ReplaceAll(expr, "$instance", ".*")
			if strings.Contains(expr, "$") {
				t.Errorf("panel %s: %s: the test does not know the variable", panel.Title, expr)
			}
			list = append(list, query{"panel " + panel.Title, expr})
		}
	}
	return list
}

type panel struct {
	ID      int
	Type    string
	Title   string
	GridPos struct{ X, Y, W, H int }
	Targets []struct {
		Expr       string
		Datasource struct{ UID string }
	}
	Description string
}

type board struct {
	UID, Title    string
	SchemaVersion int
	Panels        []panel
	Templating    struct {
		List []struct{ Name, Type, Definition string }
	}
}

func dashboard(t *testing.T) board {
	t.Helper()
	var d board
	if err := json.Unmarshal([]byte(file(t, "scripts/compose/grafana/dashboards/chat-transportation.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDashboard checks what Grafana would complain about, or show badly.
func TestDashboard(t *testing.T) {
	d := dashboard(t)
	if d.UID != "chat-transportation" || d.SchemaVersion == 0 || len(d.Panels) < 20 {
		t.Errorf("uid %s, schema %d, %d panels", d.UID, d.SchemaVersion, len(d.Panels))
	}
	ids := make(map[int]bool)
	for i, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("panel id %d is there twice", p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && (len(p.Targets) == 0 || p.Description == "") {
			t.Errorf("panel %s has no query or no description", p.Title)
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" {
				t.Errorf("panel %s asks %s", p.Title, target.Datasource.UID)
			}
		}
		a := p.GridPos
		if a.X+a.W > 24 {
			t.Errorf("panel %s is wider than the page", p.Title)
		}
		for _, other := range d.Panels[:i] {
			b := other.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("panels %s and %s overlap", p.Title, other.Title)
			}
		}
	}
	source := file(t, "scripts/compose/grafana/provisioning/datasources/prometheus.yml")
	if !strings.Contains(source, "uid: prometheus") || !strings.Contains(source, "http://prometheus:9090") {
		t.Error("the data source is not the stack's Prometheus")
	}
	var interval struct {
		Global struct {
			ScrapeInterval string `yaml:"scrape_interval"`
		}
	}
	if err := yaml.Unmarshal([]byte(file(t, "scripts/compose/prometheus/prometheus.yml")), &interval); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(source, "timeInterval: "+interval.Global.ScrapeInterval+"\n") {
		t.Errorf("Grafana does not know the scrape interval %s", interval.Global.ScrapeInterval)
	}
}

// TestEveryQueryHasData runs every query of dashboard and rules against a Prometheus
// that scrapes a service under traffic, faults included.
func TestEveryQueryHasData(t *testing.T) {
	b := theBroker(t)
	redis := redistest.Start(t)
	g := serve(t, "127.0.0.1:"+freePort(t), map[string]string{
		"RABBITMQ_URL": b.url(t, ""), "REDIS_URL": redis.URL(), "PASS_REQUESTS_PER_MINUTE": "0", "WS_MAX_CONNECTIONS_PER_USER": "2",
	})
	t.Cleanup(func() { b.ctl(t, "purge_queue", "database.primary") })
	prometheus := startPrometheus(t, g.address)
	traffic(t, g, b, redis)

	open := queries(t)
	if len(open) < 40 {
		t.Errorf("only %d queries were found", len(open))
	}
	deadline := time.NewTimer(2 * time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		open = slices.DeleteFunc(open, func(q query) bool { return hasData(t, prometheus, q) })
		if len(open) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			for _, q := range open {
				t.Errorf("%s has no data: %s", q.of, q.expr)
			}
			return
		}
	}
}

// startPrometheus runs Prometheus with the mounted files, but for where the service is
// and how often it is asked, and returns its URL.
func startPrometheus(t *testing.T, target string) string {
	t.Helper()
	dir := t.TempDir()
	var conf map[string]any
	if err := yaml.Unmarshal([]byte(file(t, "scripts/compose/prometheus/prometheus.yml")), &conf); err != nil {
		t.Fatal(err)
	}
	conf["global"] = map[string]any{"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
	for _, entry := range conf["scrape_configs"].([]any) {
		job := entry.(map[string]any)
		if job["job_name"] == "transportation" {
			delete(job, "dns_sd_configs")
			job["static_configs"] = []any{map[string]any{"targets": []any{target}}}
			conf["scrape_configs"] = []any{job}
		}
	}
	text, err := yaml.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	path := write(t, dir, "prometheus.yml", string(text))
	write(t, dir, "rules.yml", file(t, "scripts/compose/prometheus/rules.yml"))
	address := "127.0.0.1:" + freePort(t)
	launch(t, dir, nil, program(t, "prometheus"), "--config.file="+path, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	eventually(t, "Prometheus is ready", func() bool { return status("http://"+address+"/-/ready") == http.StatusOK })
	return "http://" + address
}

// hasData asks whether the query has a result now that is a number.
func hasData(t *testing.T, prometheus string, q query) bool {
	t.Helper()
	response, err := http.PostForm(prometheus+"/api/v1/query", url.Values{"query": {q.expr}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	if answer.Status != "success" {
		t.Fatalf("%s: %s: %s", q.of, q.expr, answer.Error)
	}
	for _, sample := range answer.Data.Result {
		text, _ := sample.Value[1].(string)
		if value, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(value) {
			return true
		}
	}
	return false
}

// traffic makes everything happen that the metrics count, again and again until the
// test ends: messages, faults of clients and of backends, limits, outages.
func traffic(t *testing.T, g *gateway, b *broker, redis *redistest.Server) {
	t.Helper()
	s := siteOf(g)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })

	// The faults that only happen once: an outage of each of the two stores.
	redis.Stop()
	eventually(t, "a pass is answered with 503", func() bool {
		_, code := s.pass(t, token(t, 1))
		return code == http.StatusServiceUnavailable
	})
	redis.Restart()
	b.ctl(t, "close_all_connections", "the test wants it")
	eventually(t, "the service is ready again", func() bool { return status("http://"+g.address+"/readyz") == http.StatusOK })

	// Tokens and channels are made here, where the test may be ended.
	tokens := []string{token(t, 1), token(t, 2), token(t, 3)}
	backend, err := amqp091.Dial(b.url(t, "BACKEND_"))
	if err != nil {
		t.Fatal(err)
	}
	publisher, err := backend.Channel()
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() {
		defer func() { _ = backend.Close() }()
		pause := time.NewTicker(100 * time.Millisecond)
		defer pause.Stop()
		for ctx.Err() == nil {
			// A machine that stands still for a moment ends a scene, not the traffic.
			if err := scene(ctx, s, tokens, publisher); err != nil && ctx.Err() == nil {
				t.Logf("traffic: %v", err)
				<-pause.C
			}
		}
	})
}

// scene is one round of the traffic.
func scene(ctx context.Context, s site, tokens []string, publisher *amqp091.Channel) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var opened []*websocket.Conn
	defer func() {
		for _, conn := range opened {
			_ = conn.Close(websocket.StatusNormalClosure, "")
		}
	}()
	open := func(token string) (*websocket.Conn, error) {
		pass, err := s.fetchPass(ctx, token)
		if err != nil {
			return nil, err
		}
		conn, _, err := websocket.Dial(ctx, strings.Replace(s.base, "http", "ws", 1)+"/messages/?connection_pass="+pass, nil)
		if err == nil {
			opened = append(opened, conn)
		}
		return conn, err
	}
	// Not authorized, by HTTP and by WebSocket; one connection too many of user 3.
	if _, err := s.fetchPass(ctx, "nonsense"); err == nil {
		return errors.New("a pass for nothing")
	}
	if conn, _, err := websocket.Dial(ctx, strings.Replace(s.base, "http", "ws", 1)+"/messages/?connection_pass=nonsense", nil); err == nil {
		opened = append(opened, conn)
	}
	for range 3 {
		if _, err := open(tokens[2]); err != nil {
			return err
		}
	}
	one, err := open(tokens[0])
	if err != nil {
		return err
	}
	two, err := open(tokens[1])
	if err != nil {
		return err
	}
	// Sixty at once, of which some are over the rate limit, and one that is not JSON.
	for i := range 60 {
		frame := fmt.Sprintf(`{"client_message_id":"m%d","chat_id":"c","recipient_id":2,"body":"hello"}`, i)
		if i == 30 {
			frame = "nonsense"
		}
		if err := one.Write(ctx, websocket.MessageText, []byte(frame)); err != nil {
			return err
		}
	}
	// A backend that publishes twenty messages, and one that is not JSON.
	for range 20 {
		if err := publisher.PublishWithContext(ctx, "websockets", "2", false, false, amqp091.Publishing{Body: []byte(`{}`)}); err != nil {
			return err
		}
		if _, _, err := two.Read(ctx); err != nil {
			return err
		}
	}
	return publisher.PublishWithContext(ctx, "websockets", "2", false, false, amqp091.Publishing{Body: []byte("nonsense")})
}

// fetchPass is pass for goroutines, which can't end the test.
func (s site) fetchPass(ctx context.Context, token string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+"/messages/get-connection-pass", nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := s.client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	var answer struct {
		Pass string `json:"connection_pass"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return "", err
	}
	if answer.Pass == "" {
		return "", fmt.Errorf("no pass: %s", response.Status)
	}
	return answer.Pass, nil
}

// TestEveryAlertHasARunbook: where the annotation leads there is a section.
func TestEveryAlertHasARunbook(t *testing.T) {
	anchors := headings(t, filepath.Join(root, "docs/operations.md"))
	for _, rule := range alerts(t) {
		address, anchor, _ := strings.Cut(rule.Annotations["runbook_url"], "#")
		if !strings.HasSuffix(address, "/blob/main/docs/operations.md") || !slices.Contains(anchors, anchor) {
			t.Errorf("%s: %s#%s leads nowhere", rule.Alert, address, anchor)
		}
		if rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" || !slices.Contains([]string{"warning", "critical"}, rule.Labels["severity"]) {
			t.Errorf("%s has no summary, description or severity", rule.Alert)
		}
	}
}

// headings lists the anchors of a document, as GitHub makes them.
func headings(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var anchors []string
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(text), -1) {
		anchor := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		anchors = append(anchors, strings.ReplaceAll(anchor, " ", "-"))
	}
	return anchors
}
