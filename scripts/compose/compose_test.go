package compose

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/config"
)

// composeSpec reads compose files as Compose does: schema, anchors, consistency.
const composeSpec = "github.com/compose-spec/compose-go/v2/cmd@v2.16.2"

// project is what is looked at of a compose file, as composeSpec prints it.
type project struct {
	Services map[string]service
	Volumes  map[string]any
}

type service struct {
	Image           string
	Build           map[string]any
	PullPolicy      string `json:"pull_policy"`
	Restart         string
	ReadOnly        bool     `json:"read_only"`
	CapDrop         []string `json:"cap_drop"`
	SecurityOpt     []string `json:"security_opt"`
	Privileged      bool
	Profiles        []string
	StopGracePeriod string `json:"stop_grace_period"`
	Environment     map[string]*string
	DependsOn       map[string]struct{ Condition string } `json:"depends_on"`
	Ports           []struct {
		HostIP    string `json:"host_ip"`
		Published string
		Target    int
	}
	Volumes     []struct{ Type, Source, Target string }
	Healthcheck *struct {
		Test    []string
		Disable bool
	}
	Deploy struct {
		Replicas  *int
		Resources struct {
			Limits struct {
				CPUs   any
				Memory string
			}
		}
	}
}

var variableInCompose = regexp.MustCompile(`\$\{([A-Z_]+)(?:(:\?|:-)([^}]*))?\}`)

// interpolated is compose.yaml with the variables put in, and with the names that the
// environment does not have and that have no default.
func interpolated(text string, env map[string]string) (string, []string) {
	var missing []string
	text = variableInCompose.ReplaceAllStringFunc(text, func(reference string) string {
		parts := variableInCompose.FindStringSubmatch(reference)
		switch value := env[parts[1]]; {
		case value != "":
			return value
		case parts[2] == ":-":
			return parts[3]
		default:
			missing = append(missing, parts[1])
			return ""
		}
	})
	return strings.ReplaceAll(text, "$$", "$"), missing
}

