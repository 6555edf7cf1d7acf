package rabbit

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		if !g.enter() {
			t.Fatal("an open gate lets nobody pass")
		}
		g.shut()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while someone is inside wait returned %v", err)
		}
		go func() {
			time.Sleep(time.Minute) // of the bubble's clock
			g.leave()
		}()
		began := time.Now()
		if err := g.wait(t.Context()); err != nil || time.Since(began) != time.Minute {
			t.Errorf("wait returned %v after %v", err, time.Since(began))
		}
		if g.enter() {
			t.Error("a shut gate lets someone pass")
		}
		if err := g.wait(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestBackoff(t *testing.T) {
	most := func(rounds int) time.Duration {
		switch rounds {
		case 0, 1:
			return 500 * time.Millisecond
		case 2:
			return time.Second
		}
		return backoffCap
	}
	for rounds := range 70 {
		drawn := make(map[time.Duration]bool)
		for range 50 {
			d := backoff(rounds)
			drawn[d] = true
			if d < 250*time.Millisecond || d > most(rounds) || d > 5*time.Second {
				t.Fatalf("after %d rounds the wait is %v", rounds, d)
			}
		}
		if len(drawn) < 25 {
			t.Fatalf("after %d rounds 50 waits are only %d different ones", rounds, len(drawn))
		}
	}
}

// TestWireWrite: a peer that reads nothing holds a write up no longer than the timeout,
// or the deadline that was set, whichever is first.
func TestWireWrite(t *testing.T) {
	for _, test := range []struct {
		name  string
		limit time.Duration
		want  time.Duration
	}{
		{"no deadline", 0, writeTimeout},
		{"a near deadline", time.Second, time.Second},
		{"a far deadline", time.Hour, writeTimeout},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				defer near.Close()
				defer far.Close()
				w := newWire(near)
				if test.limit > 0 {
					if err := w.SetDeadline(time.Now().Add(test.limit)); err != nil {
						t.Fatal(err)
					}
				}
				began := time.Now()
				if _, err := w.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("Write returned %v", err)
				}
				if took := time.Since(began); took != test.want {
					t.Errorf("Write took %v", took)
				}
			})
		})
	}
}

func TestWireHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		w := newWire(near)
		go func() {
			time.Sleep(time.Minute)
			_, _ = far.Write([]byte("x"))
			time.Sleep(time.Minute)
			_ = far.Close()
		}()
		buffer := make([]byte, 8)
		if _, err := w.Read(buffer); err != nil {
			t.Fatal(err)
		}
		heard := time.Now()
		if _, err := w.Read(buffer); err == nil {
			t.Fatal("the end of the connection was not read")
		}
		if !w.heard().Equal(heard) {
			t.Errorf("last heard at %v, not at %v", w.heard(), heard)
		}
	})
}

// FuzzRedact: no log line shows the user or the password of a URL.
func FuzzRedact(f *testing.F) {
	f.Add("amqp://", "hush-hush-1", "host-1.example:5672/vhost")
	f.Add("amqps://", "hush-%2F-1", "[::1]:5671")
	f.Add("", "hush\n", "")
	f.Add("amqp://", "hush", "host:port")
	f.Fuzz(func(t *testing.T, scheme, password, rest string) {
		// Text with a delimiter ends the user part of a URL (RFC 3986, section 3.2): it
		// is no password then, but part of a host or a path.
		if len(password) < 4 || strings.ContainsAny(password, "/?#@") || scheme != "amqp://" && scheme != "amqps://" {
			return
		}
		if strings.Contains(rest, password) || strings.Contains(rest, "user-name-7") || strings.Contains("not an AMQP URL, localhost:5672", password) {
			return
		}
		// A password may happen to be what is logged without it, such as "host:".
		if strings.Contains(redact(scheme+rest), password) {
			return
		}
		url := scheme + "user-name-7:" + password + "@" + rest
		if line := redact(url); strings.Contains(line, password) || strings.Contains(line, "user-name-7") {
			t.Errorf("%q is logged as %q", url, line)
		}
	})
}

