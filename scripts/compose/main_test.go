// Package compose is what compose.yaml mounts, and the tests of it: each file is read
// by the program that it is for, and what docs/operations.md tells operators to type
// is typed.
package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/joho/godotenv"
)

// patience is how long a test waits for something that is bound to happen.
const patience = 60 * time.Second

// binary is the service, built as the Dockerfile builds it.
var binary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	// Debian keeps servers where only root's path leads.
	_ = os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/usr/local/sbin")
	dir, err := os.MkdirTemp("", "compose")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "chat-transportation")
	if err := buildAsImage(binary, runtime.GOOS); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := startWatchdog(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer stopSharedBroker()
	return m.Run()
}

// watchdog is a shell that is told of each process group that is started and ended.
// When this process is gone, by ^C or a time limit, it ends those that are left.
var watchdog io.Writer

const watchdogScript = `
groups=
while read -r change group; do
  rest=
  for known in $groups; do [ "$known" = "$group" ] || rest="$rest $known"; done
  groups=$rest
  [ "$change" = ended ] || groups="$groups $group"
done
for group in $groups; do kill -9 "-$group"; done
`

func startWatchdog() error {
	command := exec.Command("/bin/sh", "-c", watchdogScript)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	input, err := command.StdinPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start the watchdog: %w", err)
	}
	watchdog = input
	return nil
}

// startGroup starts a command in a process group of its own.
func startGroup(command *exec.Cmd) error {
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start %s: %w", command.Path, err)
	}
	_, err := fmt.Fprintln(watchdog, "started", command.Process.Pid)
	return err
}

// killGroup ends what is left of the group; the caller waits for the command.
func killGroup(command *exec.Cmd) {
	_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
	_, _ = fmt.Fprintln(watchdog, "ended", command.Process.Pid)
}

// buildAsImage runs the Dockerfile's "go build" for a system.
func buildAsImage(to, system string) error {
	text, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		return err
	}
	line := regexp.MustCompile(`(?m)^\s+go build -buildvcs=\S+ (-tags=\S+) (-trimpath) -ldflags="([^"]+)" -o /out/chat-transportation (\S+)$`).FindStringSubmatch(string(text))
	if line == nil {
		return errors.New("the Dockerfile has no go build with -buildvcs, -tags, -trimpath, -ldflags and -o")
	}
	build := exec.Command("go", "build", "-buildvcs=false", line[1], line[2], "-ldflags="+line[3], "-o", to, line[4])
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system)
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the service: %w\n%s", err, output)
	}
	return nil
}

// root is the folder of compose.yaml.
const root = "../.."

// file returns the text of a file of the repository.
func file(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// write writes a file into a folder and returns its path.
func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// exampleEnvironment is .env as a user has it after "cp .env.example .env".
func exampleEnvironment(t testing.TB) map[string]string {
	t.Helper()
	env, err := godotenv.Read(filepath.Join(root, ".env.example"))
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// program returns the path of an installed program.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed: run scripts/test, which sees to it", name)
	}
	return path
}

// replace replaces a text that must be there, everywhere.
func replace(t testing.TB, in, old, with string) string {
	t.Helper()
	if !strings.Contains(in, old) {
		t.Fatalf("the test wants to replace %q, which is not there any more", old)
	}
	return strings.ReplaceAll(in, old, with)
}

// run runs a command to its end, with more variables than this process has, and
// returns what it prints.
func run(t testing.TB, dir string, env []string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, name, args...)
	command.Dir = dir
	command.Env = append(os.Environ(), env...)
	output, err := command.CombinedOutput()
	return string(output), err
}

// mustRun is run for commands that must succeed.
func mustRun(t testing.TB, dir string, env []string, name string, args ...string) string {
	t.Helper()
	output, err := run(t, dir, env, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return output
}

// process is a program that runs until the test ends.
type process struct {
	t       testing.TB
	command *exec.Cmd
	done    chan struct{} // closed when it has ended

	mu   sync.Mutex
	text bytes.Buffer
}

// launch starts a program with only the given variables beside PATH.
func launch(t testing.TB, dir string, env map[string]string, name string, args ...string) *process {
	t.Helper()
	p := &process{t: t, command: exec.Command(name, args...), done: make(chan struct{})}
	p.command.Dir = dir
	p.command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	for variable, value := range env {
		p.command.Env = append(p.command.Env, variable+"="+value)
	}
	p.command.Stdout, p.command.Stderr = p, p
	if err := startGroup(p.command); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.command.Wait()
	}()
	t.Cleanup(func() {
		// The group, since nginx and Prometheus may have children.
		killGroup(p.command)
		<-p.done
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(name), p)
		}
	})
	return p
}

// Write keeps what the program prints.
func (p *process) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(text)
}

// String returns what the program has printed.
func (p *process) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// stop sends a signal and waits for the end of the program.
func (p *process) stop(signal os.Signal) {
	p.t.Helper()
	if err := p.command.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s does not end", p.command.Path)
	}
}

// eventually waits until the condition holds.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline.C:
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

// freePort returns a port that is free on all the loopback addresses at the moment.
func freePort(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
