package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass/redistest"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// storm ends a gateway with all its clients and lets them all come back at once to the
// one that takes its place.
func storm(t *testing.T, node *rabbittest.Node, scope string) {
	count := multiplied(500, 5000)
	address := freeAddress(t)
	// Who is told to come back later comes with the same pass, which must still be good then:
	// a pass that has expired is answered with 101 and 4401.
	env := clientEnv(node.URL(), "QUEUE_SCOPE", scope, "SHUTDOWN_DRAIN_WINDOW", "0s", "CONNECTION_PASS_EXPIRATION_TIME", "600")
	start := func() *instance {
		p, admin := launchWithAdmin(t, plainBinary(t), address, env)
		admin.eventually("the instance is ready", func() bool { return admin.status("/readyz") == http.StatusOK })
		return p
	}
	p := start()
	guests := p.crowd(trafficBase, count, func(*guest, []byte) {})
	p.signal(syscall.SIGTERM)
	for _, g := range guests {
		<-g.gone
	}
	p.ended(20 * time.Second)

	next := start()
	var heard atomic.Int64
	began := time.Now()
	back := next.comeBack(t, count, count, func() { heard.Add(1) })
	took := time.Since(began)
	if t.Failed() {
		t.FailNow()
	}
	backend := newPeer(t, node.URL())
	for i := range 100 {
		if user := trafficBase + int64(i*count/100); !backend.publish(user, "", `{}`) {
			t.Errorf("user %d has no queue", user)
		}
	}
	eventually(t, "a hundred deliveries have come", func() bool { return heard.Load() == 100 })
	figure(t, "storm_clients_"+scope, count, "clients")
	figure(t, "storm_all_connected_after_"+scope, took, "")
	figure(t, "storm_tries_"+scope, back.tries, "tries")
}

// returns are what comeBack has counted.
type returns struct {
	tries, refusedPasses, refusedUpgrades int
	withoutRetryAfter                     int
	passes                                int
	mu                                    sync.Mutex
}

// comeBack connects count users, atOnce at a time, as well-behaved clients do it: one
// that is refused comes again when Retry-After says, with the pass that it has.
func (p *instance) comeBack(t *testing.T, count, atOnce int, hear func()) *returns {
	t.Helper()
	counted := &returns{}
	web := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: atOnce}, Timeout: 20 * time.Second}
	defer web.CloseIdleConnections()
	deadline := time.Now().Add(2 * time.Minute)
	door := make(chan struct{}, atOnce)
	var running sync.WaitGroup
	for i := range count {
		token := tokenFor(t, trafficBase+int64(i), time.Hour)
		running.Go(func() {
			pass := ""
			for time.Now().Before(deadline) {
				door <- struct{}{}
				wait, connected := p.tryToComeBack(t, web, counted, token, &pass, hear)
				<-door
				if connected {
					return
				}
				<-time.After(wait)
			}
			t.Errorf("user %d could not come back", i)
		})
	}
	running.Wait()
	return counted
}

// tryToComeBack makes one attempt, and says when to make the next.
func (p *instance) tryToComeBack(t *testing.T, web *http.Client, counted *returns, token string, pass *string, hear func()) (wait time.Duration, connected bool) {
	counted.mu.Lock()
	counted.tries++
	counted.mu.Unlock()
	later := func(response *http.Response, refused *int) time.Duration {
		seconds, err := strconv.Atoi(response.Header.Get("Retry-After"))
		counted.mu.Lock()
		defer counted.mu.Unlock()
		*refused++
		if err != nil || seconds < 1 {
			counted.withoutRetryAfter++
			seconds = 1
		}
		return time.Duration(seconds) * time.Second
	}
	if *pass == "" {
		request, err := http.NewRequest(http.MethodPost, p.url+"/messages/get-connection-pass", nil)
		if err != nil {
			t.Error(err)
			return time.Second, false
		}
		request.Header.Set("Authorization", "Bearer "+token)
		response, err := web.Do(request)
		if err != nil {
			return 100 * time.Millisecond, false
		}
		defer func() { _ = response.Body.Close() }()
		var answer struct {
			Pass string `json:"connection_pass"`
		}
		if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.Pass == "" {
			return later(response, &counted.refusedPasses), false
		}
		*pass = answer.Pass
		counted.mu.Lock()
		counted.passes++
		counted.mu.Unlock()
	}
	b, err := p.upgradeBare(*pass, bareOptions{})
	if err != nil {
		return 100 * time.Millisecond, false
	}
	if b.answer.StatusCode != http.StatusSwitchingProtocols {
		_ = b.conn.Close()
		return later(b.answer, &counted.refusedUpgrades), false
	}
	t.Cleanup(func() { _ = b.conn.Close() })
	go func() {
		for {
			opcode, payload, err := b.next()
			if err != nil {
				return
			}
			switch opcode {
			case opText:
				hear()
			case opPing: // thousands may need longer than two ping intervals
				_, _ = b.conn.Write(bareFrame(bitFinal|opPong, payload))
			}
		}
	}()
	return 0, true
}

