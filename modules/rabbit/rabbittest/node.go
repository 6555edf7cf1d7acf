// Package rabbittest runs real RabbitMQ servers for tests: installed with the system,
// started on ports and folders of their own on the loopback interface, and ended with
// the test, or, should the test process die, with that.
package rabbittest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	startTimeout = 90 * time.Second
	stopTimeout  = 30 * time.Second
	ctlTimeout   = 60 * time.Second

	// erlangCookie is the file, in the home of a server, that it shares with those it
	// talks to: rabbitmqctl and the other servers of its cluster.
	erlangCookie = ".erlang.cookie"
)

// folders are where the server's own scripts are: Debian's, Homebrew's on Apple and on
// Intel machines, and the official image's. Debian's /usr/sbin/rabbitmq-server is
// none of them on purpose: as root it becomes the user rabbitmq, who owns other folders.
var folders = []string{
	"/usr/lib/rabbitmq/bin",
	"/opt/homebrew/opt/rabbitmq/sbin",
	"/usr/local/opt/rabbitmq/sbin",
	"/opt/rabbitmq/sbin",
}

// Node is a RabbitMQ server of its own: own port, data, Erlang cookie and port mapper.
// Its methods must not be called concurrently.
type Node struct {
	folder   string // of the server's scripts
	home     string
	name     string
	port     int
	epmdPort int
	distPort int // of the Erlang distribution, which rabbitmqctl speaks

	seed     *Node    // of the cluster that this node joins at its first start, or nil
	epmd     *process // nil where the seed's serves
	server   *process
	watchdog io.Closer // closing it has the watchdog kill what still runs
	watching *process
}

// process is a child that is waited for by a goroutine of its own.
type process struct {
	command *exec.Cmd
	output  *bytes.Buffer // to be read when exited is closed
	exited  chan struct{}
}

func start(command *exec.Cmd) (*process, error) {
	p := &process{command: command, output: new(bytes.Buffer), exited: make(chan struct{})}
	command.Stdout, command.Stderr = p.output, p.output
	// A terminal's ^C is for the test process, which then ends this one.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", command.Path, err)
	}
	go func() {
		defer close(p.exited)
		_ = command.Wait() // how it ended is of no interest: by a signal, mostly
	}()
	return p, nil
}

// signal sends the signal and waits until the process has ended.
func (p *process) signal(signal os.Signal, timeout time.Duration) error {
	if err := p.command.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.exited:
		return nil
	case <-timer.C:
		return fmt.Errorf("process %d did not end within %v", p.command.Process.Pid, timeout)
	}
}

// Start starts a server that ends with the test.
func Start(tb testing.TB) *Node {
	tb.Helper()
	return started(tb, nil)
}

// StartCluster starts a cluster of two servers that ends with the test.
func StartCluster(tb testing.TB) (first, second *Node) {
	tb.Helper()
	first = started(tb, nil)
	return first, started(tb, first)
}

func started(tb testing.TB, seed *Node) *Node {
	tb.Helper()
	node, err := newNode(seed)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(node.remove)
	return node
}

