package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/rabbitmq/amqp091-go"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/fx"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass/redistest"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/config"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// The tests of this file break the broker and the way to it; docs/reliability.md has a
// row for each.

// brokerEnv is the environment of an instance for the fault tests.
func brokerEnv(url string, more ...string) map[string]string {
	env := map[string]string{
		"RABBITMQ_URL":             url,
		"KEY":                      blackBoxLog.secret(testKey),
		"PASS_REQUESTS_PER_MINUTE": "0",
		"WS_MESSAGES_PER_SECOND":   "0",
	}
	for i := 0; i+1 < len(more); i += 2 {
		env[more[i]] = more[i+1]
	}
	return env
}

func (p *instance) ready() bool {
	status, _ := get(p.url + "/readyz")
	return status == http.StatusOK
}

// TestNothingIsLostSilently has fifty clients send all the time while the broker is
// restarted, killed and cut off: what is not stored has been refused.
func TestNothingIsLostSilently(t *testing.T) {
	const (
		speakers = 50
		every    = 150 * time.Millisecond
		confirm  = 2 * time.Second
		// between is how many messages are accepted between two faults.
		between = 200
	)
	node := rabbittest.Start(t)
	bindQueue(t, node.URL(), primary)
	network := newProxy(t, node.Address())
	p := serveWith(t, brokerEnv(network.through(node.URL()), "PUBLISH_CONFIRM_TIMEOUT", confirm.String()))
	l := newLedger(t)
	guests := p.crowd(1001, speakers, l.hear)

	stop := make(chan struct{})
	var speaking sync.WaitGroup
	for _, g := range guests {
		speaking.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-g.gone:
					t.Errorf("user %d was disconnected: %v", g.user, g.err)
					return
				case <-tick.C:
				}
				if err := l.say(g); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	silence := sync.OnceFunc(func() { close(stop); speaking.Wait() })
	defer silence()

	accepted := func() float64 { return p.metric(`websocket_messages_received_total{result="accepted"}`) }
	flow := func() {
		t.Helper()
		var before float64
		awaited(t, 30*time.Second, "the broker is used again", func() bool {
			before = accepted()
			return p.ready() && before >= 0
		})
		awaited(t, 30*time.Second, "messages are accepted", func() bool { return accepted() >= before+between })
	}
	refusing := func() {
		t.Helper()
		before := l.refused()
		awaited(t, 30*time.Second, "messages are refused", func() bool { return l.refused() >= before+speakers })
	}
	faults := map[string]func(){
		"cut": func() {
			lost := p.metric("rabbitmq_reconnects_total") + 2
			network.cut()
			awaited(t, 30*time.Second, "both connections are made anew", func() bool { return p.metric("rabbitmq_reconnects_total") >= lost })
		},
		"restart": func() { node.Stop(t); refusing(); node.Restart(t) },
		"kill -9": func() { node.Kill(t); refusing(); node.Restart(t) },
	}
	counts := make(map[string]int)
	flow()
	began, rounds, lasts := time.Now(), soakRounds(1), soakDuration(0)
	for round := 0; round < rounds || time.Since(began) < lasts; round++ {
		for _, fault := range []string{
			"cut", "restart", "cut", "kill -9", "restart", "cut", "kill -9", "cut", "restart", "kill -9", "cut",
		} {
			counts[fault]++
			faults[fault]()
			flow()
		}
	}
	silence()
	awaited(t, 30*time.Second, "each message has its verdict", func() bool { return l.settled(p) })
	l.inTime(confirm)
	stored, duplicated, lost, both := l.reconcile(node.URL())
	t.Logf("%d restarts, %d kills, %d cuts: sent %d, accepted %d, refused %d (%d of them stored all the same), duplicated %d, lost %d",
		counts["restart"], counts["kill -9"], counts["cut"], l.said(), stored-both, l.refused(), both, duplicated, lost)
	figure(t, "reconcile.sent", l.said(), "messages")
	figure(t, "reconcile.accepted", stored-both, "messages")
	figure(t, "reconcile.refused", l.refused(), "messages")
	figure(t, "reconcile.refused_but_stored", both, "messages")
	figure(t, "reconcile.duplicated", duplicated, "messages")
	figure(t, "reconcile.lost", lost, "messages")
	figure(t, "reconcile.slowest_refusal", l.slowest(), "")
	if lost != 0 || duplicated != 0 {
		t.Errorf("lost without a word: %d; published twice: %d", lost, duplicated)
	}
	stillThere(t, guests)
}

