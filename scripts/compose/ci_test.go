package compose

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// actionlint checks workflows: schema, expressions, inputs of well-known actions.
const actionlint = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"

func workflows(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, ".github/workflows/*.yml"))
	if err != nil || len(paths) != 2 {
		t.Fatalf("workflows: %v, %v", paths, err)
	}
	return paths
}

func TestWorkflows(t *testing.T) {
	// Without a shell linter, which is there or is not.
	args := append([]string{"run", actionlint, "-shellcheck=", "-pyflakes=", "-no-color"}, workflows(t)...)
	mustRun(t, ".", nil, "go", args...)
	for _, path := range workflows(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, use := range regexp.MustCompile(`(?m)uses:\s*(\S+)`).FindAllStringSubmatch(string(text), -1) {
			if !regexp.MustCompile(`^[\w./-]+@v\d+(\.\d+)*$`).MatchString(use[1]) {
				t.Errorf("%s: %s is not pinned to a version", path, use[1])
			}
		}
		if !regexp.MustCompile(`(?m)^permissions:\n  contents: read$`).Match(text) {
			t.Errorf("%s: jobs may more than read by default", path)
		}
		if jobs, limits := strings.Count(string(text), "runs-on:"), strings.Count(string(text), "timeout-minutes:"); jobs == 0 || jobs != limits {
			t.Errorf("%s: %d jobs, %d time limits", path, jobs, limits)
		}
		for _, script := range regexp.MustCompile(`(?m)- run: ((?:scripts|\.github)/\S+)`).FindAllStringSubmatch(string(text), -1) {
			if info, err := os.Stat(filepath.Join(root, script[1])); err != nil || info.Mode()&0o111 == 0 {
				t.Errorf("%s runs %s, which can't be run: %v", path, script[1], err)
			}
		}
	}
}

// TestWorkflowsHaveWhatTheTestsNeed: the images of the services are those of compose,
// and each program that a test starts is installed.
func TestWorkflowsHaveWhatTheTestsNeed(t *testing.T) {
	ci, compose := file(t, ".github/workflows/ci.yml"), file(t, "compose.yaml")
	for _, image := range []string{"rabbitmq", "redis"} {
		used := regexp.MustCompile(`image: (` + image + `:\S+)`)
		if in, want := used.FindString(ci), used.FindString(compose); in == "" || in != want {
			t.Errorf("CI has %q, compose.yaml %q", in, want)
		}
	}
	installed := regexp.MustCompile(`apt-get install [^\n]*\\\n\s+(.*)`).FindStringSubmatch(ci)
	for _, name := range []string{"rabbitmq-server", "redis-server", "prometheus", "nginx", "haproxy"} {
		if installed == nil || !slices.Contains(strings.Fields(installed[1]), name) {
			t.Errorf("CI does not install %s", name)
		}
	}
}

func TestFuzzScriptFindsTheTargets(t *testing.T) {
	output := mustRun(t, root, nil, ".github/fuzz.sh", "list")
	if !strings.Contains(output, "FuzzDecodeFrame in modules/hub/") {
		t.Errorf("fuzz.sh does not find the frame codec's target:\n%s", output)
	}
}

// TestDependabot checks the file against what GitHub's reference demands; there is no
// program that does.
func TestDependabot(t *testing.T) {
	var dependabot struct {
		Version int
		Updates []struct {
			PackageEcosystem string `yaml:"package-ecosystem"`
			Directory        string
			Schedule         struct{ Interval string }
			Limit            int `yaml:"open-pull-requests-limit"`
			Groups           map[string]struct{ Patterns []string }
		}
	}
	decoder := yaml.NewDecoder(strings.NewReader(file(t, ".github/dependabot.yml")))
	decoder.KnownFields(true)
	if err := decoder.Decode(&dependabot); err != nil {
		t.Fatal(err)
	}
	var ecosystems []string
	for _, update := range dependabot.Updates {
		ecosystems = append(ecosystems, update.PackageEcosystem)
		if update.Directory != "/" || !slices.Contains([]string{"daily", "weekly", "monthly"}, update.Schedule.Interval) {
			t.Errorf("%+v", update)
		}
	}
	if want := []string{"gomod", "github-actions", "docker", "docker-compose"}; dependabot.Version != 2 || !slices.Equal(ecosystems, want) {
		t.Errorf("version %d, ecosystems %v, want 2 and %v", dependabot.Version, ecosystems, want)
	}
}