// newNode starts a server, as a member of seed's cluster where there is a seed; the
// caller calls remove.
func newNode(seed *Node) (*Node, error) {
	n := &Node{seed: seed}
	for _, folder := range folders {
		if _, err := os.Stat(filepath.Join(folder, "rabbitmq-server")); err == nil {
			n.folder = folder
			break
		}
	}
	if n.folder == "" {
		return nil, errors.New("RabbitMQ is not installed (Debian: apt-get install rabbitmq-server; macOS: brew install rabbitmq)")
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	n.port, n.epmdPort, n.distPort = ports[0], ports[1], ports[2]
	if seed != nil {
		n.epmdPort = seed.epmdPort // by which nodes find each other
	}
	n.name = fmt.Sprintf("chat-test-%d@localhost", n.port)
	if n.home, err = os.MkdirTemp("", "rabbittest-"); err != nil {
		return nil, err
	}
	if err := n.prepare(); err != nil {
		n.remove()
		return nil, err
	}
	if err := n.run(); err != nil {
		n.remove()
		return nil, err
	}
	return n, nil
}

// prepare writes the server's files and starts its port mapper: one that the server
// started itself would stay behind.
func (n *Node) prepare() error {
	settings := []string{
		"disk_free_limit.absolute = 1MB",
		"log.console = false",
		"log.file.level = warning",
		"distribution.listener.interface = 127.0.0.1",
	}
	files := map[string]string{"enabled_plugins": "[].\n"}
	if n.seed != nil {
		settings = append(settings,
			"cluster_formation.peer_discovery_backend = classic_config",
			"cluster_formation.classic_config.nodes.1 = "+n.seed.name,
			"cluster_formation.classic_config.nodes.2 = "+n.name,
		)
		cookie, err := os.ReadFile(filepath.Join(n.seed.home, erlangCookie))
		if err != nil {
			return err
		}
		files[erlangCookie] = string(cookie)
	}
	files["rabbitmq.conf"] = strings.Join(settings, "\n") + "\n"
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(n.home, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if n.seed != nil {
		return nil
	}
	command := exec.Command("epmd", "-port", strconv.Itoa(n.epmdPort), "-address", "127.0.0.1")
	command.Dir = n.home
	var err error
	if n.epmd, err = start(command); err != nil {
		return err
	}
	return await(n.epmd, startTimeout, "the Erlang port mapper", func() bool {
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(n.epmdPort)))
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
}

// environment is that of the server and of rabbitmqctl. Nothing of RabbitMQ or Erlang
// that is set for this process counts.
func (n *Node) environment() []string {
	var env []string
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "RABBITMQ_") && !strings.HasPrefix(variable, "ERL_") && !strings.HasPrefix(variable, "HOME=") {
			env = append(env, variable)
		}
	}
	in := func(name string) string { return filepath.Join(n.home, name) }
	return append(env,
		"HOME="+n.home, // of the Erlang cookie
		"ERL_EPMD_PORT="+strconv.Itoa(n.epmdPort),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_NODENAME="+n.name,
		"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
		"RABBITMQ_NODE_PORT="+strconv.Itoa(n.port),
		"RABBITMQ_DIST_PORT="+strconv.Itoa(n.distPort),
		"RABBITMQ_CONF_ENV_FILE="+in("rabbitmq-env.conf"), // does not exist
		"RABBITMQ_CONFIG_FILE="+in("rabbitmq.conf"),
		"RABBITMQ_ENABLED_PLUGINS_FILE="+in("enabled_plugins"),
		"RABBITMQ_MNESIA_BASE="+in("mnesia"),
		"RABBITMQ_LOG_BASE="+in("log"),
		"RABBITMQ_PID_FILE="+in("pid"),
		// Makes the script become the server, so that our child is the server itself.
		"RUNNING_UNDER_SYSTEMD=true",
	)
}

// run starts the server and waits until it takes AMQP connections.
func (n *Node) run() error {
	// Debian's limit of 1,024 files is enough for 800 connections.
	command := exec.Command("/bin/sh", "-c",
		`ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"; exec "$0"`, filepath.Join(n.folder, "rabbitmq-server"))
	command.Dir, command.Env = n.home, n.environment()
	var err error
	if n.server, err = start(command); err != nil {
		return err
	}
	if err := n.watch(); err != nil {
		return err
	}
	return await(n.server, startTimeout, "RabbitMQ", func() bool {
		conn, err := amqp.DialConfig(n.URL(), amqp.Config{Dial: amqp.DefaultDial(2 * time.Second)})
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
}

// watch has another process kill the server and its port mapper when this process ends
// without doing so itself, as go test does to it after a timeout.
func (n *Node) watch() error {
	n.unwatch()
	command := exec.Command("/bin/sh", "-c", `read _; kill -9 "$@" 2>/dev/null; sleep 1; rm -rf "$0"`, n.home,
		strconv.Itoa(n.server.command.Process.Pid))
	if n.epmd != nil {
		command.Args = append(command.Args, strconv.Itoa(n.epmd.command.Process.Pid))
	}
	pipe, err := command.StdinPipe()
	if err != nil {
		return err
	}
	if n.watching, err = start(command); err != nil {
		return err
	}
	n.watchdog = pipe
	return nil
}

func (n *Node) unwatch() {
	if n.watching != nil {
		_ = n.watching.signal(syscall.SIGKILL, stopTimeout)
		_ = n.watchdog.Close()
		n.watching = nil
	}
}

// await waits until ready returns true, and gives up when the process has ended.
func await(p *process, timeout time.Duration, what string, ready func() bool) error {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("%s ended: %s", what, p.output)
		case <-deadline.C:
			return fmt.Errorf("%s was not ready within %v", what, timeout)
		}
	}
	return nil
}