// scene is where a fault of the table happens.
type scene struct {
	t       *testing.T
	node    *rabbittest.Node
	network *proxy
	// over is when the fault was over, where that is not the return of heal.
	over time.Time
}

// brokerFault is a row of the table.
type brokerFault struct {
	name        string
	url         func(s *scene) string // of the broker as the service knows it; nil: through the network
	apply, heal func(s *scene)
	// accepting: the fault does not keep new messages from being accepted for long, or
	// /readyz does not speak of it; so 503 is not waited for.
	accepting bool
	// lasting: the fault lasts until both connections have been given up.
	lasting bool
	// logged is what the log says of the fault, while it lasts.
	logged string
	// selfHealing: the service is over it before heal, which ends what is left of it.
	selfHealing bool
	// atOnce: messages are refused at once, which a confirm timeout that is much longer
	// shows.
	atOnce bool
}

// TestBrokerFaults breaks the broker in each of the ways that brokers break.
func TestBrokerFaults(t *testing.T) {
	node := rabbittest.Start(t)
	const user, password = "gateway", "the-password-of-the-gateway"
	// onDatabase calls what needs a channel of a backend.
	onDatabase := func(call func(*amqp091.Channel) error) func(s *scene) {
		return func(s *scene) {
			s.t.Helper()
			if err := call(backendChannel(s.t, s.node.URL())); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	bind := func(s *scene) { bindQueue(s.t, s.node.URL(), primary) }
	rows := []brokerFault{
		{
			name:  "stopped",
			apply: func(s *scene) { s.node.Stop(s.t) },
			heal: func(s *scene) {
				accepting := acceptsConnections(s.t, s.node)
				s.node.Restart(s.t)
				s.over = <-accepting
			},
			atOnce: true,
		},
		{
			name:    "black hole",
			apply:   func(s *scene) { s.network.blackHole(true) },
			heal:    func(s *scene) { s.network.blackHole(false) },
			lasting: true,
		},
		{
			name:    "frozen",
			apply:   func(s *scene) { s.node.Freeze(s.t) },
			heal:    func(s *scene) { s.node.Thaw(s.t) },
			lasting: true,
		},
		{
			name:  "memory alarm",
			apply: func(s *scene) { s.node.Ctl(s.t, "set_vm_memory_high_watermark", "0.00001") },
			heal:  func(s *scene) { s.node.Ctl(s.t, "set_vm_memory_high_watermark", "0.4") },
		},
		{
			name:      "no queue bound",
			apply:     onDatabase(func(c *amqp091.Channel) error { return c.QueueUnbind(primary, "", "database", nil) }),
			heal:      bind,
			accepting: true,
			atOnce:    true,
		},
		{
			name:  "slow confirms",
			apply: func(s *scene) { s.network.hold(true) },
			heal:  func(s *scene) { s.network.hold(false) },
		},
		{
			name:      "database exchange deleted",
			apply:     onDatabase(func(c *amqp091.Channel) error { return c.ExchangeDelete("database", false, false) }),
			heal:      bind,
			accepting: true,
		},
		{
			name: "credentials revoked",
			url: func(s *scene) string {
				s.node.Ctl(s.t, "add_user", user, blackBoxLog.secret(password))
				s.t.Cleanup(func() { s.node.Ctl(s.t, "delete_user", user) })
				s.node.Ctl(s.t, "set_permissions", user, ".*", ".*", ".*")
				return strings.Replace(s.node.URL(), "guest:guest", user+":"+password, 1)
			},
			apply: func(s *scene) {
				s.node.Ctl(s.t, "change_password", user, "another-password-of-the-gateway")
				s.network.cut()
			},
			heal:   func(s *scene) { s.node.Ctl(s.t, "change_password", user, password) },
			logged: "username or password not allowed",
		},
		{
			// The broker goes on hearing heartbeats and does not notice that its side is dead,
			// so the old exclusive queues are still there when the new ones are made.
			name:        "half-dead connection",
			apply:       func(s *scene) { s.network.strand() },
			heal:        func(s *scene) { s.network.bury() },
			selfHealing: true,
		},
	}
	for range soakRounds(1) {
		for _, fault := range rows {
			t.Run(fault.name, func(t *testing.T) {
				fault.play(&scene{t: t, node: node, network: newProxy(t, node.Address())})
			})
		}
	}
	for _, scope := range scopes {
		t.Run("queue and exchange deleted, scope "+scope, func(t *testing.T) { queuesAreMadeAnew(t, node, scope) })
	}
	t.Run("control.disconnect on several instances", func(t *testing.T) { controlReachesEveryInstance(t, node) })
	t.Run("a start that fails", func(t *testing.T) { startThatFailsCleansUp(t, node) })
}

// play shows what a fault does, and that nothing of it remains.
func (f *brokerFault) play(s *scene) {
	const (
		guestCount  = 10
		promptly    = 2 * time.Second
		longConfirm = 30 * time.Second
	)
	confirm := time.Second
	if f.atOnce {
		confirm = longConfirm
	}
	t := s.t
	slug := "fault." + strings.ReplaceAll(f.name, " ", "_")
	bindQueue(t, s.node.URL(), primary)
	url := s.node.URL()
	if f.url != nil {
		url = f.url(s)
	}
	p := serveWith(t, brokerEnv(s.network.through(url), "PUBLISH_CONFIRM_TIMEOUT", confirm.String()))
	l := newLedger(t)
	guests := p.crowd(1, guestCount, l.hear)
	accepted := func() int { return int(p.metric(`websocket_messages_received_total{result="accepted"}`)) }
	bothWays := func() {
		t.Helper()
		refusedBefore, acceptedBefore := l.refused(), accepted()
		l.everyone(guests)
		l.reachAll(s.node.URL(), guests)
		awaited(t, 20*time.Second, "every client's message is accepted", func() bool { return accepted() == acceptedBefore+guestCount })
		if refused := l.refused() - refusedBefore; refused > 0 {
			t.Errorf("%d messages were refused though all is well", refused)
		}
	}
	bothWays()
	// Nothing that is on its way out must count.
	var before int
	awaited(t, 20*time.Second, "the number of goroutines rests", func() bool {
		last := before
		before = p.goroutines()
		return before == last
	})

	var queues []string
	if f.selfHealing {
		queues = websocketQueues(s.node.Queues(t))
	}
	healed := sync.OnceFunc(func() { f.heal(s) })
	defer healed() // for the rows that come after a failure
	answering := p.keepAsking()
	began := time.Now()
	f.apply(s)
	l.everyone(guests)
	if !f.accepting {
		awaited(t, 20*time.Second, "/readyz is 503", func() bool { return !p.ready() })
		figure(t, slug+".unready_after", time.Since(began), "")
	}
	awaited(t, 20*time.Second, "each message has its verdict", func() bool { return l.settled(p) })
	if f.lasting {
		awaited(t, 20*time.Second, "the connections are given up", func() bool { return p.metric("rabbitmq_connected") == 0 })
		figure(t, slug+".given_up_after", time.Since(began), "")
	}
	awaited(t, 20*time.Second, "the log says what is wrong", func() bool { return strings.Contains(p.out.String(), f.logged) })
	if !f.selfHealing {
		for range 2 {
			refusedBefore := l.refused()
			l.everyone(guests)
			awaited(t, 20*time.Second, "each message is refused", func() bool { return l.refused() == refusedBefore+guestCount })
		}
		if !f.accepting && p.ready() {
			t.Error("/readyz is 200 though messages are refused")
		}
	}
	slowest := answering()
	figure(t, slug+".slowest_answer", slowest, "")
	if slowest > time.Second+schedulingAllowance {
		t.Errorf("an answer took %v during the fault", slowest)
	}

	if !f.selfHealing { // which is measured from its beginning
		healed()
		began = time.Now()
	}
	if !s.over.IsZero() {
		began = s.over
	}
	awaited(t, 40*time.Second, "/readyz is 200", p.ready)
	figure(t, slug+".ready_after", time.Since(began), "")
	if f.selfHealing {
		if locked := stillLocked(t, s.node, queues); locked < guestCount || locked < len(queues) {
			t.Errorf("of %d old queues only %d were still locked when /readyz was 200", len(queues), locked)
		}
	}
	bothWays()
	figure(t, slug+".both_ways_after", time.Since(began), "")
	figure(t, slug+".slowest_refusal", l.slowest(), "")
	if f.selfHealing {
		healed()
		awaited(t, 20*time.Second, "the old queues are gone", func() bool {
			return !slices.ContainsFunc(s.node.Queues(t), func(queue string) bool { return slices.Contains(queues, queue) })
		})
	}
	l.inTime(confirm)
	if slowest := l.slowest(); f.atOnce && slowest > promptly+schedulingAllowance {
		t.Errorf("a message was refused after %v, not at once", slowest)
	}
	stillThere(t, guests)
	after := 0
	awaited(t, 20*time.Second, "the goroutines of the fault are gone", func() bool {
		after = p.goroutines()
		return after <= before
	})
	t.Logf("goroutines: %d before, %d after", before, after)
	_, duplicated, lost, _ := l.reconcile(s.node.URL())
	if lost != 0 || duplicated != 0 {
		t.Errorf("lost without a word: %d; published twice: %d", lost, duplicated)
	}
	p.signal(syscall.SIGTERM)
	if code := p.ended(20 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// stillLocked returns how many of the exclusive queues belong to a connection that the
// broker takes to be alive: 405 RESOURCE_LOCKED.
func stillLocked(t *testing.T, node *rabbittest.Node, queues []string) (locked int) {
	t.Helper()
	connection, err := amqp091.Dial(node.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	for _, queue := range queues {
		channel, err := connection.Channel()
		if err != nil {
			t.Fatal(err)
		}
		var exception *amqp091.Error
		if _, err := channel.QueueDeclarePassive(queue, false, true, true, false, nil); errors.As(err, &exception) && exception.Code == amqp091.ResourceLocked {
			locked++
		}
	}
	return locked
}

// keepAsking asks for the pages that must answer whatever happens, until the returned
// function is called, which returns the time of the slowest answer.
func (p *instance) keepAsking() (stop func() time.Duration) {
	var (
		asking  sync.WaitGroup
		slowest time.Duration
	)
	over := make(chan struct{})
	asking.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, path := range []string{"/healthz", "/metrics", "/docs"} {
				began := time.Now()
				if status, _ := get(p.url + path); status != http.StatusOK {
					p.t.Errorf("%s answers %d during the fault", path, status)
				}
				slowest = max(slowest, time.Since(began))
			}
			select {
			case <-over:
				return
			case <-tick.C:
			}
		}
	})
	stop = sync.OnceValue(func() time.Duration {
		close(over)
		asking.Wait()
		return slowest
	})
	p.t.Cleanup(func() { stop() }) // for a test that fails meanwhile
	return stop
}

// TestThousandsComeBack: after the broker was killed, and after a cut, every one of two
// thousand users has a queue again, by the time that /readyz is 200.
func TestThousandsComeBack(t *testing.T) {
	const users = 2000
	node := rabbittest.Start(t)
	bindQueue(t, node.URL(), primary)
	for _, scope := range scopes {
		t.Run(scope, func(t *testing.T) {
			network := newProxy(t, node.Address())
			p := serveProgram(t, plainBinary(t), brokerEnv(network.through(node.URL()), "QUEUE_SCOPE", scope))
			awaited(t, 20*time.Second, "the instance is ready", p.ready)
			l := newLedger(t)
			began := time.Now()
			guests := p.crowd(1, users, l.hear)
			figure(t, "comeback."+scope+".connect_all", time.Since(began), "")

			back := func(fault string, since time.Time) {
				t.Helper()
				name := "comeback." + scope + "." + fault
				awaited(t, 60*time.Second, "/readyz is 200", p.ready)
				figure(t, name+".ready_after", time.Since(since), "")
				accepted := p.metric(`websocket_messages_received_total{result="accepted"}`)
				l.reachAll(node.URL(), guests)
				figure(t, name+".all_delivered_after", time.Since(since), "")
				l.everyone(guests)
				awaited(t, 60*time.Second, "each user's message is accepted", func() bool {
					return p.metric(`websocket_messages_received_total{result="accepted"}`) == accepted+users
				})
				figure(t, name+".both_ways_after", time.Since(since), "")
			}
			gone := func() {
				t.Helper()
				awaited(t, 20*time.Second, "/readyz is 503", func() bool { return !p.ready() })
			}
			for range soakRounds(1) {
				node.Kill(t)
				gone()
				accepting := acceptsConnections(t, node)
				node.Restart(t)
				back("kill", <-accepting)
				cut := time.Now()
				network.cut()
				gone()
				back("cut", cut)
			}

			if n := l.refused(); n > 0 {
				t.Errorf("%d messages were refused", n)
			}
			if _, duplicated, lost, _ := l.reconcile(node.URL()); lost != 0 || duplicated != 0 {
				t.Errorf("lost without a word: %d; published twice: %d", lost, duplicated)
			}
			p.signal(syscall.SIGTERM)
			if code := p.ended(30 * time.Second); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

// acceptsConnections tells when the broker begins to accept connections.
func acceptsConnections(t *testing.T, node *rabbittest.Node) <-chan time.Time {
	t.Helper()
	accepting := make(chan time.Time, 1)
	go func() {
		defer close(accepting)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			if conn, err := net.Dial("tcp", node.Address()); err == nil {
				_ = conn.Close()
				accepting <- time.Now()
				return
			}
			select {
			case <-tick.C:
			case <-t.Context().Done():
				return
			}
		}
	}()
	return accepting
}

// TestNextNodeOfACluster: the node that the gateway is connected to is killed, and it
// goes on with the next. A classic queue is on one node only: where the messaging
// service's was on the node that is gone, messages are refused until that is back.
func TestNextNodeOfACluster(t *testing.T) {
	const guestCount, confirm = 10, time.Second
	first, second := rabbittest.StartCluster(t)
	for _, row := range []struct {
		name, scope string
		home        *rabbittest.Node // of the messaging service's queue
	}{
		{"the queue is on the other node", "user", second},
		{"the queue is on the node", "instance", first},
	} {
		t.Run(row.name, func(t *testing.T) {
			slug := "cluster." + row.scope
			bindQueue(t, row.home.URL(), primary)
			p := serveWith(t, brokerEnv(first.URL()+","+second.URL(), "QUEUE_SCOPE", row.scope, "PUBLISH_CONFIRM_TIMEOUT", confirm.String()))
			l := newLedger(t)
			guests := p.crowd(1, guestCount, l.hear)
			// speak has everyone say something, and returns how much of it was refused.
			speak := func() int {
				t.Helper()
				before := l.refused()
				l.everyone(guests)
				awaited(t, 20*time.Second, "each message has its verdict", func() bool { return l.settled(p) })
				return l.refused() - before
			}
			l.reachAll(second.URL(), guests)
			if n := speak(); n > 0 {
				t.Errorf("%d messages were refused before anything happened", n)
			}
			began := time.Now()
			first.Kill(t)
			awaited(t, 20*time.Second, "both connections are made anew", func() bool { return p.metric("rabbitmq_reconnects_total") == 2 })
			awaited(t, 20*time.Second, "/readyz is 200", p.ready)
			figure(t, slug+".ready_after", time.Since(began), "")
			l.reachAll(second.URL(), guests)
			switch n := speak(); {
			case row.home == second && n > 0:
				t.Errorf("%d messages were refused though their queue is there", n)
			case row.home == first && n < guestCount:
				t.Errorf("their queue is down, but only %d of %d messages were refused", n, guestCount)
			}
			first.Restart(t)
			began = time.Now()
			awaited(t, 20*time.Second, "messages are accepted", func() bool { return speak() == 0 })
			figure(t, slug+".accepting_after_return", time.Since(began), "")
			l.reachAll(first.URL(), guests)
			l.inTime(confirm)
			if _, duplicated, lost, _ := l.reconcile(second.URL()); lost != 0 || duplicated != 0 {
				t.Errorf("lost without a word: %d; published twice: %d", lost, duplicated)
			}
			if _, err := backendChannel(t, row.home.URL()).QueueDelete(primary, false, false, false); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// controlReachesEveryInstance: control.disconnect closes a user's connections on
// every instance, whatever their scope; a malformed one is counted and harms nobody.
func controlReachesEveryInstance(t *testing.T, node *rabbittest.Node) {
	redis := redistest.URL(t)
	var instances []*instance
	for _, scope := range append(scopes, scopes...) {
		instances = append(instances, serveWith(t, brokerEnv(node.URL(), "QUEUE_SCOPE", scope, "REDIS_URL", redis)))
	}
	backend := newPeer(t, node.URL())
	const invalid = `websocket_deliveries_dropped_total{reason="invalid_control"}`
	var banned, others []*client
	for _, p := range instances {
		banned = append(banned, p.connect(1), p.connect(1))
		others = append(others, p.connect(2))
	}
	malformed := []string{`[]`, `null`, `"banned"`, `{"reason":`, ``, "\xff", `{} {}`}
	for i, body := range malformed {
		if !backend.publish(1, "control.disconnect", body) {
			t.Fatalf("user 1 has no queue at message %d", i)
		}
	}
	for _, p := range instances {
		p.eventually("malformed control messages are counted", func() bool { return p.metric(invalid) == float64(len(malformed)) })
	}
	backend.publish(1, "", `{"n":1}`)
	for _, c := range banned {
		if got := c.next(); got["n"] != 1.0 {
			t.Errorf("after a malformed control message came %v", got)
		}
	}
	backend.publish(1, "control.disconnect", `{"reason":"banned"}`)
	for i, c := range banned {
		var closed websocket.CloseError
		select {
		case err := <-c.closed:
			if !errors.As(err, &closed) || closed.Code != 4403 || closed.Reason != "banned" {
				t.Errorf("connection %d was closed with %v", i, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("connection %d is still open", i)
		}
	}
	eventually(t, "user 1 is gone", func() bool { return !backend.publish(1, "", `{}`) })
	if !backend.publish(2, "", `{"still":"here"}`) {
		t.Error("user 2 has no queue")
	}
	for _, c := range others {
		if c.next()["still"] != "here" {
			t.Error("user 2 was disturbed")
		}
	}
	for i, p := range instances {
		if n := p.metric(`websocket_closes_total{code="4403"}`); n != 2 {
			t.Errorf("instance %d counts %v closes", i, n)
		}
	}
}

// queuesAreMadeAnew: someone deletes the queue of a connected user, then the whole
// exchange.
func queuesAreMadeAnew(t *testing.T, node *rabbittest.Node, scope string) {
	const guestCount = 10
	p := serveWith(t, brokerEnv(node.URL(), "QUEUE_SCOPE", scope))
	l := newLedger(t)
	guests := p.crowd(1, guestCount, l.hear)
	l.reachAll(node.URL(), guests)
	queues := websocketQueues(node.Queues(t))
	if want := map[string]int{"user": guestCount, "instance": 1}[scope]; len(queues) != want {
		t.Fatalf("there are %d queues, not %d", len(queues), want)
	}
	// It is exclusive: only an operator can delete it.
	began := time.Now()
	node.Ctl(t, "eval", fmt.Sprintf(
		`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"%s">>)), rabbit_amqqueue:delete(Q, false, false, <<"operator">>).`, queues[0]))
	awaited(t, 20*time.Second, "all queues are there again", func() bool { return p.ready() && l.routed(node, guests) })
	figure(t, "fault.queue_deleted."+scope+".back_after", time.Since(began), "")
	l.reachAll(node.URL(), guests)

	began = time.Now()
	if err := backendChannel(t, node.URL()).ExchangeDelete("websockets", false, false); err != nil {
		t.Fatal(err)
	}
	awaited(t, 20*time.Second, "the exchange and its bindings are there again", func() bool { return l.routed(node, guests) })
	figure(t, "fault.exchange_deleted."+scope+".back_after", time.Since(began), "")
	awaited(t, 20*time.Second, "/readyz is 200", p.ready)
	l.reachAll(node.URL(), guests)
	stillThere(t, guests)
	p.signal(syscall.SIGTERM)
	if code := p.ended(20 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if queues := websocketQueues(node.Queues(t)); len(queues) != 0 {
		t.Errorf("queues are left: %q", queues)
	}
}

// stillThere checks that no guest was disconnected.
func stillThere(t *testing.T, guests []*guest) {
	t.Helper()
	for _, g := range guests {
		select {
		case <-g.gone:
			t.Errorf("user %d was disconnected: %v", g.user, g.err)
		default:
		}
	}
}

// routed publishes a message for each guest and reports whether all went to a queue.
func (l *ledger) routed(node *rabbittest.Node, guests []*guest) bool {
	t := l.t
	t.Helper()
	connection, err := amqp091.Dial(node.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	channel, err := connection.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := channel.ExchangeDeclarePassive("websockets", "direct", true, false, false, false, nil); err != nil {
		return false
	}
	_ = channel.Close()
	_, returned := l.address(node.URL(), guests)
	return returned == 0
}

// startThatFailsCleansUp: the address is in use, and the broker is there. The program
// says so and ends; that it does not leave the cleaning up to the system shows a start
// in this process.
func startThatFailsCleansUp(t *testing.T, node *rabbittest.Node) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	p := launch(t, nil, brokerEnv(node.URL(), "HTTP_ADDR", listener.Addr().String()))
	if code := p.ended(20 * time.Second); code != 1 {
		t.Errorf("exit code %d", code)
	}
	nothingIsLeft := func() {
		t.Helper()
		eventually(t, "no connection is left at the broker", func() bool {
			return strings.TrimSpace(node.Ctl(t, "list_connections", "--no-table-headers", "name")) == ""
		})
		if queues := websocketQueues(node.Queues(t)); len(queues) != 0 {
			t.Errorf("queues are left: %q", queues)
		}
	}
	nothingIsLeft()

	for _, scope := range scopes {
		cfg, err := config.From(envconfig.MapLookuper(brokerEnv(node.URL(), "HTTP_ADDR", listener.Addr().String(), "QUEUE_SCOPE", scope)))
		if err != nil {
			t.Fatal(err)
		}
		others := goleak.IgnoreCurrent()
		core, logs := observer.New(zap.DebugLevel)
		// The server comes after this, so it fails when all that is before it is at work.
		connected := fx.Invoke(func(lifecycle fx.Lifecycle, publisher *rabbit.Publisher, inboxes *rabbit.Inboxes) {
			lifecycle.Append(fx.StartHook(func() {
				eventually(t, "both connections to the broker are there", func() bool {
					return publisher.Available() == nil && inboxes.Available() == nil
				})
			}))
		})
		if err := fx.New(connected, service(cfg, zap.New(core))).Start(t.Context()); err == nil {
			t.Fatal("the address is in use, and the start does not fail")
		}
		started := hooks(logs, "OnStart hook executing", ".Start-fm()")
		stopped := hooks(logs, "OnStop hook executing", ".Stop-fm()")
		for _, part := range []string{"rabbit.(*Publisher)", "rabbit.(*Inboxes)"} {
			if !slices.Contains(started, part) || !slices.Contains(stopped, part) {
				t.Errorf("%s was started and not stopped: started %q, stopped %q", part, started, stopped)
			}
		}
		if err := goleak.Find(others); err != nil {
			t.Errorf("scope %s: %v", scope, err)
		}
		nothingIsLeft()
	}
}
