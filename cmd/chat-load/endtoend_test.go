package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// site is a gateway and a broker, with exchanges of their own.
type site struct {
	t       *testing.T
	amqp    string
	scope   string
	address string
	prefix  string    // of the exchanges
	extra   []string  // variables of the gateway
	process *exec.Cmd // nil while the gateway is stopped
	log     bytes.Buffer
}

func newSite(t *testing.T, scope string, extra ...string) *site {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, amqp: rabbittest.URL(t), scope: scope, extra: extra, address: listener.Addr().String(), prefix: fmt.Sprintf("load-%d-", time.Now().UnixNano())}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *site) start() {
	s.t.Helper()
	s.process = exec.Command(gatewayProgram(s.t))
	s.process.Dir = s.t.TempDir()
	s.process.Stderr = &s.log
	s.process.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HTTP_ADDR=" + s.address, "KEY=" + secret, "RABBITMQ_URL=" + s.amqp, "QUEUE_SCOPE=" + s.scope,
		"WEBSOCKETS_EXCHANGE_NAME=" + s.prefix + "websockets", "DATABASE_EXCHANGE_NAME=" + s.prefix + "database",
		"PASS_REQUESTS_PER_MINUTE=0", "WS_MESSAGES_PER_SECOND=0", "SHUTDOWN_DRAIN_WINDOW=200ms", "LOG_LEVEL=warn",
	}, s.extra...)
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "the gateway is ready", func() bool {
		answer, err := http.Get("http://" + s.address + "/readyz")
		if err != nil {
			return false
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
	http.DefaultClient.CloseIdleConnections()
}

func (s *site) stop() {
	if s.process == nil {
		return
	}
	_ = s.process.Process.Signal(syscall.SIGTERM)
	if err := s.process.Wait(); err != nil {
		s.t.Errorf("the gateway: %v\n%s", err, &s.log)
	}
	s.process = nil
}

// kill ends the gateway as a crash does.
func (s *site) kill() {
	_ = s.process.Process.Kill()
	_ = s.process.Wait()
	s.process = nil
}

// load runs the program against the site and returns its exit code and its result.
func (s *site) load(ctx context.Context, line string) (int, *report) {
	s.t.Helper()
	scenario, flags, _ := strings.Cut(line, " ")
	arguments := append([]string{scenario}, "-json", "-amqp", s.amqp, "-websockets-exchange", s.prefix+"websockets",
		"-database-exchange", s.prefix+"database", "-settle", "0s", "-drain", "10s")
	if !strings.Contains(line, "-target") {
		arguments = append(arguments, "-url", "http://"+s.address)
	}
	arguments = append(arguments, strings.Fields(flags)...) // the last word on a flag counts
	var out, messages bytes.Buffer
	code := command(ctx, arguments, withKey, nil, &out, &messages)
	r := new(report)
	if err := json.Unmarshal(out.Bytes(), r); err != nil {
		s.t.Fatalf("%s: exit code %d, %v: %s%s", line, code, err, &out, &messages)
	}
	return code, r
}

func TestScenariosEndToEnd(t *testing.T) {
	for _, scope := range []string{scopeUser, scopeInstance} {
		t.Run(scope, func(t *testing.T) {
			s := newSite(t, scope)
			for _, c := range []struct {
				line     string
				expected uint64
			}{
				{"idle -users 20 -duration 100ms", 20},
				{"idle -users 300 -duration 1ms", 300},
				{"delivery -users 10 -connections-per-user 2 -rate flood -messages 500", 1000},
				{"delivery -users 10 -workers 2 -rate 500 -messages 200", 200},
				{"inbound -users 10 -rate flood -messages 500 -bytes 1000", 500},
				{"inbound -users 9 -connections-per-user 2 -workers 3 -rate flood -messages 500", 500},
				{"roundtrip -users 10 -connections-per-user 2 -rate 400 -messages 200", 200},
				{"roundtrip -users 10 -workers 2 -rate flood -messages 300", 300},
				{"storm -users 30 -source-addresses 127.0.0.1", 30},
				{"churn -users 10 -rate 100 -duration 300ms", 10},
				{"inbound -target amqp -users 10 -rate flood -messages 500 -scope " + scope, 500},
				{"delivery -target amqp -users 10 -rate flood -messages 500 -scope " + scope, 500},
				{"roundtrip -target amqp -users 10 -workers 2 -rate 500 -messages 200 -scope " + scope, 200},
				{"churn -target amqp -users 10 -rate 50 -duration 200ms -scope " + scope, 10},
				{"storm -target amqp -users 10 -scope " + scope, 10},
			} {
				code, r := s.load(t.Context(), c.line)
				if code != exitOK || !r.OK || r.Messages == nil || r.Messages.Expected != c.expected || r.Messages.Received != c.expected ||
					r.Connect == nil || r.Connect.Failed != 0 || r.Latency == nil {
					t.Errorf("%s: exit code %d, %+v, %+v", c.line, code, r, r.Messages)
					continue
				}
				if (r.Reconnect != nil) != (r.Scenario == scenarioStorm || r.Scenario == scenarioChurn) {
					t.Errorf("%s: reconnect %+v", c.line, r.Reconnect)
				}
				if r.exchanging() && r.Messages.PerSecond <= 0 {
					t.Errorf("%s: %g messages a second", c.line, r.Messages.PerSecond)
				}
			}
		})
	}
}

// shows reports whether a line of the gateway's metrics begins with the pattern.
func (s *site) shows(pattern string) bool {
	answer, err := http.Get("http://" + s.address + "/metrics")
	if err != nil {
		return false
	}
	defer func() { _ = answer.Body.Close() }()
	text, _ := io.ReadAll(answer.Body)
	return regexp.MustCompile("(?m)^" + pattern).Match(text)
}

// A gateway that is restarted gets its clients back, and each of them receives.
func TestStormOfARestart(t *testing.T) {
	s := newSite(t, scopeInstance)
	type outcome struct {
		code   int
		report *report
	}
	done := make(chan outcome)
	go func() {
		code, r := s.load(t.Context(), "storm -users 20 -restart -duration 30s")
		done <- outcome{code, r}
	}()
	eventually(t, "all are connected", func() bool { return s.shows("websocket_hub_active_connections 20$") })
	http.DefaultClient.CloseIdleConnections()
	s.stop()
	s.start()
	o := <-done
	if o.code != exitOK || o.report.Reconnect == nil || o.report.Reconnect.Connected != 20 || o.report.Closes["1012"] != 20 || o.report.Messages.Received != 20 {
		t.Errorf("exit code %d: %+v, %+v", o.code, o.report, o.report.Reconnect)
	}
}

// An interrupted run stops and prints what it has.
func TestInterrupt(t *testing.T) {
	s := newSite(t, scopeInstance)
	for _, c := range []struct{ line, until string }{
		{"delivery -users 5 -duration 10m -rate 200", `websocket_messages_delivered_total [1-9]`},
		{"inbound -users 5 -workers 2 -duration 10m -rate 200", `websocket_messages_received_total\{result="accepted"\} [1-9]`},
		{"idle -users 5 -duration 10m", `websocket_hub_active_connections 5$`},
	} {
		eventually(t, "nobody is connected", func() bool { return s.shows(`websocket_hub_active_connections 0$`) })
		ctx, cancel := context.WithCancel(t.Context())
		type outcome struct {
			code   int
			report *report
		}
		done := make(chan outcome, 1)
		go func() {
			code, r := s.load(ctx, c.line)
			done <- outcome{code, r}
		}()
		eventually(t, c.until, func() bool { return s.shows(`websocket_hub_active_connections 5$`) && s.shows(c.until) })
		cancel()
		o := <-done
		if o.code != exitOK || !o.report.Interrupted || o.report.Connect.Connected != 5 {
			t.Errorf("%s: exit code %d, %+v", c.line, o.code, o.report)
		}
		if m := o.report.Messages; o.report.exchanging() && (m == nil || m.Lost != 0 || m.Received == 0) {
			t.Errorf("%s: %+v", c.line, m)
		}
	}
}

func TestRunsThatCanNotBe(t *testing.T) {
	s := newSite(t, scopeInstance)
	for line, want := range map[string]string{
		"idle -url http://127.0.0.1:1 -patience 0s -amqp none -key " + secret:                                       "nobody could connect",
		"idle -key another-key-than-the-gateway-has -patience 0s -amqp none -url http://" + s.address:               "pass request: HTTP 401: 100",
		"delivery -amqp amqp://guest:topsecret@127.0.0.1:1/ -key x -url http://" + s.address:                        "connect to the broker",
		"delivery -target amqp -workers 2 -amqp amqp://guest:topsecret@127.0.0.1:1/ -quiet":                         "connect to the broker",
		"storm -restart -duration 50ms -settle 0s -users 1 -amqp none -key " + secret + " -url http://" + s.address: "not restarted",
	} {
		var out bytes.Buffer
		code := command(t.Context(), strings.Fields(line), nothing, nil, &out, &out)
		if code != exitFailed || !strings.Contains(out.String(), want) || strings.Contains(out.String(), "topsecret") {
			t.Errorf("%s: exit code %d: %s", line, code, &out)
		}
	}
}

// The message that checks each connection belongs to other scenarios: here it would pass for
// the answer that a connection waits for.
func TestRoundTripsWithoutAnswersAreNotChecked(t *testing.T) {
	s := newSite(t, scopeInstance)
	code, r := s.load(t.Context(), "roundtrip -users 3 -messages 3 -rate flood -drain 1s -database-exchange "+s.prefix+"elsewhere")
	if m := r.Messages; code != exitFailed || m == nil || m.Sent != 3 || m.Refused != 3 || m.RefusedStored != 0 || m.Received != 0 {
		t.Errorf("exit code %d: %+v, %q", code, m, r.Problems)
	}
}

// What the broker takes from nobody is refused, not lost: here no queue is bound, since
// the backend's is on another exchange.
func TestRefusedByTheBroker(t *testing.T) {
	s := newSite(t, scopeInstance)
	var out bytes.Buffer
	code := command(t.Context(), strings.Fields("inbound -json -users 3 -messages 30 -rate flood -settle 0s -drain 1s -url http://"+s.address+" -amqp "+s.amqp+
		" -websockets-exchange "+s.prefix+"websockets -database-exchange "+s.prefix+"elsewhere"), withKey, nil, &out, &out)
	r := new(report)
	if err := json.Unmarshal(out.Bytes()[bytes.IndexByte(out.Bytes(), '{'):], r); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	if code != exitFailed || r.Messages == nil || r.Messages.Refused != 30 || r.Messages.Lost != 0 || r.Refusals["Delivery error."] != 30 {
		t.Errorf("exit code %d: %+v, %v", code, r.Messages, r.Refusals)
	}
}

func TestTableOfARun(t *testing.T) {
	s := newSite(t, scopeInstance)
	var out, messages bytes.Buffer
	code := command(t.Context(), strings.Fields("delivery -users 3 -messages 30 -rate flood -settle 0s -url http://"+s.address+" -amqp "+s.amqp+
		" -websockets-exchange "+s.prefix+"websockets -database-exchange "+s.prefix+"database"), withKey, nil, &out, &messages)
	if !strings.Contains(messages.String(), "3 of 3 connected") {
		t.Errorf("no progress line: %s", &messages)
	}
	wanted := []string{"30 sent, 30 of 30 received", "lost", "p99.9", "gateway", "result", "ok"}
	if runtime.GOOS == "linux" {
		wanted = append(wanted, "gateway CPU", "s per 100,000 messages", "MB after")
	}
	for _, want := range wanted {
		if code != exitOK || !strings.Contains(out.String(), want) {
			t.Errorf("exit code %d, no %q in\n%s%s", code, want, &out, &messages)
		}
	}
	if strings.Contains(out.String(), secret) || strings.Contains(messages.String(), secret) {
		t.Error("the key is printed")
	}
}

// The report names the processes that it is about.
func TestMeasuredProcessesAreNamed(t *testing.T) {
	s := newSite(t, scopeInstance)
	gateway, self, parent := s.process.Process.Pid, os.Getpid(), os.Getppid()
	own := fmt.Sprintf("-gateway-pid %d,%d -broker-pid %d", gateway, self, parent)
	for _, c := range []struct {
		line            string
		gateway, broker []int // nil: who listens, or the floor's workers
		tool            int   // how many processes
	}{
		{"idle -users 2 -duration 1ms", []int{gateway}, nil, 1},
		{"idle -users 2 -duration 1ms -workers 2", []int{gateway}, nil, 3},
		{"idle -users 2 -duration 1ms -amqp none " + own, []int{gateway, self}, []int{parent}, 1},
		{"idle -target amqp -users 2 -workers 2 -duration 1ms", nil, nil, 1},
		{"idle -target amqp -users 2 -workers 2 -duration 1ms " + own, []int{gateway, self}, []int{parent}, 3},
	} {
		code, r := s.load(t.Context(), c.line)
		if code != exitOK {
			t.Errorf("%s: exit code %d, %q", c.line, code, r.Problems)
		}
		if runtime.GOOS != "linux" {
			continue // nothing is measured
		}
		switch {
		case r.Gateway == nil || r.Tool == nil:
			t.Errorf("%s: not measured: %+v, %+v", c.line, r.Gateway, r.Tool)
			continue
		case c.gateway != nil && !slices.Equal(r.Gateway.PIDs, c.gateway),
			c.gateway == nil && (len(r.Gateway.PIDs) != 2 || slices.Contains(r.Gateway.PIDs, gateway) || slices.Contains(r.Gateway.PIDs, self)):
			t.Errorf("%s: the gateway is %v", c.line, r.Gateway.PIDs)
		}
		if len(r.Tool.PIDs) != c.tool || r.Tool.PIDs[0] != self || slices.Contains(r.Tool.PIDs, gateway) {
			t.Errorf("%s: this program is %v", c.line, r.Tool.PIDs)
		}
		switch {
		case c.broker != nil && (r.Broker == nil || !slices.Equal(r.Broker.PIDs, c.broker)):
			t.Errorf("%s: the broker is %+v, want %v", c.line, r.Broker, c.broker)
		case c.broker == nil && r.Broker != nil: // else it is another machine's, or another user's
			if pids := r.Broker.PIDs; len(pids) != 1 || !exists(pids[0]) || pids[0] == self || pids[0] == gateway {
				t.Errorf("%s: the broker is %v", c.line, pids)
			}
		}
	}
}

// A gateway that dies ends a delivery at once, since nobody is left to receive, and what
// it had used is not made up.
func TestGatewayThatDies(t *testing.T) {
	s := newSite(t, scopeInstance)
	for i, c := range []struct{ line, until string }{
		{"delivery -users 5 -duration 10m -rate 200", `websocket_messages_delivered_total [1-9]`},
		{"delivery -users 5 -duration 10m -rate flood -workers 2", `websocket_messages_delivered_total [1-9]`},
		{"inbound -users 5 -duration 10m -rate 200 -drain 1s", `websocket_messages_received_total\{result="accepted"\} [1-9]`},
	} {
		if i > 0 {
			s.start()
		}
		gateway := s.process.Process.Pid
		type outcome struct {
			code   int
			report *report
		}
		done := make(chan outcome, 1)
		go func() {
			code, r := s.load(t.Context(), c.line)
			done <- outcome{code, r}
		}()
		eventually(t, c.until, func() bool { return s.shows(`websocket_hub_active_connections 5$`) && s.shows(c.until) })
		http.DefaultClient.CloseIdleConnections()
		s.kill()
		o := <-done
		r := o.report
		if o.code != exitFailed || r.OK || r.Interrupted || r.Closes["1006"] != 5 || r.Connect.Connected != 5 {
			t.Errorf("%s: exit code %d, %+v", c.line, o.code, r)
		}
		if r.Scenario == scenarioDelivery && !slices.ContainsFunc(r.Problems, func(problem string) bool {
			return strings.HasPrefix(problem, "nobody is connected any more: publishing stopped after ")
		}) {
			t.Errorf("%s: problems %q", c.line, r.Problems)
		}
		if runtime.GOOS != "linux" {
			continue // nothing is measured
		}
		if p := r.Gateway; p == nil || !p.Gone || !slices.Equal(p.PIDs, []int{gateway}) {
			t.Errorf("%s: the gateway's figures are %+v", c.line, p)
		} else if p.CPUSeconds < 0 || p.CPUPercent < 0 || p.CPUPercent > 100*float64(runtime.NumCPU()+1) || p.ConnectCPU < 0 || p.RSSBefore <= 0 || p.RSSConnected <= 0 || p.RSSAfter <= 0 || p.CPUPer100k != nil {
			t.Errorf("%s: the gateway's figures are %+v", c.line, p)
		}
		if r.Tool == nil || r.Tool.Gone || r.Broker != nil && r.Broker.Gone {
			t.Errorf("%s: others are gone too: %+v, %+v", c.line, r.Tool, r.Broker)
		}
		var table bytes.Buffer
		if err := r.writeTable(&table); err != nil || strings.Count(table.String(), "it is gone") != 1 {
			t.Errorf("%s: %v\n%s", c.line, err, &table)
		}
	}
}

// A gateway without room accepts an upgrade and closes with 1013: nobody has connected.
func TestTurnedAwayByTheGateway(t *testing.T) {
	for variable, line := range map[string]string{
		"WS_MAX_CONNECTIONS=6":          "-users 10",
		"WS_MAX_CONNECTIONS_PER_USER=2": "-users 3 -connections-per-user 3 -workers 3",
	} {
		t.Run(variable, func(t *testing.T) {
			s := newSite(t, scopeInstance, variable)
			// The check that follows waits for messages to those who were turned away, and
			// so for the close frames.
			code, r := s.load(t.Context(), "idle -duration 1ms -patience 0s -drain 2s "+line)
			failed := uint64(r.Connections - 6)
			if code != exitFailed || r.Connect.Connected != 6 || r.Connect.Failed != failed || r.Connect.Faults["closed at once with 1013"] != failed || len(r.Connect.Faults) != 1 {
				t.Errorf("exit code %d, %+v", code, r.Connect)
			}
			if want := []string{fmt.Sprintf("%d connects failed", failed)}; !slices.Equal(r.Problems, want) || len(r.Closes) != 0 {
				t.Errorf("problems %q, closes %v; want %q", r.Problems, r.Closes, want)
			}
			if m := r.Messages; m == nil || m.Sent != uint64(r.Users) || m.Expected != 6 || m.Received != 6 || m.Lost != 0 {
				t.Errorf("%+v", m)
			}
		})
	}
}