// TestLogsHoldNoSecret dials in all the ways that fail.
func TestLogsHoldNoSecret(t *testing.T) {
	shared := rabbittest.URL(t)
	core, logs := observer.New(zap.DebugLevel)
	host := shared[strings.LastIndex(shared, "@")+1:]
	config := testConfig("amqp://user:hush-hush@"+host, ScopeUser) // wrong credentials
	config.URLs = append(config.URLs,
		"amqp://user:hush-hush@127.0.0.1:1/", "amqps://user:hush-hush@"+host, "amqp://user:hush-hush@ho st")
	p := NewPublisher(config, zap.New(core), prometheus.NewRegistry())
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a full round has failed", func() bool { return logs.FilterMessage("the broker can't be reached, trying on").Len() > 0 })
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, entry := range logs.All() {
		text := entry.Message
		for _, field := range entry.Context {
			text += " " + field.String
			if err, ok := field.Interface.(error); ok {
				text += " " + err.Error()
			}
		}
		if strings.Contains(text, "hush") {
			t.Errorf("the log says %s", text)
		}
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	config := testConfig(rabbittest.URL(t), ScopeUser)
	p := NewPublisher(config, zap.NewNop(), registry)
	x := NewInboxes(config, zap.NewNop(), registry)
	const want = `# HELP rabbitmq_connected 1 while both connections to RabbitMQ, the publisher's and the consumer's, are up, else 0.
# TYPE rabbitmq_connected gauge
rabbitmq_connected %v
# HELP rabbitmq_reconnects_total Connections to RabbitMQ that were made anew after one had been lost.
# TYPE rabbitmq_reconnects_total counter
rabbitmq_reconnects_total %r
`
	expect := func(connected, reconnects string) func() bool {
		text := strings.NewReplacer("%v", connected, "%r", reconnects).Replace(want)
		return func() bool {
			return testutil.GatherAndCompare(registry, strings.NewReader(text), "rabbitmq_connected", "rabbitmq_reconnects_total") == nil
		}
	}
	eventually(t, "nothing is connected", expect("0", "0"))
	if n := testutil.CollectAndCount(p.confirms); n != 5 {
		t.Errorf("the histogram has %d results at the start", n)
	}
	for _, start := range []func(context.Context) error{p.Start, x.Start} {
		if err := start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both are connected", expect("1", "0"))
	eventually(t, "the publisher is connected", func() bool { return p.Available() == nil })
	p.link.session.Load().end(errors.New("cut by the test"))
	eventually(t, "the publisher is connected again", expect("1", "1"))
	if err := publishOne(t, p, "m", 10*time.Second); !errors.Is(err, app.ErrUnroutable) {
		t.Error(err)
	}
	bindDatabase(t, dialPeer(t, config.URLs[0]).conn, config.DatabaseExchange)
	if err := publishOne(t, p, "m", 10*time.Second); err != nil {
		t.Error(err)
	}
	for _, result := range []string{resultConfirmed, resultReturned} {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, family := range families {
			for _, metric := range family.GetMetric() {
				for _, label := range metric.GetLabel() {
					found = found || label.GetValue() == result && metric.GetHistogram().GetSampleCount() == 1
				}
			}
		}
		if !found {
			t.Errorf("no observation for the result %s", result)
		}
	}
	for _, stop := range []func(context.Context) error{x.Stop, p.Stop} {
		if err := stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "nothing is connected any more", expect("0", "1"))
}

func TestModule(t *testing.T) {
	config := testConfig(rabbittest.URL(t), ScopeInstance)
	var (
		publisher app.Publisher
		inboxes   app.Inboxes
		checks    []app.Check
	)
	application := fxtest.New(t,
		fx.NopLogger,
		fx.Supply(config, zap.NewNop()),
		fx.Provide(func() prometheus.Registerer { return prometheus.NewRegistry() }),
		Module,
		fx.Populate(&publisher, &inboxes),
		fx.Invoke(fx.Annotate(func(all []app.Check) { checks = all }, fx.ParamTags(`group:"checks"`))),
	)
	application.RequireStart()
	report, ready := map[string]string{}, false
	eventually(t, "both checks pass", func() bool {
		report, ready = app.NewReadiness(checks).Report(t.Context())
		return ready
	})
	if len(report) != 2 || report["broker"] != "ok" || report["user_queues"] != "ok" {
		t.Errorf("the report is %v", report)
	}
	application.RequireStop()
	if report, _ := app.NewReadiness(checks).Report(t.Context()); report["broker"] == "ok" || report["user_queues"] == "ok" {
		t.Errorf("after the stop the report is %v", report)
	}
	if publisher.Available() == nil || inboxes.Available() == nil {
		t.Error("something is available after the stop")
	}
}

// TestNoPlaceIsGivenBackTwice: a message that the end of the connection meets while it
// waits for its turn gives back no place in the window but its own; the judge would wait
// for the missing one for ever.
func TestNoPlaceIsGivenBackTwice(t *testing.T) {
	p := NewPublisher(Config{}, zap.NewNop(), prometheus.NewRegistry())
	e := &publishEpoch{publisher: p, over: make(chan struct{}), window: make(chan struct{}, 3)}
	close(e.over)
	e.window <- struct{}{} // of a message in flight
	for range 200 {
		var verdict error
		item := &outgoing{publisher: p, deadline: time.Now().Add(time.Hour), verdict: func(err error) { verdict = err }}
		if e.admit(item) || !errors.Is(verdict, app.ErrBrokerUnavailable) {
			t.Fatalf("after the end of the connection: verdict %v", verdict)
		}
		if len(e.window) != 1 {
			t.Fatalf("%d places are taken, want 1", len(e.window))
		}
	}
}

// TestWatch: one answer that is late ends the connection only where no other method is
// answered meanwhile, or where it is very late.
func TestWatch(t *testing.T) {
	for _, row := range []struct {
		name   string
		every  time.Duration // other methods are answered; 0: never
		answer time.Duration // when the answer comes; 0: never
		over   time.Duration // when the session ends; 0: it goes on
	}{
		{name: "answered", answer: rpcTimeout - 1},
		{name: "nothing is answered", over: rpcTimeout},
		{name: "late, and others are answered", every: rpcTimeout - 1, answer: 3 * rpcTimeout},
		{name: "late, and others are answered too seldom", every: rpcTimeout + 1, answer: 3 * rpcTimeout, over: rpcTimeout},
		{name: "others are answered, this never", every: time.Second, over: rpcLimit},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				defer func() { _ = far.Close() }()
				s := newSession(nil, newWire(near))
				defer s.end(errors.New("the test is over"))
				if row.every > 0 {
					go func() {
						for !s.over() {
							answered := s.watch("another method")
							select {
							case <-time.After(row.every):
							case <-s.ended:
							}
							answered()
						}
					}()
				}
				began := time.Now()
				answered := s.watch("a method")
				if row.answer > 0 {
					time.AfterFunc(row.answer, func() { answered() })
				}
				select {
				case <-s.ended:
					if took := time.Since(began); row.over == 0 || took != row.over {
						t.Errorf("the session ended after %v, want %v", took, row.over)
					}
				case <-time.After(2 * rpcLimit):
					if row.over != 0 {
						t.Error("the session goes on")
					}
				}
			})
		})
	}
}