// admissionLimit lets more clients come than WS_CONNECTS_PER_SECOND admits: the rest is
// told when to come back, and all of them get in, each with the one pass that it had.
func admissionLimit(t *testing.T, node *rabbittest.Node) {
	const limit = 50
	count := multiplied(200, 2000)
	p := serveWith(t, clientEnv(node.URL(), "WS_CONNECTS_PER_SECOND", strconv.Itoa(limit), "CONNECTION_PASS_EXPIRATION_TIME", "600"))
	began := time.Now()
	counted := p.comeBack(t, count, 200, func() {})
	took := time.Since(began)
	if counted.refusedUpgrades == 0 {
		t.Error("no upgrade was refused")
	}
	if counted.withoutRetryAfter > 0 {
		t.Errorf("%d refusals said not when to come back", counted.withoutRetryAfter)
	}
	if counted.passes != count {
		t.Errorf("%d clients needed %d passes", count, counted.passes)
	}
	// The limit has a burst of its own size.
	if least := time.Duration(count/limit-1) * time.Second; took < least {
		t.Errorf("all were let in within %v, the limit needs %v", took, least)
	}
	if connections := p.metric("websocket_hub_active_connections"); connections != float64(count) {
		t.Errorf("%v connections", connections)
	}
	// While upgrades are being refused, no passes are handed out either.
	token := tokenFor(t, 1, time.Hour)
	eventually(t, "a pass is refused", func() bool {
		err := many(2*limit, func(int) error {
			b, err := p.upgradeBare("none", bareOptions{})
			if err == nil {
				_ = b.conn.Close()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		request, err := http.NewRequest(http.MethodPost, p.url+"/messages/get-connection-pass", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusTooManyRequests && response.Header.Get("Retry-After") != ""
	})
	if count := p.metric(`http_server_duration_milliseconds_count{http_method="GET",http_route="/messages",http_server_name="transportation_backend",http_status_code="429"}`); count < 1 {
		t.Errorf("the refused upgrades are counted as %v", count)
	}
	figure(t, "admission_all_in_after", took, "")
	figure(t, "admission_upgrades_refused", counted.refusedUpgrades, "answers")
	figure(t, "admission_passes_refused", counted.refusedPasses, "answers")
}

// passStoreFails stops or freezes Redis: passes and upgrades are refused within a
// second, those who are connected notice nothing, and all is well when it is back.
func passStoreFails(t *testing.T, node *rabbittest.Node, freeze bool) {
	redis := redistest.Start(t)
	p := serveWith(t, clientEnv(node.URL(), "REDIS_URL", redis.URL()))
	backend := newPeer(t, node.URL())
	stored := backend.consume()
	connected := p.connect(1)
	unspent := p.pass("", tokenFor(t, 2, time.Hour))
	token := tokenFor(t, 3, time.Hour)
	askForPass := func() (status int, took time.Duration) {
		request, err := http.NewRequest(http.MethodPost, p.url+"/messages/get-connection-pass", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
		began := time.Now()
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode, time.Since(began)
	}
	name := "stopped"
	if freeze {
		name = "frozen"
		redis.Pause()
	} else {
		redis.Stop()
	}
	longest := time.Duration(0)
	for range 5 {
		status, took := askForPass()
		if longest = max(longest, took); status != http.StatusServiceUnavailable || took > time.Second+schedulingAllowance {
			t.Errorf("a pass was answered with %d after %v", status, took)
		}
	}
	p.eventually("/readyz says which part is away", func() bool {
		status, body := get(p.url + "/readyz")
		var report struct {
			Checks map[string]string `json:"checks"`
		}
		_ = json.Unmarshal([]byte(body), &report)
		store := report.Checks["pass_store"]
		return status == http.StatusServiceUnavailable && store != "" && store != "ok" && report.Checks["broker"] == "ok"
	})
	began := time.Now()
	b, err := p.upgradeBare(unspent, bareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = b.conn.Close()
	if took := time.Since(began); b.answer.StatusCode != http.StatusServiceUnavailable || b.answer.Header.Get("Retry-After") == "" || took > time.Second+schedulingAllowance {
		t.Errorf("an upgrade was answered with %s after %v, Retry-After %q", b.answer.Status, took, b.answer.Header.Get("Retry-After"))
	}
	for i := range 10 {
		connected.send(fmt.Sprint("m", i), "c", 2, "")
		select {
		case d := <-stored:
			if d.MessageId != fmt.Sprint("m", i) {
				t.Errorf("message %q is stored", d.MessageId)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a message of a connected client is not stored")
		}
		backend.publish(1, "", fmt.Sprintf(`{"n":%d}`, i))
		if got := connected.next(); got["n"] != float64(i) {
			t.Errorf("the connected client got %v", got)
		}
	}
	if freeze {
		redis.Resume()
	} else {
		redis.Restart()
	}
	began = time.Now()
	p.eventually("the instance is ready again", func() bool { return p.status("/readyz") == http.StatusOK })
	recovered := time.Since(began)
	if status, _ := askForPass(); status != http.StatusOK {
		t.Errorf("a pass was answered with %d", status)
	}
	if freeze {
		// A store that was only asleep still has the pass.
		if c, err := p.dial("", unspent); err != nil {
			t.Errorf("the pass was spent by a refused upgrade: %v", err)
		} else if !backend.publish(2, "", `{"back":true}`) || c.next()["back"] != true {
			t.Error("the connection is of no use")
		}
	}
	if !strings.Contains(p.out.String(), "the pass store is unavailable") {
		t.Error("the log does not say that the pass store was away")
	}
	figure(t, "pass_store_"+name+"_refused_after", longest, "")
	figure(t, "pass_store_"+name+"_back_after", recovered, "")
}
