package compose

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// broker is a RabbitMQ that was started as the container starts it: by start.sh, with
// rabbitmq.conf, definitions.json and the environment of compose.yaml. Only the end of
// the image's own entry point, and the addresses, are those of this machine.
type broker struct {
	port    string
	tools   string // a folder with rabbitmqctl, to be first in PATH
	home    string
	started []*child
}

// child is a process of the broker; ended is closed when it has ended.
type child struct {
	command *exec.Cmd
	ended   chan struct{}
}

// serverFolders are where the scripts of rabbitmq-server are: Debian's and Homebrew's.
var serverFolders = []string{"/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin"}

var shared struct {
	once   sync.Once
	broker *broker
	err    error
}

// theBroker returns the broker that the tests of this package share.
func theBroker(t *testing.T) *broker {
	t.Helper()
	shared.once.Do(func() {
		shared.err = errors.New("RabbitMQ could not be started: see the first test that needed it")
		shared.broker, shared.err = startBroker(t)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.broker
}

func stopSharedBroker() {
	if shared.broker != nil {
		shared.broker.remove()
	}
}

func startBroker(t *testing.T) (*broker, error) {
	folder := ""
	for _, candidate := range serverFolders {
		if _, err := os.Stat(filepath.Join(candidate, "rabbitmq-server")); err == nil {
			folder = candidate
			break
		}
	}
	if folder == "" {
		return nil, errors.New("rabbitmq-server is not installed: run scripts/test, which sees to it")
	}
	home, err := os.MkdirTemp("", "compose-rabbitmq-")
	if err != nil {
		return nil, err
	}
	b := &broker{home: home, tools: filepath.Join(home, "tools"), port: freePort(t)}
	definitions := filepath.Join(home, "definitions")
	distribution := freePort(t)
	conf := replace(t, file(t, "scripts/compose/rabbitmq/rabbitmq.conf"), "/etc/rabbitmq/definitions", definitions) + fmt.Sprintf(`
distribution.listener.interface = 127.0.0.1
distribution.listener.port_range.min = %s
distribution.listener.port_range.max = %s
log.console = true
log.console.level = warning
log.file = false
`, distribution, distribution)
	epmd := freePort(t)
	env := []string{
		"HOME=" + home,
		"ERL_EPMD_PORT=" + epmd, "ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_NODENAME=compose-" + b.port + "@localhost",
		"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1", "RABBITMQ_NODE_PORT=" + b.port, "RABBITMQ_DIST_PORT=" + distribution,
		"RABBITMQ_CONF_ENV_FILE=" + filepath.Join(home, "none"),
		"RABBITMQ_CONFIG_FILE=" + write(t, home, "rabbitmq.conf", conf),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + write(t, home, "enabled_plugins", "[].\n"),
		"RABBITMQ_MNESIA_BASE=" + filepath.Join(home, "mnesia"),
		"RABBITMQ_LOG_BASE=" + filepath.Join(home, "log"),
		"RABBITMQ_PID_FILE=" + filepath.Join(home, "pid"),
		"RUNNING_UNDER_SYSTEMD=true", // the script becomes the server
		"DEFINITIONS=" + definitions,
	}
	for name, value := range exampleEnvironment(t) {
		if strings.HasPrefix(name, "RABBITMQ_") && name != "RABBITMQ_URL" {
			env = append(env, name+"="+value)
		}
	}
	if err := os.Mkdir(b.tools, 0o755); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{
		// The end of the image's entry point, and the client with this node's names.
		"docker-entrypoint.sh": "#!/bin/sh\nexec " + filepath.Join(folder, "rabbitmq-server") + "\n",
		"rabbitmqctl":          "#!/bin/sh\nexport " + quoted(env) + "\nexec " + filepath.Join(folder, "rabbitmqctl") + " \"$@\"\n",
	} {
		if err := os.WriteFile(filepath.Join(b.tools, name), []byte(text), 0o755); err != nil {
			return nil, err
		}
	}
	// The port mapper first: one that the server started would stay behind.
	if err := b.start(home, env, "epmd", "-port", epmd, "-address", "127.0.0.1"); err != nil {
		b.remove()
		return nil, err
	}
	script, err := filepath.Abs("rabbitmq/start.sh")
	if err != nil {
		return nil, err
	}
	if err := b.start(home, append(env, "PATH="+b.tools+":"+os.Getenv("PATH")), "/bin/sh", script, "rabbitmq-server"); err != nil {
		b.remove()
		return nil, err
	}
	if err := b.await(); err != nil {
		log, _ := os.ReadFile(filepath.Join(home, "output"))
		b.remove()
		return nil, fmt.Errorf("RabbitMQ does not start: %w\n%s", err, log)
	}
	return b, nil
}

// await waits until the server takes connections.
func (b *broker) await() error {
	server := b.started[len(b.started)-1]
	deadline := time.NewTimer(2 * time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := net.Dial("tcp", "127.0.0.1:"+b.port); err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-server.ended:
			return errors.New("it has ended")
		case <-deadline.C:
			return errors.New("it does not listen")
		}
	}
}

func quoted(env []string) string {
	parts := make([]string, len(env))
	for i, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		parts[i] = name + "='" + strings.ReplaceAll(value, "'", `'\''`) + "'"
	}
	return strings.Join(parts, " ")
}

