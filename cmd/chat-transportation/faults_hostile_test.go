package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// Limits of the service that a hostile client runs into; the first two are fixed.
const (
	headerLimit      = 5 * time.Second
	requestLimit     = 10 * time.Second
	hostilePing      = 2 * time.Second // WS_PING_INTERVAL
	hostileWrite     = 2 * time.Second // WS_WRITE_TIMEOUT
	hostilePerUser   = 16              // WS_MAX_CONNECTIONS_PER_USER
	hostileFrameSize = 64 << 10        // WS_MAX_MESSAGE_BYTES
)

// attack is what a hostile client does. It returns how the service failed to hold.
type attack struct {
	name string
	run  func(p *instance, passes *passbook) error
}

// idleConnections is how many TCP connections never become a request.
func idleConnections() int { return multiplied(1000, 10_000) }

// passbook holds passes for attacks, which can't fail a test from their goroutines.
type passbook struct {
	mu     sync.Mutex
	passes map[int64][]string
}

// take returns a pass of the user.
func (b *passbook) take(user int64) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	pass := b.passes[user][0]
	b.passes[user] = b.passes[user][1:]
	return pass
}

var attacks = []attack{
	{"slowloris on the headers", func(p *instance, _ *passbook) error {
		return many(50, func(int) error {
			return p.trickle("GET /messages/ HTTP/1.1\r\nHost: gateway\r\nX-Slow: ", headerLimit)
		})
	}},
	{"slowloris on the body of the pass route", func(p *instance, _ *passbook) error {
		return many(50, func(int) error {
			return p.trickle("POST /messages/get-connection-pass HTTP/1.1\r\nHost: gateway\r\nContent-Length: 60000\r\n\r\n", requestLimit)
		})
	}},
	{"slowloris within a frame", func(p *instance, passes *passbook) error {
		// A frame that comes in drops holds one of the user's places, and no more.
		upgraded, stop, ended := make(chan error, hostilePerUser), make(chan struct{}), make(chan error, 1)
		go func() {
			ended <- many(hostilePerUser, func(int) error {
				b, err := p.upgradeBare(passes.take(10), bareOptions{})
				if upgraded <- err; err != nil {
					return err
				}
				defer func() { _ = b.conn.Close() }()
				frame := bareFrame(bitFinal|opText, make([]byte, hostileFrameSize))
				drop := time.NewTicker(200 * time.Millisecond)
				defer drop.Stop()
				for i := range frame {
					if _, err := b.conn.Write(frame[i : i+1]); err != nil {
						return fmt.Errorf("a slow frame ended its connection: %w", err)
					}
					select {
					case <-drop.C:
					case <-stop:
						return nil
					}
				}
				return nil
			})
		}()
		for range hostilePerUser {
			if err := <-upgraded; err != nil {
				close(stop)
				return err
			}
		}
		one, err := p.upgradeBare(passes.take(10), bareOptions{})
		if err == nil {
			var code int
			if code, err = one.ending(10 * time.Second); err == nil && code != 1013 {
				err = fmt.Errorf("one connection more than a user may have was closed with %d", code)
			}
			_ = one.conn.Close()
		}
		// Longer than a silent client would stay.
		longEnough := time.After(3 * hostilePing)
		select {
		case <-longEnough:
		case failed := <-ended:
			ended <- failed
		}
		close(stop)
		return errors.Join(err, <-ended)
	}},
	{"half a frame, then silence", func(p *instance, passes *passbook) error {
		b, err := p.upgradeBare(passes.take(11), bareOptions{})
		if err != nil {
			return err
		}
		defer func() { _ = b.conn.Close() }()
		began := time.Now()
		if _, err := b.conn.Write(bareFrame(bitFinal|opText, make([]byte, 1000))[:100]); err != nil {
			return err
		}
		// The bytes that came count as an answer to the first ping.
		if !readsToEnd(b.conn, 3*hostilePing+schedulingAllowance) {
			return fmt.Errorf("still connected after %v", time.Since(began))
		}
		return nil
	}},
	{"header flood", func(p *instance, _ *passbook) error {
		return many(50, func(int) error {
			conn, err := p.dialBare(bareOptions{})
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			header := strings.Repeat("X-Flood: "+strings.Repeat("x", 1000)+"\r\n", 24)
			if _, err := io.WriteString(conn, "GET /messages/ HTTP/1.1\r\nHost: gateway\r\n"+header); err != nil {
				return nil // the service has had enough
			}
			_ = conn.SetReadDeadline(time.Now().Add(headerLimit))
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				return err
			}
			if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge || !response.Close {
				return fmt.Errorf("answered with %s", response.Status)
			}
			return nil
		})
	}},
	{"not HTTP", func(p *instance, _ *passbook) error {
		return many(20, func(int) error {
			conn, err := p.dialBare(bareOptions{})
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			_, _ = conn.Write(append([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n"), bytes.Repeat([]byte{0}, 1000)...))
			if !readsToEnd(conn, headerLimit+schedulingAllowance) {
				return errors.New("still connected")
			}
			return nil
		})
	}},
	{"idle and pending connections", func(p *instance, _ *passbook) error {
		return many(idleConnections(), func(i int) error {
			conn, err := p.dialBare(bareOptions{})
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			if request := upgradeRequest("none", nil); i%2 == 1 {
				if _, err := conn.Write(request[:len(request)-2]); err != nil {
					return err
				}
			}
			// Under a thousand handshakes the service may be late to accept, too.
			if !readsToEnd(conn, headerLimit+5*schedulingAllowance) {
				return errors.New("still connected")
			}
			return nil
		})
	}},
	{"malformed frames", func(p *instance, passes *passbook) error {
		for name, frames := range malformed {
			b, err := p.upgradeBare(passes.take(12), bareOptions{})
			if err != nil {
				return err
			}
			if _, err := b.conn.Write(frames); err != nil {
				return err
			}
			code, err := b.ending(10 * time.Second)
			_ = b.conn.Close()
			if err != nil || code != int(websocket.StatusProtocolError) {
				return fmt.Errorf("%s: closed with %d: %w", name, code, err)
			}
		}
		return nil
	}},
	{"endless fragments", func(p *instance, passes *passbook) error {
		b, err := p.upgradeBare(passes.take(13), bareOptions{})
		if err != nil {
			return err
		}
		defer func() { _ = b.conn.Close() }()
		go func() {
			first := byte(opText)
			for {
				if _, err := b.conn.Write(bareFrame(first, make([]byte, 1000))); err != nil {
					return
				}
				first = opContinuation
			}
		}()
		if code, err := b.ending(10 * time.Second); err != nil || code != int(websocket.StatusMessageTooBig) {
			return fmt.Errorf("closed with %d: %w", code, err)
		}
		return nil
	}},
	{"a message of announced size", func(p *instance, passes *passbook) error {
		b, err := p.upgradeBare(passes.take(14), bareOptions{})
		if err != nil {
			return err
		}
		defer func() { _ = b.conn.Close() }()
		head := []byte{bitFinal | opText, 0x80 | 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0} // a terabyte
		if _, err := b.conn.Write(append(head, make([]byte, 2*hostileFrameSize)...)); err != nil {
			return err
		}
		if code, err := b.ending(10 * time.Second); err != nil || code != int(websocket.StatusMessageTooBig) {
			return fmt.Errorf("closed with %d: %w", code, err)
		}
		return nil
	}},
	{"ping flood", func(p *instance, passes *passbook) error {
		const pings = 5000
		b, err := p.upgradeBare(passes.take(15), bareOptions{})
		if err != nil {
			return err
		}
		defer func() { _ = b.conn.Close() }()
		go func() {
			for i := range pings {
				if _, err := b.conn.Write(bareFrame(bitFinal|opPing, []byte(strconv.Itoa(i)))); err != nil {
					return
				}
			}
		}()
		_ = b.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		for i := 0; i < pings; {
			opcode, payload, err := b.next()
			if err != nil {
				return fmt.Errorf("after %d pongs: %w", i, err)
			}
			if opcode != opPong {
				continue // its own ping
			}
			if string(payload) != strconv.Itoa(i) {
				return fmt.Errorf("ping %d was answered with %q", i, payload)
			}
			i++
		}
		return nil
	}},
	{"ping flood without reading", func(p *instance, passes *passbook) error {
		b, err := p.upgradeBare(passes.take(16), bareOptions{receiveBuffer: 4 << 10})
		if err != nil {
			return err
		}
		defer func() { _ = b.conn.Close() }()
		flood := bytes.Repeat(bareFrame(bitFinal|opPing, make([]byte, 125)), 100)
		deadline := time.Now().Add(30 * time.Second)
		_ = b.conn.SetWriteDeadline(deadline)
		for time.Now().Before(deadline) {
			if _, err := b.conn.Write(flood); err != nil {
				break
			}
		}
		if !time.Now().Before(deadline) {
			return errors.New("it could go on for ever")
		}
		return nil
	}},
	{"compression", func(p *instance, passes *passbook) error {
		b, err := p.upgradeBare(passes.take(17), bareOptions{header: http.Header{
			"Sec-WebSocket-Extensions": {"permessage-deflate; client_max_window_bits"},
		}})
		if err != nil {
			return err
		}
		defer func() { _ = b.conn.Close() }()
		if extensions := b.answer.Header.Values("Sec-WebSocket-Extensions"); len(extensions) > 0 {
			return fmt.Errorf("negotiated %q", extensions)
		}
		return nil
	}},
}

// malformed are frames that RFC 6455 forbids a client to send, each with its section.
var malformed = map[string][]byte{
	"unmasked (5.1)":                         {bitFinal | opText, 2, '{', '}'},
	"a reserved bit, as of compression, 5.2": bareFrame(bitFinal|bitRSV1|opText, []byte("{}")),
	"a reserved opcode (5.2)":                bareFrame(bitFinal|0x3, []byte("{}")),
	"a negative length (5.2)":                {bitFinal | opText, 0x80 | 127, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	"a continuation of nothing (5.4)":        bareFrame(bitFinal|opContinuation, []byte("{}")),
	"a message within a message (5.4)":       append(bareFrame(opText, []byte("{")), bareFrame(bitFinal|opText, []byte("}"))...),
	"a fragmented ping (5.5)":                bareFrame(opPing, []byte("ping")),
	"a ping of 126 bytes (5.5)":              bareFrame(bitFinal|opPing, make([]byte, 126)),
	"half a close code (5.5.1)":              bareFrame(bitFinal|opClose, []byte{3}),
	"a forbidden close code (7.4.1)":         bareFrame(bitFinal|opClose, []byte{0x03, 0xed}),
}

// many does the same a number of times at once and returns the first failure.
func many(count int, do func(i int) error) error {
	failures := make([]error, count)
	var running sync.WaitGroup
	for i := range count {
		running.Go(func() { failures[i] = do(i) })
	}
	running.Wait()
	for i, err := range failures {
		if err != nil {
			return fmt.Errorf("number %d of %d: %w", i, count, err)
		}
	}
	return nil
}

// trickle sends a byte now and then after the beginning of a request, and expects the
// service to end the connection within the limit.
func (p *instance) trickle(beginning string, limit time.Duration) error {
	conn, err := p.dialBare(bareOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, beginning); err != nil {
		return err
	}
	ended := make(chan bool)
	go func() { ended <- readsToEnd(conn, limit+schedulingAllowance) }()
	drop := time.NewTicker(200 * time.Millisecond)
	defer drop.Stop()
	for {
		select {
		case in := <-ended:
			if !in {
				return fmt.Errorf("still connected after %v", limit+schedulingAllowance)
			}
			return nil
		case <-drop.C:
			_, _ = conn.Write([]byte("x"))
		}
	}
}

// hostile lets all attacks run at once, while twenty well-behaved users get all their
// messages; afterwards nothing is left of the attackers but their numbers.
func hostile(t *testing.T, node *rabbittest.Node) {
	t.Run("attacks", func(t *testing.T) { withstand(t, node) })
	t.Run("guessed passes", func(t *testing.T) { guessedPasses(t, node) })
	t.Run("expired tokens", func(t *testing.T) { expiredTokens(t, node) })
	t.Run("upgrades wait for the broker", func(t *testing.T) { pendingUpgrades(t, node) })
}

func withstand(t *testing.T, node *rabbittest.Node) {
	const heapMayGrow = 8 << 20
	p, admin := serveWithAdmin(t, binary, clientEnv(node.URL(), "WS_PING_INTERVAL", hostilePing.String(), "WS_WRITE_TIMEOUT", hostileWrite.String()))
	crowd := startTraffic(t, p, node.URL(), 20)
	undisturbed := crowd.during(func() bool { return true })
	passes := &passbook{passes: make(map[int64][]string)}
	for user := int64(10); user < 20; user++ {
		for range 20 {
			passes.passes[user] = append(passes.passes[user], p.pass("", tokenFor(t, user, time.Hour)))
		}
	}
	http.DefaultClient.CloseIdleConnections()
	goroutines, heap := admin.goroutines(), admin.liveHeap()
	unserved := admin.metric("http_server_unserved_connections_total")

	failures, took := make([]error, len(attacks)), make([]time.Duration, len(attacks))
	var left atomic.Int32
	left.Store(int32(len(attacks)))
	for i, attack := range attacks {
		go func() {
			defer left.Add(-1)
			began := time.Now()
			failures[i] = attack.run(p, passes)
			took[i] = time.Since(began)
		}()
	}
	disturbed := crowd.during(func() bool { return left.Load() == 0 })
	for i, attack := range attacks {
		t.Run(attack.name, func(t *testing.T) {
			if failures[i] != nil {
				t.Error(failures[i])
			}
			t.Logf("took %v", took[i])
		})
	}
	eventually(t, "only the crowd is connected", func() bool { return admin.metric("websocket_hub_active_connections") == 20 })
	// The probe itself holds one.
	eventually(t, "the attackers' connections are gone", func() bool { return admin.metric("http_server_open_connections") <= 1 })
	eventually(t, "their goroutines are gone", func() bool { return admin.goroutines() <= goroutines })
	if grown := admin.liveHeap() - heap; grown > heapMayGrow {
		t.Errorf("the heap has grown by %s MB", megabytes(float64(grown)))
	}
	// Header floods and slow, idle, pending and foreign connections.
	if counted, want := admin.metric("http_server_unserved_connections_total")-unserved, float64(50+50+20+idleConnections()); counted < want {
		t.Errorf("%v connections are counted as not served, want %v", counted, want)
	}
	for series, least := range map[string]float64{
		`websocket_closes_total{code="1006"}`:  1,                       // half a frame, then silence
		`websocket_closes_total{code="1009"}`:  2,                       // endless fragments, announced size
		`websocket_closes_total{code="1013"}`:  1,                       // one connection too many
		`websocket_closes_total{code="4408"}`:  1,                       // a ping flood that does not read
		`websocket_closes_total{code="other"}`: float64(len(malformed)), // 1002
		`websocket_pings_received_total`:       5000,
	} {
		if counted := admin.metric(series); counted < least {
			t.Errorf("%s is %v, want at least %v", series, counted, least)
		}
	}
	figure(t, "p99_of_others_before_the_attacks", percentile(undisturbed, 0.99), "")
	figure(t, "p99_of_others_under_all_attacks", percentile(disturbed, 0.99), "")
}

// guessedPasses holds PASS_FAILURES_PER_MINUTE against clients who come directly, who
// come through proxies, and who say that they do.
func guessedPasses(t *testing.T, node *rabbittest.Node) {
	const limit = 5
	p := serveWith(t, clientEnv(node.URL(), "PASS_FAILURES_PER_MINUTE", strconv.Itoa(limit), "TRUSTED_PROXIES", "127.0.0.1/32,10.0.0.0/8"))
	// guess presents a pass and returns what came of it: a status or a close code.
	guess := func(pass, from string, forwarded ...string) int {
		t.Helper()
		b, err := p.upgradeBare(pass, bareOptions{from: from, header: http.Header{"X-Forwarded-For": forwarded}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = b.conn.Close() }()
		if b.answer.StatusCode != http.StatusSwitchingProtocols {
			if seconds, err := strconv.Atoi(b.answer.Header.Get("Retry-After")); err != nil || seconds < 1 || seconds > 60 {
				t.Errorf("Retry-After: %q", b.answer.Header.Get("Retry-After"))
			}
			return b.answer.StatusCode
		}
		code, err := b.ending(300 * time.Millisecond)
		if code == 0 && err != nil {
			return http.StatusSwitchingProtocols // open
		}
		return code
	}
	const unauthorized, tooMany = 4401, http.StatusTooManyRequests
	wrong := strings.Repeat("a", 32)
	for i := range limit {
		if got := guess(wrong, "127.0.0.1", "203.0.113.9"); got != unauthorized {
			t.Fatalf("guess %d: %d", i, got)
		}
	}
	good := p.pass("", tokenFor(t, 1, time.Hour))
	for _, c := range []struct {
		name, from string
		forwarded  []string
		want       int
	}{
		{"the same client", "127.0.0.1", []string{"203.0.113.9"}, tooMany},
		{"with a forged entry before its own", "127.0.0.1", []string{"198.51.100.1, 203.0.113.9"}, tooMany},
		{"with a forged header before its own", "127.0.0.1", []string{"198.51.100.1", "203.0.113.9"}, tooMany},
		{"through a chain of proxies", "127.0.0.1", []string{"203.0.113.9, 10.1.2.3"}, tooMany},
		{"through a chain of proxies, forged", "127.0.0.1", []string{"198.51.100.1, 203.0.113.9, 10.1.2.3, 10.9.9.9"}, tooMany},
		{"another client of the proxy", "127.0.0.1", []string{"203.0.113.10"}, unauthorized},
		{"another client, who names the first", "127.0.0.1", []string{"203.0.113.9, 203.0.113.11"}, unauthorized},
		{"who is no proxy, naming the first client", "127.0.0.2", []string{"203.0.113.9"}, unauthorized},
	} {
		if got := guess(wrong, c.from, c.forwarded...); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	// Who is no proxy gets no further by naming somebody else each time: one is used up.
	for i := 1; i < limit; i++ {
		if got := guess(wrong, "127.0.0.2", fmt.Sprintf("192.0.2.%d", i)); got != unauthorized {
			t.Errorf("guess %d of a forger: %d", i, got)
		}
	}
	if got := guess(wrong, "127.0.0.2", "192.0.2.200"); got != tooMany {
		t.Errorf("a forger over the limit: %d", got)
	}
	// A good pass is not spent while its client is over the limit.
	if got := guess(good, "127.0.0.2"); got != tooMany {
		t.Errorf("a good pass of a client over the limit: %d", got)
	}
	if got := guess(good, "127.0.0.3"); got != http.StatusSwitchingProtocols {
		t.Errorf("the same pass from elsewhere: %d", got)
	}
	if count := p.metric(`connection_passes_redeemed_total{result="invalid"}`); count != 2*limit+2 {
		t.Errorf("%v bad passes are counted", count)
	}
	if count := p.metric(`http_server_duration_milliseconds_count{http_method="GET",http_route="/messages",http_server_name="transportation_backend",http_status_code="429"}`); count != 7 {
		t.Errorf("%v refusals are counted", count)
	}
}

// expiredTokens lets tokens end between pass and connect, and on an open connection.
func expiredTokens(t *testing.T, node *rabbittest.Node) {
	const ttl = 3 * time.Second
	strict := serveWith(t, clientEnv(node.URL()))
	lenient := serveWith(t, clientEnv(node.URL(), "WS_CLOSE_ON_TOKEN_EXPIRY", "false"))
	newPeer(t, node.URL()).consume()
	token := tokenFor(t, 1, ttl)
	began := time.Now()
	late := map[*instance]string{strict: strict.pass("", token), lenient: lenient.pass("", token)}
	closed, err := strict.dial("", strict.pass("", token))
	if err != nil {
		t.Fatal(err)
	}
	kept, err := lenient.dial("", lenient.pass("", token))
	if err != nil {
		t.Fatal(err)
	}
	if code := closed.code(); code != 4401 {
		t.Errorf("an open connection was closed with %d when its token expired", code)
	}
	// A token's moments are whole seconds.
	if took := time.Since(began); took < ttl-time.Second-100*time.Millisecond || took > ttl+schedulingAllowance {
		t.Errorf("closed %v after a token for %v was made", took, ttl)
	}
	for p, pass := range late {
		c, err := p.dial("", pass)
		if err != nil {
			t.Fatal(err)
		}
		if code := c.code(); code != 4401 {
			t.Errorf("a pass whose token has expired: closed with %d", code)
		}
	}
	kept.send("still here", "c", 1, "")
	if !newPeer(t, node.URL()).publish(1, "", `{"n":1}`) || kept.next()["n"] != 1.0 {
		t.Error("the connection that outlives its token is of no use")
	}
	if count := strict.metric(`websocket_closes_total{code="4401"}`); count != 2 {
		t.Errorf("%v closes with 4401 are counted", count)
	}
}

// pendingUpgrades lets upgrades wait for a broker that does not answer: they end with
// 503 in time, their passes are good afterwards, and the rest of the service answers.
func pendingUpgrades(t *testing.T, node *rabbittest.Node) {
	const joinTimeout = 5 * time.Second
	count := multiplied(200, 2000)
	between := newProxy(t, node.Address())
	p, admin := serveWithAdmin(t, binary, clientEnv(between.through(node.URL())))
	first := p.connect(trafficBase - 1) // has what is made once made
	passes := make([]string, count)
	for i := range passes {
		passes[i] = p.pass("", tokenFor(t, trafficBase+int64(i), time.Hour))
	}
	goroutines := admin.goroutines()
	between.hold(true)
	began := time.Now()
	ended := make(chan error, 1)
	go func() {
		ended <- many(count, func(i int) error {
			b, err := p.upgradeBare(passes[i], bareOptions{})
			if err != nil {
				return err
			}
			_ = b.conn.Close()
			if b.answer.StatusCode != http.StatusServiceUnavailable || b.answer.Header.Get("Retry-After") == "" {
				return fmt.Errorf("answered with %s", b.answer.Status)
			}
			return nil
		})
	}()
	for waiting := true; waiting; {
		asked := time.Now()
		if status, _ := get(admin.url + "/healthz"); status != http.StatusOK || time.Since(asked) > time.Second+schedulingAllowance {
			t.Errorf("/healthz answered %d after %v", status, time.Since(asked))
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			waiting = false
		case <-time.After(200 * time.Millisecond):
		}
	}
	took := time.Since(began)
	if took > joinTimeout+2*schedulingAllowance {
		t.Errorf("the last upgrade was refused after %v", took)
	}
	between.hold(false)
	awaited(t, 30*time.Second, "the instance is ready again", func() bool { return admin.status("/readyz") == http.StatusOK })
	backend := newPeer(t, node.URL())
	for i, pass := range passes[:20] {
		c, err := p.dial("", pass)
		if err != nil {
			t.Fatalf("the pass was spent by a refused upgrade: %v", err)
		}
		if !backend.publish(trafficBase+int64(i), "", `{"n":1}`) || c.next()["n"] != 1.0 {
			t.Error("the connection is of no use")
		}
		_ = c.conn.CloseNow()
	}
	if !backend.publish(trafficBase-1, "", `{"n":1}`) || first.next()["n"] != 1.0 {
		t.Error("the user who was there before has no queue any more")
	}
	awaited(t, 30*time.Second, "nothing is left of those who were refused", func() bool {
		return admin.metric("websocket_hub_active_users") == 1 && admin.goroutines() <= goroutines+2*8 // a channel for each lane
	})
	figure(t, "pending_upgrades_refused_after", took, "")
}
