package compose

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/config"
)

// documents are those whose links are followed.
var documents = []string{"docs/operations.md", "docs/CONTRIBUTING.md", "SECURITY.md"}

func TestLinks(t *testing.T) {
	for _, document := range documents {
		text := file(t, document)
		for _, link := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(text, -1) {
			path, anchor, _ := strings.Cut(link[1], "#")
			if strings.Contains(path, "://") || strings.HasPrefix(path, "mailto:") {
				continue
			}
			target := filepath.Join(root, document)
			if path != "" {
				target = filepath.Join(root, filepath.Dir(document), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links %s: %v", document, link[1], err)
				continue
			}
			if anchor != "" && !slices.Contains(headings(t, target), anchor) {
				t.Errorf("%s links %s, which has no such section", document, link[1])
			}
		}
	}
}

// TestDemoModeBesideTheEnvFileOfCompose types what the README says to those who have
// made a .env for the compose stack.
func TestDemoModeBesideTheEnvFileOfCompose(t *testing.T) {
	if !strings.Contains(file(t, "README.md"), "`KEY= RABBITMQ_URL= go run ./cmd/chat-transportation`") {
		t.Fatal("the README does not say how to come back to demo mode")
	}
	dir, address := t.TempDir(), "127.0.0.1:"+freePort(t)
	write(t, dir, ".env", file(t, ".env.example"))
	launch(t, dir, map[string]string{"KEY": "", "RABBITMQ_URL": "", "HTTP_ADDR": address}, binary)
	eventually(t, "the demo's page is there", func() bool { return status("http://"+address+"/demo") == http.StatusOK })
}

// TestOperationsNameOnlyWhatThereIs: variables in the document are read by something,
// every limit is in it, and its defaults are the defaults.
func TestOperationsNameOnlyWhatThereIs(t *testing.T) {
	text := file(t, "docs/operations.md")
	defaults := make(map[string]string)
	for _, variable := range config.Variables() {
		defaults[variable.Name] = variable.Default
	}
	others := []string{"GOMEMLIMIT"}
	for _, token := range regexp.MustCompile("`([A-Z][A-Z]*_[A-Z_]+|KEY|ALGORITHM)(?:=[^`]*)?`").FindAllStringSubmatch(text, -1) {
		if _, known := defaults[token[1]]; !known && !slices.Contains(others, token[1]) {
			t.Errorf("nothing reads %s", token[1])
		}
	}
	for name := range defaults {
		limit := strings.HasPrefix(name, "WS_") || strings.HasSuffix(name, "_PER_MINUTE") || strings.Contains(name, "PREFETCH") || strings.HasSuffix(name, "_TIMEOUT")
		if limit && name != "WS_CLOSE_ON_TOKEN_EXPIRY" && !regexp.MustCompile("(?m)^\\| .*`"+name+"`").MatchString(text) {
			t.Errorf("the limits do not tell of %s", name)
		}
	}
	_, table, found := strings.Cut(text, "## Limits")
	table, _, closed := strings.Cut(table, "And those that are built in")
	if !found || !closed {
		t.Fatal("there is no table of limits")
	}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[A-Z_`, ]+`) \\| ([^|]*) \\|").FindAllStringSubmatch(table, -1) {
		values := regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(row[2], -1)
		for i, name := range regexp.MustCompile("[A-Z][A-Z_]+").FindAllString(row[1], -1) {
			if i >= len(values) || values[i][1] != defaults[name] {
				t.Errorf("%s: the table says %s, the default is %s", name, row[2], defaults[name])
			}
		}
	}
}

// TestMetricsOfTheDocument: the table of metrics is that of the dashboard and rules.
func TestMetricsOfTheDocument(t *testing.T) {
	text := file(t, "docs/operations.md")
	for _, q := range queries(t) {
		for _, metric := range regexp.MustCompile(`\b[a-z]+(?:_[a-z]+){2,}\b`).FindAllString(q.expr, -1) {
			name := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(metric, "")
			known := strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") ||
				slices.Contains([]string{"http_status_code", "avg_over_time", "quantile_over_time"}, name)
			if !known && !strings.Contains(text, "`"+name+"`") {
				t.Errorf("%s asks for %s, which docs/operations.md does not tell of", q.of, name)
			}
		}
	}
}
