package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/rabbitmq/amqp091-go"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass/redistest"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// The tests of this file know the service as its users do: a program with an
// environment, HTTP, WebSocket and AMQP.

const testKey = "a-key-that-only-the-tests-know-0123456789"

// binary is the program, built with the race detector by TestMain.
var binary string

// blackBoxLog is what every instance of the run has logged; see TestMain.
var blackBoxLog logBook

// logBook gathers logs and the secrets that must not be in them.
type logBook struct {
	mu      sync.Mutex
	text    bytes.Buffer
	secrets []string
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBook) secret(text string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.secrets = append(b.secrets, text)
	return text
}

// leaked returns the log lines that hold a secret. All secrets are long, so a look at
// each place for the beginning of one takes a time that does not grow with their number.
func (b *logBook) leaked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	const beginning = 16
	known := make(map[string][]string, len(b.secrets))
	for _, secret := range b.secrets {
		known[secret[:beginning]] = append(known[secret[:beginning]], secret)
	}
	// All tokens begin with the same header: their ends are told apart below.
	holds := func(line string) bool {
		for i := range max(0, len(line)-beginning) {
			for _, secret := range known[line[i:i+beginning]] {
				if strings.HasPrefix(line[i:], secret) {
					return true
				}
			}
		}
		return false
	}
	var lines []string
	for line := range strings.Lines(b.text.String()) {
		if holds(line) {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "chat-transportation")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "chat-transportation")
	build := exec.Command("go", "build", "-race", "-o", binary, ".")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the program:", err)
		return 1
	}
	code := m.Run()
	if lines := blackBoxLog.leaked(); len(lines) > 0 {
		fmt.Fprintf(os.Stderr, "FAIL: %d log lines hold a pass, a token or a key, the first: %s\n", len(lines), lines[0])
		return 1
	}
	return code
}

// instance is a running program.
type instance struct {
	t    *testing.T
	cmd  *exec.Cmd
	url  string // http://127.0.0.1:port
	out  *output
	done chan struct{} // closed when the process has ended
}

// output keeps what a process writes to stderr.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = blackBoxLog.Write(p)
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// tail returns the last lines but for those of requests that went well: some tests ask
// for a page a hundred times a second, and a report that is all requests hides what
// failed.
func (o *output) tail(lines int) string {
	var kept []string
	for line := range strings.Lines(o.String()) {
		if !strings.Contains(line, `"level":"info"`) || !strings.Contains(line, `"logger":"http"`) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept[max(0, len(kept)-lines):], "")
}

// launch starts the program with only the given variables, in an empty folder.
func launch(t *testing.T, args []string, env map[string]string) *instance {
	t.Helper()
	return launchProgram(t, binary, args, env)
}

func launchProgram(t *testing.T, program string, args []string, env map[string]string) *instance {
	t.Helper()
	p := &instance{t: t, cmd: exec.Command(program, args...), out: &output{}, done: make(chan struct{})}
	p.cmd.Dir = t.TempDir()
	p.cmd.Stderr = p.out
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.cmd.Dir}
	for name, value := range env {
		p.cmd.Env = append(p.cmd.Env, name+"="+value)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if strings.Contains(p.out.String(), "DATA RACE") {
			t.Errorf("the race detector has found something:\n%s", p.out)
		} else if t.Failed() {
			t.Logf("log of pid %d, without the requests:\n%s", p.cmd.Process.Pid, p.out.tail(80))
		}
	})
	return p
}

// serveWith starts an instance on a free port and waits until it is ready.
func serveWith(t *testing.T, env map[string]string) *instance {
	t.Helper()
	p := serveUnready(t, env)
	p.eventually("the instance is ready", func() bool { return p.status("/readyz") == http.StatusOK })
	return p
}

func serveUnready(t *testing.T, env map[string]string) *instance {
	t.Helper()
	return serveProgram(t, binary, env)
}