func (b *broker) start(dir string, env []string, name string, args ...string) error {
	output, err := os.OpenFile(filepath.Join(b.home, "output"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = output.Close() }()
	command := exec.Command(name, args...)
	command.Dir, command.Stdout, command.Stderr = dir, output, output
	command.Env = append(withoutRabbit(os.Environ()), env...)
	if err := startGroup(command); err != nil {
		return err
	}
	c := &child{command: command, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		_ = command.Wait()
	}()
	b.started = append(b.started, c)
	return nil
}

// withoutRabbit drops what is set for other brokers.
func withoutRabbit(env []string) []string {
	var kept []string
	for _, variable := range env {
		if !strings.HasPrefix(variable, "RABBITMQ_") && !strings.HasPrefix(variable, "ERL_") {
			kept = append(kept, variable)
		}
	}
	return kept
}

// remove ends the server and its port mapper, and removes their files.
func (b *broker) remove() {
	for i := len(b.started) - 1; i >= 0; i-- {
		killGroup(b.started[i].command)
		<-b.started[i].ended
	}
	_ = os.RemoveAll(b.home)
}

// url is the URL of the broker for a user of .env.example.
func (b *broker) url(t *testing.T, kind string) string {
	env := exampleEnvironment(t)
	return fmt.Sprintf("amqp://%s:%s@127.0.0.1:%s/", env["RABBITMQ_"+kind+"USER"], env["RABBITMQ_"+kind+"PASSWORD"], b.port)
}

// ctl runs rabbitmqctl and returns what it prints.
func (b *broker) ctl(t *testing.T, args ...string) string {
	t.Helper()
	return strings.TrimSpace(mustRun(t, b.home, nil, filepath.Join(b.tools, "rabbitmqctl"), append([]string{"--quiet"}, args...)...))
}

// list runs one of rabbitmqctl's list commands; the cells of a row are separated by
// one blank.
func (b *broker) list(t *testing.T, what string, columns ...string) []string {
	t.Helper()
	var rows []string
	for line := range strings.Lines(b.ctl(t, append([]string{"list_" + what, "--no-table-headers"}, columns...)...)) {
		rows = append(rows, strings.Join(strings.Fields(line), " "))
	}
	return rows
}

// shell runs a line of the documents in a shell that has this broker's rabbitmqctl.
func (b *broker) shell(t *testing.T, line string) {
	t.Helper()
	mustRun(t, b.home, []string{"PATH=" + b.tools + ":" + os.Getenv("PATH")}, "/bin/sh", "-c", line)
}