// load reads compose.yaml by composeSpec, after "cp .env.example .env".
func load(t *testing.T) project {
	t.Helper()
	text, missing := interpolated(file(t, "compose.yaml"), exampleEnvironment(t))
	if len(missing) > 0 {
		t.Errorf("compose.yaml needs variables that .env.example does not set: %v", missing)
	}
	dir := t.TempDir()
	write(t, dir, "compose.yaml", text)
	output, err := run(t, dir, nil, "go", "run", composeSpec, "-no-interpolation", "-no-path-resolution", "-format", "json", "compose.yaml")
	if err != nil {
		t.Fatalf("compose.yaml is not valid: %v\n%s", err, output)
	}
	var p project
	// "go run" may say on stderr what it downloads.
	if err := json.Unmarshal([]byte(output[strings.Index(output, "{\n"):]), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestComposeFile(t *testing.T) {
	p := load(t)
	names := make([]string, 0, len(p.Services))
	for name := range p.Services {
		names = append(names, name)
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "backend grafana prometheus proxy rabbitmq redis replica transportation" {
		t.Fatalf("the services are %s", got)
	}
	for name, s := range p.Services {
		t.Run(name, func(t *testing.T) { checkService(t, p, name, s) })
	}
	for name, want := range map[string]string{"transportation": "127.0.0.1:8001->8001", "grafana": "127.0.0.1:3030->3000", "proxy": "127.0.0.1:8080->8080", "replica": ""} {
		var published []string
		for _, port := range p.Services[name].Ports {
			published = append(published, net.JoinHostPort(port.HostIP, port.Published)+"->"+jsonText(t, port.Target))
		}
		if got := strings.Join(published, " "); got != want {
			t.Errorf("%s publishes %q, want %q", name, got, want)
		}
	}
	for name, profiles := range map[string]string{"transportation": "", "backend": "demo", "replica": "scale", "proxy": "scale"} {
		if got := strings.Join(p.Services[name].Profiles, " "); got != profiles {
			t.Errorf("%s has the profiles %q, want %q", name, got, profiles)
		}
	}
	if replicas := p.Services["replica"].Deploy.Replicas; replicas == nil || *replicas != 3 {
		t.Errorf("replicas: %v", replicas)
	}
}

func checkService(t *testing.T, p project, name string, s service) {
	if s.Restart != "unless-stopped" {
		t.Errorf("restart: %q", s.Restart)
	}
	if s.Deploy.Resources.Limits.CPUs == nil || s.Deploy.Resources.Limits.Memory == "" {
		t.Error("there is no limit of CPU or memory")
	}
	if s.Privileged || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
		t.Error("it may get new privileges")
	}
	own := strings.HasPrefix(s.Image, "chat-transportation:")
	// Compose builds in parallel: two builds of one tag get in each other's way.
	if builds := name == "transportation"; builds != (s.Build != nil) || own && builds == (s.PullPolicy == "never") {
		t.Errorf("image %s, build %v, pull_policy %q", s.Image, s.Build, s.PullPolicy)
	}
	if _, tag, _ := strings.Cut(s.Image, ":"); !own && !strings.Contains(tag, ".") {
		t.Errorf("the image %s may be another one tomorrow", s.Image)
	}
	if own && (!s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"})) {
		t.Error("the service's own containers have a read-only file system and no capability")
	}
	// The service's image brings a health check of its own; the backend listens nowhere.
	if check := s.Healthcheck; !own && (check == nil || len(check.Test) == 0) {
		t.Error("there is no health check")
	}
	for other, dependency := range s.DependsOn {
		if dependency.Condition != "service_healthy" {
			t.Errorf("waits for %s until it is %s", other, dependency.Condition)
		}
	}
	for _, port := range s.Ports {
		if port.HostIP != "127.0.0.1" {
			t.Errorf("port %s is open to the network", port.Published)
		}
	}
	for _, mount := range s.Volumes {
		switch mount.Type {
		case "bind":
			if _, err := os.Stat(filepath.Join(root, mount.Source)); err != nil {
				t.Errorf("it mounts %s: %v", mount.Source, err)
			}
		case "volume":
			if _, known := p.Volumes[mount.Source]; !known {
				t.Errorf("the volume %s is not there", mount.Source)
			}
		}
	}
	grace, err := time.ParseDuration(s.StopGracePeriod)
	if err != nil {
		t.Errorf("stop_grace_period: %v", err)
	}
	if timeout := s.Environment["SHUTDOWN_TIMEOUT"]; timeout != nil {
		shutdown, err := time.ParseDuration(*timeout)
		if err != nil || grace < shutdown+5*time.Second {
			t.Errorf("killed after %s, a shutdown may take %s: %v", grace, *timeout, err)
		}
	}
}

// TestComposePassesEveryVariable: what a user sets in .env reaches the service, and
// what the service then has is a valid configuration.
func TestComposePassesEveryVariable(t *testing.T) {
	p, env := load(t), exampleEnvironment(t)
	for _, name := range []string{"transportation", "replica"} {
		effective := make(map[string]string)
		for variable, value := range p.Services[name].Environment {
			if value != nil {
				effective[variable] = *value
			} else if set, found := env[variable]; found {
				effective[variable] = set
			}
		}
		for _, variable := range config.Variables() {
			// A path on the host, and a listener that Prometheus must know.
			if variable.Name == "KEY_FILE" || variable.Name == "ADMIN_ADDR" {
				continue
			}
			if _, found := p.Services[name].Environment[variable.Name]; !found {
				t.Errorf("%s does not get %s", name, variable.Name)
			}
		}
		cfg, err := config.From(envconfig.MapLookuper(effective))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if want := "amqp://transportation:change-me-transportation@rabbitmq:5672/"; cfg.Demo || strings.Join(cfg.Rabbit.URLs, ",") != want {
			t.Errorf("%s: the broker is not %s", name, want)
		}
	}
}

// TestPasswordsAreOnlyInTheExample: no default password outside .env.example, and
// without a .env compose says what to do.
func TestPasswordsAreOnlyInTheExample(t *testing.T) {
	text, env := file(t, "compose.yaml"), exampleEnvironment(t)
	secrets := []string{"guest"}
	for name, value := range env {
		if name == "KEY" || strings.HasSuffix(name, "_PASSWORD") {
			secrets = append(secrets, value)
			if !strings.Contains(text, "${"+name+":?copy .env.example to .env first}") {
				t.Errorf("compose.yaml starts without %s", name)
			}
		}
	}
	if len(secrets) != 7 {
		t.Errorf("%d secrets, want KEY, RabbitMQ's three, Redis' and Grafana's", len(secrets)-1)
	}
	files := []string{filepath.Join(root, "compose.yaml"), filepath.Join(root, "Dockerfile")}
	err := filepath.WalkDir(".", func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && !strings.HasSuffix(path, "_test.go") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range secrets {
			if strings.Contains(string(content), secret) {
				t.Errorf("%s holds the password %q", path, secret)
			}
		}
	}
}

func jsonText(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