// remove kills the server and deletes its files.
func (n *Node) remove() {
	n.unwatch()
	for _, p := range []*process{n.server, n.epmd} {
		if p != nil {
			_ = p.signal(syscall.SIGKILL, stopTimeout)
		}
	}
	_ = os.RemoveAll(n.home)
}

// URL returns the AMQP URL of the server, with all permissions.
func (n *Node) URL() string {
	return fmt.Sprintf("amqp://guest:guest@127.0.0.1:%d/", n.port)
}

// Address returns host and port of the server's AMQP listener.
func (n *Node) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(n.port)) }

// Stop stops the server in an orderly way: it tells its clients.
func (n *Node) Stop(tb testing.TB) {
	tb.Helper()
	if err := n.server.signal(syscall.SIGTERM, stopTimeout); err != nil {
		tb.Fatalf("stop RabbitMQ: %v", err)
	}
}

// Kill ends the server with SIGKILL.
func (n *Node) Kill(tb testing.TB) {
	tb.Helper()
	if err := n.server.signal(syscall.SIGKILL, stopTimeout); err != nil {
		tb.Fatalf("kill RabbitMQ: %v", err)
	}
}

// Restart starts the server again, on the same port and with what it has on disk; a
// server that still runs is stopped first.
func (n *Node) Restart(tb testing.TB) {
	tb.Helper()
	n.Stop(tb)
	if err := n.run(); err != nil {
		tb.Fatal(err)
	}
}

// Freeze makes the server answer nothing and close nothing (SIGSTOP), as if the network
// swallowed all packets. Thaw, or the end of the test, undoes it.
func (n *Node) Freeze(tb testing.TB) {
	tb.Helper()
	process := n.server.command.Process
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		tb.Fatalf("freeze RabbitMQ: %v", err)
	}
	// The signal takes a moment to stop all threads; the parent is told when it has.
	stopped := func() bool {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(process.Pid, &status, syscall.WUNTRACED|syscall.WNOHANG, nil)
		return err == nil && pid == process.Pid && status.Stopped()
	}
	if err := await(n.server, stopTimeout, "freezing RabbitMQ", stopped); err != nil {
		tb.Fatal(err)
	}
}

// Thaw undoes Freeze.
func (n *Node) Thaw(tb testing.TB) {
	tb.Helper()
	if err := n.server.command.Process.Signal(syscall.SIGCONT); err != nil {
		tb.Fatalf("thaw RabbitMQ: %v", err)
	}
}

// Ctl runs rabbitmqctl on the server and returns what it prints.
func (n *Node) Ctl(tb testing.TB, args ...string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ctlTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, filepath.Join(n.folder, "rabbitmqctl"), append([]string{"--quiet"}, args...)...)
	command.Dir, command.Env = n.home, n.environment()
	var complaint bytes.Buffer
	command.Stderr = &complaint
	output, err := command.Output()
	if err != nil {
		tb.Fatalf("rabbitmqctl %s: %v: %s", strings.Join(args, " "), err, &complaint)
	}
	return string(output)
}

// Queues returns the names of all queues.
func (n *Node) Queues(tb testing.TB) []string {
	tb.Helper()
	return strings.Fields(n.Ctl(tb, "list_queues", "--no-table-headers", "name"))
}

// freePorts returns ports that were free a moment ago, all different. They lie below
// those that systems give to outgoing connections, so that a server that is restarted
// finds its port free.
func freePorts(count int) ([]int, error) {
	const lowest, highest, attempts = 20_000, 32_000, 1000
	var ports []int
	for range attempts {
		if len(ports) == count {
			return ports, nil
		}
		port := lowest + rand.IntN(highest-lowest)
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil || slices.Contains(ports, port) {
			continue
		}
		if err := listener.Close(); err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	return nil, errors.New("no free ports were found")
}