// TestDeadlineOnADeadConnection: a message that comes to its deadline ends the connection
// where nothing at all has come since it was handed over, for as long as a heartbeat.
func TestDeadlineOnADeadConnection(t *testing.T) {
	for _, row := range []struct {
		name           string
		heartbeat      time.Duration
		silentFor, age time.Duration // at the deadline: of the broker, of the message
		blocked        bool
		dead           bool
	}{
		{name: "nothing has come for a heartbeat", heartbeat: 2 * time.Second, silentFor: 2 * time.Second, age: time.Second, dead: true},
		{name: "not yet for a heartbeat", heartbeat: 2 * time.Second, silentFor: 2*time.Second - 1, age: time.Second},
		{name: "something has come since", heartbeat: 2 * time.Second, silentFor: 2 * time.Second, age: 3 * time.Second},
		{name: "the broker is blocked", heartbeat: 2 * time.Second, silentFor: time.Minute, age: time.Second, blocked: true},
		{name: "without heartbeats, for the usual one", silentFor: heartbeat, age: time.Second, dead: true},
		{name: "without heartbeats, not yet", silentFor: heartbeat - 1, age: time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := NewPublisher(Config{}, zap.NewNop(), prometheus.NewRegistry())
				near, far := net.Pipe()
				defer func() { _ = far.Close() }()
				s := newSession(&amqp.Connection{Config: amqp.Config{Heartbeat: row.heartbeat}}, newWire(near))
				defer func() { _ = s.wire.Close() }()
				j := &judge{publishEpoch: &publishEpoch{publisher: p, session: s}}
				j.blocked.Store(row.blocked)
				heard := time.Now()
				<-time.After(row.silentFor)
				var verdict error
				item := &outgoing{publisher: p, handed: heard.Add(row.silentFor - row.age), verdict: func(err error) { verdict = err }}
				j.expire(item)
				if !errors.Is(verdict, app.ErrConfirmTimeout) {
					t.Errorf("the message's verdict is %v", verdict)
				}
				if s.over() != row.dead {
					t.Errorf("the connection is over: %v, want %v", s.over(), row.dead)
				}
			})
		})
	}
}

// What waits for the broker is bounded in bytes, and given back by whoever lets go of it.
func TestPublishBytesAreBounded(t *testing.T) {
	p := NewPublisher(testConfig("amqp://localhost/", ScopeUser), zap.NewNop(), prometheus.NewRegistry())
	e := &publishEpoch{publisher: p, over: make(chan struct{}), queue: make(chan *outgoing, publishQueue)}
	var taken []*outgoing
	item := func() *outgoing {
		return &outgoing{publisher: p, publishing: amqp.Publishing{Body: make([]byte, 1<<20)}, deadline: time.Now().Add(time.Hour), verdict: func(error) {}}
	}
	for {
		next := item()
		if err := e.enqueue(next); err != nil {
			if !errors.Is(err, app.ErrBrokerBusy) {
				t.Fatal(err)
			}
			next.settle("", err)
			break
		}
		if taken = append(taken, next); len(taken) > publishBytes>>20 {
			t.Fatalf("%d MB are held", len(taken))
		}
	}
	if len(taken) != publishBytes>>20 {
		t.Errorf("%d MB are held, want %d", len(taken), publishBytes>>20)
	}
	e.close()
	e.sent = make(chan *outgoing)
	e.window = make(chan struct{}, 1)
	e.write() // the epoch is over: it lets go of everything
	if held := p.held.Load(); held != 0 {
		t.Errorf("%d bytes are still held", held)
	}
	for _, item := range taken {
		if !item.done.Load() {
			t.Fatal("a message is not settled")
		}
	}
}