// serveProgram starts an instance on a free port and waits until it answers.
func serveProgram(t *testing.T, program string, env map[string]string) *instance {
	t.Helper()
	address := freeAddress(t)
	all := map[string]string{"HTTP_ADDR": address}
	for name, value := range env {
		all[name] = value
	}
	p := launchProgram(t, program, nil, all)
	p.url = "http://" + address
	p.eventually("the instance answers", func() bool { return p.status("/healthz") == http.StatusOK })
	return p
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// eventually waits for a condition, for twenty seconds at most.
func (p *instance) eventually(what string, condition func() bool) {
	p.t.Helper()
	eventually(p.t, what, condition)
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

// status returns the status of a GET, 0 where there is no answer.
func (p *instance) status(path string) int {
	response, err := http.Get(p.url + path)
	if err != nil {
		return 0
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

// ended waits for the end of the process and returns its exit code.
func (p *instance) ended(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		p.t.Fatalf("the process has not ended within %s", within)
		return -1
	}
}

func (p *instance) signal(signal os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		p.t.Fatal(err)
	}
}

// tokenFor signs a token for a user.
func tokenFor(t *testing.T, user int64, ttl time.Duration) string {
	t.Helper()
	id, err := domain.NewUserID(user)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := authpass.SignToken(authpass.TokenConfig{Algorithm: "HS256", Key: testKey}, id, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return blackBoxLog.secret(signed)
}

// pass fetches a pass under the prefix, "" or "/transportation".
func (p *instance) pass(prefix, token string) string {
	p.t.Helper()
	request, err := http.NewRequest(http.MethodPost, p.url+prefix+"/messages/get-connection-pass", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var answer struct {
		Pass      string `json:"connection_pass"`
		ExpiresIn int    `json:"expires_in"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		p.t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK || len(answer.Pass) != 32 || answer.ExpiresIn != 30 || response.Header.Get("Cache-Control") != "no-store" {
		p.t.Fatalf("pass: %s, %d characters, expires in %d", response.Status, len(answer.Pass), answer.ExpiresIn)
	}
	return blackBoxLog.secret(answer.Pass)
}

// client is a WebSocket client that reads all the time.
type client struct {
	t      *testing.T
	conn   *websocket.Conn
	frames chan string
	closed chan error // the error that ended the reader
}

func (p *instance) dial(prefix, pass string) (*client, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, strings.Replace(p.url, "http", "ws", 1)+prefix+"/messages/?connection_pass="+pass, nil)
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(-1)
	c := &client{t: p.t, conn: conn, frames: make(chan string, 10000), closed: make(chan error, 1)}
	go func() {
		for {
			_, data, err := conn.Read(context.Background())
			if err != nil {
				close(c.frames)
				c.closed <- err
				return
			}
			c.frames <- string(data)
		}
	}()
	p.t.Cleanup(func() { _ = conn.CloseNow() })
	return c, nil
}

// connect opens a connection of a user.
func (p *instance) connect(user int64) *client {
	p.t.Helper()
	c, err := p.dial("", p.pass("", tokenFor(p.t, user, time.Hour)))
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

func (c *client) send(id, chat string, recipient int64, body string) {
	c.t.Helper()
	frame, err := json.Marshal(map[string]any{"client_message_id": id, "chat_id": chat, "recipient_id": recipient, "body": body})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.conn.Write(c.t.Context(), websocket.MessageText, frame); err != nil {
		c.t.Fatal(err)
	}
}

// next returns the next frame, decoded.
func (c *client) next() map[string]any {
	c.t.Helper()
	select {
	case frame, open := <-c.frames:
		if !open {
			c.t.Fatalf("the connection is closed: %v", <-c.closed)
		}
		var object map[string]any
		if err := json.Unmarshal([]byte(frame), &object); err != nil {
			c.t.Fatalf("%q: %v", frame, err)
		}
		return object
	case <-time.After(15 * time.Second):
		c.t.Fatal("no frame came")
		return nil
	}
}

// code waits for the close code; frames that are still unread are dropped.
func (c *client) code() websocket.StatusCode {
	c.t.Helper()
	select {
	case err := <-c.closed:
		return websocket.CloseStatus(err)
	case <-time.After(20 * time.Second):
		c.t.Fatal("the connection was not closed")
		return 0
	}
}

// peer is a connection to the broker, as a backend has one.
type peer struct {
	t       *testing.T
	channel *amqp091.Channel
	returns chan amqp091.Return
}

func newPeer(t *testing.T, url string) *peer {
	t.Helper()
	connection, err := amqp091.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	channel, err := connection.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := channel.Confirm(false); err != nil {
		t.Fatal(err)
	}
	return &peer{t, channel, channel.NotifyReturn(make(chan amqp091.Return, 16))}
}

// publish publishes for a user and reports whether a queue took it.
func (p *peer) publish(user int64, kind, body string) bool {
	p.t.Helper()
	confirm, err := p.channel.PublishWithDeferredConfirm("websockets", fmt.Sprint(user), true, false,
		amqp091.Publishing{ContentType: "application/json", Type: kind, Body: []byte(body)})
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
	defer cancel()
	if acked, err := confirm.WaitContext(ctx); err != nil || !acked {
		p.t.Fatalf("the broker did not take the message: %v", err)
	}
	select {
	case <-p.returns:
		return false
	default:
		return true
	}
}

// consume binds a queue of its own to the database exchange and returns its messages.
func (p *peer) consume() <-chan amqp091.Delivery {
	p.t.Helper()
	queue, err := p.channel.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.channel.QueueBind(queue.Name, "", "database", false, nil); err != nil {
		p.t.Fatal(err)
	}
	deliveries, err := p.channel.Consume(queue.Name, "", true, true, false, false, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return deliveries
}

func TestBlackBox(t *testing.T) {
	node := rabbittest.Start(t)
	redis := redistest.URL(t)
	env := func(more ...string) map[string]string {
		all := map[string]string{"RABBITMQ_URL": node.URL(), "KEY": blackBoxLog.secret(testKey), "PASS_REQUESTS_PER_MINUTE": "0"}
		for i := 0; i+1 < len(more); i += 2 {
			all[more[i]] = more[i+1]
		}
		return all
	}
	// queuesOf returns the queues at the broker that belong to a user.
	queuesOf := func(t *testing.T, user int64) (own []string) {
		for _, queue := range node.Queues(t) {
			if strings.HasPrefix(queue, fmt.Sprintf("websocket.connection.%d.", user)) {
				own = append(own, queue)
			}
		}
		return own
	}
	for _, scope := range []string{"user", "instance"} {
		t.Run("the whole way, scope "+scope, func(t *testing.T) { wholeWay(t, node, env("QUEUE_SCOPE", scope)) })
		t.Run("control.disconnect, scope "+scope, func(t *testing.T) {
			p, backend := serveWith(t, env("QUEUE_SCOPE", scope)), newPeer(t, node.URL())
			one, two, other := p.connect(1), p.connect(1), p.connect(2)
			backend.publish(1, "control.disconnect", `[]`)
			backend.publish(1, "control.disconnect", `{"reason":"banned"}`)
			for _, c := range []*client{one, two} {
				var closed websocket.CloseError
				if err := <-c.closed; !errors.As(err, &closed) || closed.Code != 4403 || closed.Reason != "banned" {
					t.Errorf("closed with %v", err)
				}
			}
			eventually(t, "user 1 is gone", func() bool { return !backend.publish(1, "", `{}`) })
			if !backend.publish(2, "", `{"still":"here"}`) || other.next()["still"] != "here" {
				t.Error("user 2 was disturbed")
			}
		})
	}
	t.Run("two instances", func(t *testing.T) {
		a, b := serveWith(t, env("REDIS_URL", redis)), serveWith(t, env("REDIS_URL", redis))
		pass := a.pass("", tokenFor(t, 7, time.Hour))
		onB, err := b.dial("/transportation", pass)
		if err != nil {
			t.Fatal(err)
		}
		onA := a.connect(7)
		if n := len(queuesOf(t, 7)); n != 2 {
			t.Errorf("user 7 has %d queues on two instances", n)
		}
		backend := newPeer(t, node.URL())
		backend.publish(7, "", `{"n":1}`)
		for _, c := range []*client{onA, onB} {
			if got := c.next(); got["n"] != 1.0 {
				t.Errorf("got %v", got)
			}
		}
		again, err := a.dial("", pass)
		if err != nil {
			t.Fatal(err)
		}
		if code := again.code(); code != 4401 {
			t.Errorf("a pass that was used elsewhere: closed with %d", code)
		}
		race(t, []*instance{a, b}, a.pass("", tokenFor(t, 8, time.Hour)))
	})
	t.Run("fifty connections race for one pass", func(t *testing.T) {
		p := serveWith(t, env())
		race(t, []*instance{p}, p.pass("", tokenFor(t, 9, time.Hour)))
	})
	for _, scope := range []string{"user", "instance"} {
		t.Run("SIGTERM, scope "+scope, func(t *testing.T) {
			p, backend := serveWith(t, env("QUEUE_SCOPE", scope, "SHUTDOWN_DRAIN_WINDOW", "3s")), newPeer(t, node.URL())
			stored := backend.consume()
			clients := []*client{p.connect(11), p.connect(11), p.connect(12)}
			for i, c := range clients {
				c.send(fmt.Sprint("m", i), "c", 1, "last words")
			}
			backend.publish(11, "", `{"n":1}`)
			for _, c := range clients[:2] {
				if got := c.next(); got["n"] != 1.0 {
					t.Errorf("got %v", got)
				}
			}
			p.signal(syscall.SIGTERM)
			p.eventually("not ready", func() bool { return p.status("/readyz") == http.StatusServiceUnavailable })
			if _, err := p.dial("", strings.Repeat("a", 32)); err == nil || !strings.Contains(err.Error(), "503") {
				t.Errorf("an upgrade while shutting down: %v", err)
			}
			for i, c := range clients {
				if code := c.code(); code != websocket.StatusServiceRestart {
					t.Errorf("client %d was closed with %d", i, code)
				}
			}
			if code := p.ended(20 * time.Second); code != 0 {
				t.Errorf("exit code %d", code)
			}
			for range clients {
				<-stored
			}
			if queues := websocketQueues(node.Queues(t)); len(queues) != 0 {
				t.Errorf("queues are left: %q", queues)
			}
		})
		t.Run("SIGKILL, scope "+scope, func(t *testing.T) {
			p := serveWith(t, env("QUEUE_SCOPE", scope))
			p.connect(21)
			p.connect(22)
			if queues := websocketQueues(node.Queues(t)); len(queues) == 0 {
				t.Error("there is no queue")
			}
			p.signal(syscall.SIGKILL)
			p.ended(5 * time.Second)
			eventually(t, "the broker has removed the queues", func() bool { return len(websocketQueues(node.Queues(t))) == 0 })
		})
	}
	t.Run("a second signal ends the process at once", func(t *testing.T) {
		p := serveWith(t, env("SHUTDOWN_TIMEOUT", "10m", "SHUTDOWN_DRAIN_WINDOW", "5m"))
		for range 5 {
			p.connect(31)
		}
		p.signal(syscall.SIGTERM)
		p.eventually("not ready", func() bool { return p.status("/readyz") == http.StatusServiceUnavailable })
		p.signal(syscall.SIGINT)
		if code := p.ended(3 * time.Second); code == 0 {
			t.Error("exit code 0 although the shutdown was cut short")
		}
		eventually(t, "the broker has removed the queues", func() bool { return len(websocketQueues(node.Queues(t))) == 0 })
	})
	t.Run("a signal during the start", func(t *testing.T) {
		// A pass store that accepts connections and says nothing is what a start waits for.
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = silent.Close() }()
		p := launch(t, nil, env("HTTP_ADDR", freeAddress(t), "REDIS_URL", "redis://"+silent.Addr().String()))
		conn, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		p.signal(syscall.SIGTERM)
		if code := p.ended(20 * time.Second); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("healthcheck", func(t *testing.T) {
		p := serveWith(t, env())
		address := strings.TrimPrefix(p.url, "http://")
		if code := launch(t, []string{"healthcheck"}, map[string]string{"HTTP_ADDR": address}).ended(10 * time.Second); code != 0 {
			t.Errorf("a ready instance: exit code %d", code)
		}
		if code := launch(t, []string{"healthcheck"}, map[string]string{"HTTP_ADDR": freeAddress(t)}).ended(10 * time.Second); code == 0 {
			t.Error("no instance: exit code 0")
		}
	})
	t.Run("waits for the broker and picks it up again", func(t *testing.T) {
		late := rabbittest.Start(t)
		late.Stop(t)
		p := serveUnready(t, env("RABBITMQ_URL", late.URL()))
		if status := p.status("/readyz"); status != http.StatusServiceUnavailable {
			t.Errorf("/readyz without a broker: %d", status)
		}
		pass := p.pass("", tokenFor(t, 41, time.Hour))
		if _, err := p.dial("", pass); err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("an upgrade without a broker: %v", err)
		}
		late.Restart(t)
		p.eventually("ready with the broker", func() bool { return p.status("/readyz") == http.StatusOK })
		c, err := p.dial("", pass)
		if err != nil {
			t.Fatalf("the pass was spent by a refused upgrade: %v", err)
		}
		late.Kill(t)
		p.eventually("not ready", func() bool { return p.status("/readyz") == http.StatusServiceUnavailable })
		c.send("while away", "c", 1, "")
		if got := c.next(); got["title"] != "Delivery error." || got["in_reply_to"] != "while away" {
			t.Errorf("got %v", got)
		}
		late.Restart(t)
		p.eventually("ready again", func() bool { return p.status("/readyz") == http.StatusOK })
		if !newPeer(t, late.URL()).publish(41, "", `{"n":2}`) || c.next()["n"] != 2.0 {
			t.Error("the user's queue is not back")
		}
	})
}

func websocketQueues(queues []string) (own []string) {
	for _, queue := range queues {
		if strings.HasPrefix(queue, "websocket.") {
			own = append(own, queue)
		}
	}
	return own
}

// wholeWay walks pass -> socket -> publish -> backend -> socket -> disconnect -> queue gone.
func wholeWay(t *testing.T, node *rabbittest.Node, env map[string]string) {
	p := serveWith(t, env)
	backend := launch(t, []string{"backend"}, env)
	backend.eventually("the backend answers", func() bool { return strings.Contains(backend.out.String(), "answering messages") })
	alice, phone := p.connect(1), p.connect(2)
	tablet, err := p.dial("/transportation", p.pass("/transportation", tokenFor(t, 2, time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	alice.send("m1", "general", 2, "hi <b>&</b> \u2028 😀")
	for _, device := range []*client{phone, tablet} {
		got := device.next()
		if got["client_message_id"] != "m1" || got["chat_id"] != "general" || got["sender_id"] != 1.0 || got["recipient_id"] != 2.0 ||
			got["status"] != "delivered" || got["body"] != "hi <b>&</b> \u2028 😀" || got["id"] == nil || got["delivered_at"] == nil || len(got) != 11 {
			t.Errorf("the recipient got %v", got)
		}
	}
	alice.send("m1", "general", 2, "again")
	if got := alice.next(); got["status"] != "rejected" || got["reject_reason"] == nil || got["client_message_id"] != "m1" {
		t.Errorf("a repeated message: %v", got)
	}
	// Order, from one connection to another.
	const many = 30
	for i := range many {
		alice.send(fmt.Sprint("n", i), "general", 2, "")
	}
	for i := range many {
		if got := phone.next(); got["client_message_id"] != fmt.Sprint("n", i) {
			t.Fatalf("message %d: got %v", i, got)
		}
	}
	peer := newPeer(t, node.URL())
	if !peer.publish(2, "", ` {"as":"is"}`) {
		t.Error("user 2 has no queue")
	}
	_ = phone.conn.Close(websocket.StatusNormalClosure, "")
	for range many {
		tablet.next()
	}
	select {
	case frame := <-tablet.frames:
		if frame != ` {"as":"is"}` {
			t.Errorf("not byte for byte: %q", frame)
		}
	case <-time.After(10 * time.Second):
		t.Error("no frame came")
	}
	if !peer.publish(2, "", `{}`) {
		t.Error("the queue is gone although a device is connected")
	}
	_ = tablet.conn.CloseNow() // without a close handshake
	eventually(t, "the queue is gone", func() bool { return !peer.publish(2, "", `{}`) })
	backend.signal(syscall.SIGTERM)
	if code := backend.ended(10 * time.Second); code != 0 {
		t.Errorf("the backend's exit code is %d", code)
	}
}

// race lets fifty connections race for one pass.
func race(t *testing.T, instances []*instance, pass string) {
	t.Helper()
	const racers = 50
	start, open := make(chan struct{}), make(chan bool, racers)
	for i := range racers {
		go func() {
			<-start
			c, err := instances[i%len(instances)].dial("", pass)
			if err != nil {
				t.Errorf("an upgrade failed: %v", err)
				open <- false
				return
			}
			select {
			case err := <-c.closed:
				if code := websocket.CloseStatus(err); code != 4401 {
					t.Errorf("a loser was closed with %d", code)
				}
				open <- false
			case <-time.After(2 * time.Second):
				open <- true
			}
		}()
	}
	close(start)
	winners := 0
	for range racers {
		if <-open {
			winners++
		}
	}
	if winners != 1 {
		t.Errorf("%d connections won", winners)
	}
}

func TestConfigurationFaultsEndTheStart(t *testing.T) {
	p := launch(t, nil, map[string]string{"KEY": testKey, "WS_SEND_QUEUE": "0", "LOG_LEVEL": "loud"})
	if code := p.ended(10 * time.Second); code != 1 {
		t.Errorf("exit code %d", code)
	}
	for _, name := range []string{"RABBITMQ_URL is required", "WS_SEND_QUEUE must", "LOG_LEVEL must"} {
		if !strings.Contains(p.out.String(), name) {
			t.Errorf("%q is not in %s", name, p.out)
		}
	}
}

func TestAddressInUseEndsTheStart(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	p := launch(t, nil, map[string]string{"HTTP_ADDR": listener.Addr().String()})
	if code := p.ended(20 * time.Second); code != 1 {
		t.Errorf("exit code %d", code)
	}
}
