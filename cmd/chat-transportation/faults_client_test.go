package main

import (
	"bufio"
	"bytes"
	"context"
	endian "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// The faults of clients: slow, vanished, hasty, hostile, and all at once. The broker
// stays whole in all of them, so they share one; where it has to be away, a proxy is
// what breaks.

// multiplied returns a count of the quick form times SOAK_ROUNDS, and no more than the
// most that one machine and its limit of open files can be asked for.
func multiplied(quick, most int) int { return min(quick*soakRounds(1), most) }

// scopes are the values of QUEUE_SCOPE.
var scopes = []string{"user", "instance"}

func TestClientFaults(t *testing.T) {
	node := rabbittest.Start(t)
	for _, scope := range scopes {
		t.Run("a client stops reading, scope "+scope, func(t *testing.T) { stopsReading(t, node, scope) })
		t.Run("one of three devices stops reading, scope "+scope, func(t *testing.T) { deviceStopsReading(t, node, scope) })
		t.Run("a peer vanishes, scope "+scope, func(t *testing.T) { peerVanishes(t, node, scope) })
		t.Run("churn, scope "+scope, func(t *testing.T) { churn(t, node, scope) })
		t.Run("SIGTERM under load, scope "+scope, func(t *testing.T) { shutdownUnderLoad(t, node, scope) })
		t.Run("storm, scope "+scope, func(t *testing.T) { storm(t, node, scope) })
		t.Run("SIGTERM and confirms are late, scope "+scope, func(t *testing.T) { shutdownWithLateConfirms(t, node, scope) })
		t.Run("SIGTERM and the broker is away, scope "+scope, func(t *testing.T) { shutdownWithoutBroker(t, node, scope) })
		t.Run("SIGTERM and the broker is black-holed, scope "+scope, func(t *testing.T) { shutdownInBlackHole(t, node, scope) })
		t.Run("SIGTERM and nobody answers the close, scope "+scope, func(t *testing.T) { shutdownUnanswered(t, node, scope) })
	}
	t.Run("many clients stop reading (QUEUE_SCOPE=instance)", func(t *testing.T) { manyStopReading(t, node) })
	t.Run("the pass store stops", func(t *testing.T) { passStoreFails(t, node, false) })
	t.Run("the pass store freezes", func(t *testing.T) { passStoreFails(t, node, true) })
	t.Run("admission limit", func(t *testing.T) { admissionLimit(t, node) })
	t.Run("hostile", func(t *testing.T) { hostile(t, node) })
}

// clientEnv is the environment of an instance at the broker that url names, with more
// variables as name, value, name, value, …
func clientEnv(url string, more ...string) map[string]string {
	env := map[string]string{"RABBITMQ_URL": url, "KEY": blackBoxLog.secret(testKey), "PASS_REQUESTS_PER_MINUTE": "0"}
	for i := 0; i+1 < len(more); i += 2 {
		env[more[i]] = more[i+1]
	}
	return env
}

// serveWithAdmin starts a program with an admin address and waits until it is ready.
// The second value is the same process, asked at that address.
func serveWithAdmin(t *testing.T, program string, env map[string]string) (p, admin *instance) {
	t.Helper()
	p, admin = launchWithAdmin(t, program, freeAddress(t), env)
	admin.eventually("the instance is ready", func() bool { return admin.status("/readyz") == http.StatusOK })
	return p, admin
}

// launchWithAdmin is like serveWithAdmin, on a given address, and waits for nothing.
func launchWithAdmin(t *testing.T, program, address string, env map[string]string) (p, admin *instance) {
	t.Helper()
	adminAddress := freeAddress(t)
	all := map[string]string{"HTTP_ADDR": address, "ADMIN_ADDR": adminAddress}
	for name, value := range env {
		all[name] = value
	}
	p = launchProgram(t, program, nil, all)
	p.url = "http://" + address
	admin = &instance{t: t, cmd: p.cmd, out: p.out, done: p.done, url: "http://" + adminAddress}
	return p, admin
}

var heapAlloc = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)`)

// liveHeap returns the bytes that are in use after garbage collections; it needs the
// admin address. What pools keep goes with the second collection.
func (p *instance) liveHeap() int {
	var bytes int
	for range 3 {
		_, profile := get(p.url + "/debug/pprof/heap?gc=1&debug=1")
		match := heapAlloc.FindStringSubmatch(profile)
		if match == nil {
			p.t.Error("there is no heap profile")
			return 0
		}
		bytes, _ = strconv.Atoi(match[1])
	}
	return bytes
}

func megabytes(bytes float64) string { return strconv.FormatFloat(bytes/(1<<20), 'f', 1, 64) }

// percentile returns the value below which the share of the durations lies.
func percentile(durations []time.Duration, share float64) time.Duration {
	if len(durations) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(durations))
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]
}

// bare is a client that speaks the protocol byte by byte, so that it can speak it
// badly, or not at all.
type bare struct {
	conn   net.Conn
	reader *bufio.Reader
	answer *http.Response
}

// bareOptions say what is special about a bare client.
type bareOptions struct {
	from          string // the loopback address that it comes from
	receiveBuffer int    // of its socket, in bytes
	header        http.Header
}

// dialBare opens a TCP connection to the instance.
func (p *instance) dialBare(options bareOptions) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 10 * time.Second}
	if options.from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(options.from)}
	}
	if options.receiveBuffer > 0 {
		dialer.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			controlErr := raw.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, options.receiveBuffer)
			})
			return errors.Join(err, controlErr)
		}
	}
	return dialer.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
}

// upgradeRequest is what a client sends to open a WebSocket.
func upgradeRequest(pass string, header http.Header) []byte {
	var request bytes.Buffer
	fmt.Fprintf(&request, "GET /messages/?connection_pass=%s HTTP/1.1\r\nHost: gateway\r\n", pass)
	request.WriteString("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n")
	_ = header.Write(&request)
	request.WriteString("\r\n")
	return request.Bytes()
}

// upgradeBare asks for a WebSocket and returns the client with the answer, whatever it is.
func (p *instance) upgradeBare(pass string, options bareOptions) (*bare, error) {
	conn, err := p.dialBare(options)
	if err != nil {
		return nil, err
	}
	b := &bare{conn: conn, reader: bufio.NewReader(conn)}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err = conn.Write(upgradeRequest(pass, options.header)); err == nil {
		b.answer, err = http.ReadResponse(b.reader, nil)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	return b, nil
}

// connectBare opens a WebSocket of a user.
func (p *instance) connectBare(user int64, options bareOptions) *bare {
	p.t.Helper()
	b, err := p.upgradeBare(p.pass("", tokenFor(p.t, user, time.Hour)), options)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = b.conn.Close() })
	if b.answer.StatusCode != http.StatusSwitchingProtocols {
		p.t.Fatalf("an upgrade was answered with %s", b.answer.Status)
	}
	return b
}

// Opcodes of RFC 6455, section 11.8, and the bits beside them in a frame's first byte.
const (
	opContinuation = 0x0
	opText         = 0x1
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xA
	bitFinal       = 0x80
	bitRSV1        = 0x40
)

// bareFrame is a frame as a client must send it, with a masking key of zeros.
func bareFrame(first byte, payload []byte) []byte {
	frame := []byte{first}
	switch n := len(payload); {
	case n < 126:
		frame = append(frame, 0x80|byte(n))
	case n < 1<<16:
		frame = append(frame, 0x80|126, byte(n>>8), byte(n))
	default:
		frame = endian.BigEndian.AppendUint64(append(frame, 0x80|127), uint64(n))
	}
	return append(append(frame, 0, 0, 0, 0), payload...)
}

// next reads a frame of the service.
func (b *bare) next() (opcode byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(b.reader, head[:]); err != nil {
		return 0, nil, err
	}
	length := uint64(head[1] & 0x7f)
	if more := map[uint64]int{126: 2, 127: 8}[length]; more > 0 {
		var extended [8]byte
		if _, err := io.ReadFull(b.reader, extended[8-more:]); err != nil {
			return 0, nil, err
		}
		length = endian.BigEndian.Uint64(extended[:])
	}
	payload = make([]byte, length)
	_, err = io.ReadFull(b.reader, payload)
	return head[0] & 0x0f, payload, err
}

// ending reads up to the end of the connection and returns the code of the close frame
// before it, 0 where there was none.
func (b *bare) ending(within time.Duration) (code int, err error) {
	_ = b.conn.SetReadDeadline(time.Now().Add(within))
	for {
		opcode, payload, err := b.next()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return code, err
		case err != nil:
			return code, nil
		case opcode == opClose && len(payload) >= 2:
			code = int(endian.BigEndian.Uint16(payload))
		}
	}
}

// closing reads up to the close frame, which it does not answer, and returns its code.
func (b *bare) closing(within time.Duration) (code int, err error) {
	_ = b.conn.SetReadDeadline(time.Now().Add(within))
	for {
		opcode, payload, err := b.next()
		if err != nil {
			return 0, err
		}
		if opcode == opClose && len(payload) >= 2 {
			return int(endian.BigEndian.Uint16(payload)), nil
		}
	}
}

// readsToEnd reports whether the connection ends within the time; bytes are thrown away.
func readsToEnd(conn net.Conn, within time.Duration) bool {
	_ = conn.SetReadDeadline(time.Now().Add(within))
	_, err := io.Copy(io.Discard, conn)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// within polls a condition and reports whether it came true in time.
func within(limit time.Duration, condition func() bool) bool {
	deadline := time.After(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			return false
		case <-tick.C:
		}
	}
	return true
}

// flood publishes count messages of size bytes for a user and returns when the broker
// has them all. Those for which there is no queue any more are dropped by the broker.
func flood(url string, user int64, count, size int) error {
	connection, err := amqp091.Dial(url)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	channel, err := connection.Channel()
	if err == nil {
		err = channel.Confirm(false)
	}
	if err != nil {
		return err
	}
	body := []byte(`"` + strings.Repeat("x", size-2) + `"`)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var confirms []*amqp091.DeferredConfirmation
	for range count {
		confirm, err := channel.PublishWithDeferredConfirm("websockets", fmt.Sprint(user), false, false, amqp091.Publishing{Body: body})
		if err != nil {
			return err
		}
		confirms = append(confirms, confirm)
	}
	for _, confirm := range confirms {
		if acked, err := confirm.WaitContext(ctx); err != nil || !acked {
			return fmt.Errorf("a message of the flood was not taken: acked %t: %w", acked, err)
		}
	}
	return nil
}

// traffic sends numbered messages to a crowd and measures how long they take.
type traffic struct {
	t       *testing.T
	backend *peer
	users   int64
	sent    map[int64]int

	mu        sync.Mutex
	received  map[int64]int
	latencies []time.Duration
	disorder  string
}

// trafficBase is the id of the first user of the crowd.
const trafficBase = 1_000_000

// startTraffic connects the crowd; nothing is sent yet.
func startTraffic(t *testing.T, p *instance, url string, users int) *traffic {
	t.Helper()
	f := &traffic{t: t, backend: newPeer(t, url), users: int64(users), sent: make(map[int64]int), received: make(map[int64]int)}
	p.crowd(trafficBase, users, f.hear)
	return f
}

func (f *traffic) hear(g *guest, frame []byte) {
	now := time.Now().UnixNano()
	var message struct {
		N  int   `json:"n"`
		At int64 `json:"at"`
	}
	err := json.Unmarshal(frame, &message)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.received[g.user]++; err != nil || message.N != f.received[g.user] {
		f.disorder = fmt.Sprintf("user %d got %s as number %d", g.user, frame, f.received[g.user])
	}
	f.latencies = append(f.latencies, time.Duration(now-message.At))
}

// during sends to one user after the other, 500 messages a second at most, until ended
// reports true, and at least to each user ten times; it returns how long they took.
func (f *traffic) during(ended func() bool) []time.Duration {
	f.t.Helper()
	f.mu.Lock()
	f.latencies = nil
	f.mu.Unlock()
	pace := time.NewTicker(2 * time.Millisecond)
	defer pace.Stop()
	for i := int64(0); i < 10*f.users || !ended(); i++ {
		<-pace.C
		user := trafficBase + i%f.users
		f.sent[user]++
		if !f.backend.publish(user, "", fmt.Sprintf(`{"n":%d,"at":%d}`, f.sent[user], time.Now().UnixNano())) {
			f.t.Fatalf("user %d has no queue", user)
		}
	}
	eventually(f.t, "everything has come", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for user, count := range f.sent {
			if f.received[user] < count {
				return false
			}
		}
		return true
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.disorder != "" {
		f.t.Errorf("lost or out of order: %s", f.disorder)
	}
	return f.latencies
}

// slowWriteTimeout is WS_WRITE_TIMEOUT where a client is slow.
const slowWriteTimeout = 2 * time.Second

// stopsReading floods a client that does not read: it is closed with 4408 in time, and
// a hundred others get everything meanwhile.
func stopsReading(t *testing.T, node *rabbittest.Node, scope string) {
	const (
		others       = 100
		count, size  = 400, 32 << 10
		slow, fast   = 1, 2
		closes       = `websocket_closes_total{code="4408"}`
		heapMayGrow  = 8 << 20
		slowShutWait = time.Second // what the service waits for the write under way
	)
	p, admin := serveWithAdmin(t, plainBinary(t), clientEnv(node.URL(), "QUEUE_SCOPE", scope, "WS_WRITE_TIMEOUT", slowWriteTimeout.String()))
	crowd := startTraffic(t, p, node.URL(), others)
	var busy atomic.Int32

	// For comparison, the same flood goes to a client that reads it.
	reader := p.connectBare(fast, bareOptions{})
	go func() { _, _ = io.Copy(io.Discard, reader.conn) }()
	busy.Store(1)
	go func() {
		defer busy.Add(-1)
		if err := flood(node.URL(), fast, count, size); err != nil {
			t.Error(err)
		}
		admin.liveHeap()
	}()
	undisturbed := crowd.during(func() bool { return busy.Load() == 0 })
	_ = reader.conn.Close()

	client := p.connectBare(slow, bareOptions{receiveBuffer: 4 << 10})
	heapBefore, rssBefore := admin.liveHeap(), admin.metric("process_resident_memory_bytes")
	var took, flooded time.Duration
	heapMost := heapBefore
	busy.Store(2)
	began := time.Now()
	go func() {
		defer busy.Add(-1)
		if err := flood(node.URL(), slow, count, size); err != nil {
			t.Error(err)
		}
		flooded = time.Since(began)
		// In the scope user the stall lasts long enough for a look at what is held now.
		heapMost = max(heapMost, admin.liveHeap())
	}()
	go func() {
		defer busy.Add(-1)
		if !within(60*time.Second, func() bool { return admin.metric(closes) == 1 }) {
			t.Error("the slow client is not closed with 4408")
		}
		took = time.Since(began)
	}()
	disturbed := crowd.during(func() bool { return busy.Load() == 0 })
	if t.Failed() {
		t.FailNow()
	}

	limit := slowWriteTimeout + time.Second
	if scope == "instance" {
		limit = slowShutWait // at once
	} else if took < slowWriteTimeout {
		t.Errorf("closed after %v, before WS_WRITE_TIMEOUT", took)
	}
	if late := took - flooded; late > limit+schedulingAllowance {
		t.Errorf("closed %v after its queue was full", late)
	}
	if !readsToEnd(client.conn, 10*time.Second) {
		t.Error("the slow client's connection is still open")
	}
	if dropped := admin.metric(`websocket_deliveries_dropped_total{reason="slow_consumer"}`); dropped < 1 {
		t.Errorf("%v deliveries were dropped for the slow client", dropped)
	}
	if grown := heapMost - heapBefore; grown > heapMayGrow {
		t.Errorf("the heap has grown by %s MB", megabytes(float64(grown)))
	}
	figure(t, "slow_client_closed_after_"+scope, took, "")
	figure(t, "p99_of_others_undisturbed_"+scope, percentile(undisturbed, 0.99), "")
	figure(t, "p99_of_others_disturbed_"+scope, percentile(disturbed, 0.99), "")
	figure(t, "heap_before_"+scope, megabytes(float64(heapBefore)), "MB")
	figure(t, "heap_with_slow_client_"+scope, megabytes(float64(heapMost)), "MB")
	figure(t, "rss_before_"+scope, megabytes(rssBefore), "MB")
	figure(t, "rss_with_slow_client_"+scope, megabytes(admin.metric("process_resident_memory_bytes")), "MB")
}

// deviceStopsReading lets one of three devices of a user stop reading: the two others
// get everything, in order, and are held up for no longer than it takes to notice.
func deviceStopsReading(t *testing.T, node *rabbittest.Node, scope string) {
	const user, count, size, ahead = 1, 400, 32 << 10, 16
	p, admin := serveWithAdmin(t, plainBinary(t), clientEnv(node.URL(), "QUEUE_SCOPE", scope, "WS_WRITE_TIMEOUT", slowWriteTimeout.String()))
	backend := newPeer(t, node.URL())
	slow := p.connectBare(user, bareOptions{receiveBuffer: 4 << 10})

	devices := []*client{p.connect(user), p.connect(user)}
	// A device gives a place back for each message; the publisher is never more than so
	// many ahead, as a queue that is full for a moment is a slow client in this scope.
	places := make(chan struct{}, 2*ahead)
	for range 2 * ahead {
		places <- struct{}{}
	}
	gaps := make(chan time.Duration, len(devices))
	var running sync.WaitGroup
	for _, device := range devices {
		running.Go(func() {
			longest, last := time.Duration(0), time.Now()
			defer func() { gaps <- longest }()
			for i := range count {
				select {
				case frame, open := <-device.frames:
					if !open || !strings.HasPrefix(frame, fmt.Sprintf(`{"n":%d,`, i)) {
						t.Errorf("message %d: open %t, got %.20q", i, open, frame)
						return
					}
				case <-time.After(20 * time.Second):
					t.Errorf("message %d did not come", i)
					return
				}
				longest, last = max(longest, time.Since(last)), time.Now()
				places <- struct{}{}
			}
		})
	}
	padding := strings.Repeat("x", size)
	for i := range count {
		for range devices {
			select {
			case <-places:
			case <-time.After(20 * time.Second):
				t.Fatalf("the devices do not get message %d", i-ahead)
			}
		}
		backend.publish(user, "", fmt.Sprintf(`{"n":%d,"padding":"%s"}`, i, padding))
	}
	running.Wait()
	longest := max(<-gaps, <-gaps)
	if longest > slowWriteTimeout+time.Second+schedulingAllowance {
		t.Errorf("the other devices were held up for %v", longest)
	}
	eventually(t, "the slow device is closed with 4408", func() bool { return admin.metric(`websocket_closes_total{code="4408"}`) == 1 })
	if connections := admin.metric("websocket_hub_active_connections"); connections != 2 {
		t.Errorf("%v connections are left", connections)
	}
	if !readsToEnd(slow.conn, 10*time.Second) {
		t.Error("the slow device's connection is still open")
	}
	figure(t, "other_devices_held_up_"+scope, longest, "")
}

// manyStopReading lets so many clients stop reading that their queues together hold more
// than the instance's prefetch, with all limits at their defaults: nobody else waits for
// them, and all of them are closed.
func manyStopReading(t *testing.T, node *rabbittest.Node) {
	const (
		slow, healthy = 30, 1
		first         = 1000 // of the slow users
		batch, size   = 10, 32 << 10
		every         = 50 * time.Millisecond
		limit         = 2*time.Second + schedulingAllowance
		enough        = 40 * time.Second // for all of them to be closed
	)
	p, admin := serveWithAdmin(t, plainBinary(t), clientEnv(node.URL(), "QUEUE_SCOPE", "instance"))
	for i := range int64(slow) {
		p.connectBare(first+i, bareOptions{receiveBuffer: 4 << 10})
	}
	var mu sync.Mutex
	var latencies []time.Duration
	g := p.crowd(healthy, 1, func(_ *guest, frame []byte) {
		now := time.Now().UnixNano()
		at, _ := strconv.ParseInt(string(frame), 10, 64)
		mu.Lock()
		defer mu.Unlock()
		latencies = append(latencies, time.Duration(now-at))
	})[0]
	closed := func() int { return int(admin.metric(`websocket_closes_total{code="4408"}`)) }
	stop, flooded := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			for i := range int64(slow) {
				if err := flood(node.URL(), first+i, batch, size); err != nil {
					flooded <- err
					return
				}
				select {
				case <-stop:
					flooded <- nil
					return
				default:
				}
			}
		}
	}()
	backend := newPeer(t, node.URL())
	published := 0
	pace := time.NewTicker(every)
	defer pace.Stop()
	for began := time.Now(); closed() < slow && time.Since(began) < enough; published++ {
		<-pace.C
		if !backend.publish(healthy, "", strconv.FormatInt(time.Now().UnixNano(), 10)) {
			t.Error("the healthy user has no queue")
			break
		}
	}
	close(stop)
	if err := <-flooded; err != nil {
		t.Error(err)
	}
	if n := closed(); n != slow {
		t.Errorf("%d of %d slow clients are closed with 4408", n, slow)
	}
	awaited(t, 20*time.Second, "the healthy user has got everything", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(latencies) >= published
	})
	stillThere(t, []*guest{g})
	mu.Lock()
	defer mu.Unlock()
	longest := percentile(latencies, 1)
	if longest > limit {
		t.Errorf("the healthy user waited %v for a message", longest)
	}
	figure(t, "many_slow_published_for_the_healthy", published, "messages")
	figure(t, "many_slow_longest_wait_of_the_healthy", longest, "")
}

// peerVanishes swallows what goes between a client and the service: the client and its
// queue are gone within two ping intervals.
func peerVanishes(t *testing.T, node *rabbittest.Node, scope string) {
	const interval, user = time.Second, 1
	p := serveWith(t, clientEnv(node.URL(), "QUEUE_SCOPE", scope, "WS_PING_INTERVAL", interval.String()))
	backend := newPeer(t, node.URL())
	between := newProxy(t, strings.TrimPrefix(p.url, "http://"))
	far := &instance{t: t, cmd: p.cmd, out: p.out, done: p.done, url: between.through(p.url)}
	far.connect(user)
	near := p.connect(user + 1)
	if !backend.publish(user, "", `{}`) {
		t.Fatal("the user has no queue")
	}
	began := time.Now()
	between.blackHole(true)
	awaited(t, 2*interval+schedulingAllowance, "the vanished peer's queue is gone", func() bool { return !backend.publish(user, "", `{}`) })
	took := time.Since(began)
	eventually(t, "the vanished peer is counted", func() bool {
		return p.metric(`websocket_closes_total{code="1006"}`) == 1 && p.metric("websocket_hub_active_connections") == 1
	})
	if !backend.publish(user+1, "", `{"still":"here"}`) || near.next()["still"] != "here" {
		t.Error("the other user was disturbed")
	}
	figure(t, "vanished_peer_gone_after_"+scope, took, "")
}

// visitor comes and goes in one of the ways in which clients do.
type visitor struct {
	p      *instance
	http   *http.Client
	tokens []string
	// away says that the broker is, so that upgrades are refused.
	away bool
}

// pass fetches a pass without failing the test, as many do it at once.
func (v *visitor) pass(i int) (string, error) {
	request, err := http.NewRequest(http.MethodPost, v.p.url+"/messages/get-connection-pass", nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+v.tokens[i%len(v.tokens)])
	response, err := v.http.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	var answer struct {
		Pass string `json:"connection_pass"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.Pass == "" {
		return "", fmt.Errorf("no pass: %s (%w)", response.Status, err)
	}
	return answer.Pass, nil
}

// leavings are the ways to end a connection.
var leavings = []func(b *bare) error{
	func(b *bare) error { // with a close handshake
		if _, err := b.conn.Write(bareFrame(bitFinal|opClose, []byte{0x03, 0xe8})); err != nil {
			return err
		}
		if code, err := b.ending(10 * time.Second); err != nil || code != 1000 {
			return fmt.Errorf("a close was answered with %d: %w", code, err)
		}
		return nil
	},
	func(b *bare) error { return nil }, // with a FIN only
	func(b *bare) error { // with a RST
		tcp, ok := b.conn.(*net.TCPConn)
		if !ok {
			return errors.New("not a TCP connection")
		}
		return tcp.SetLinger(0)
	},
	func(b *bare) error { // with a message on its way
		frame := bareFrame(bitFinal|opText, []byte(`{"client_message_id":"m","chat_id":"c","recipient_id":1,"body":""}`))
		_, err := b.conn.Write(frame)
		return err
	},
}

// visit connects and leaves in the way that i says.
func (v *visitor) visit(i int) error {
	const early = 2 // ways to leave before the upgrade is complete
	kind := i % (len(leavings) + early)
	pass, err := v.pass(i)
	if err != nil {
		return err
	}
	if kind >= len(leavings) {
		conn, err := v.p.dialBare(bareOptions{})
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		request := upgradeRequest(pass, nil)
		if kind == len(leavings) {
			request = request[:len(request)/2]
		}
		_, err = conn.Write(request)
		return err
	}
	b, err := v.p.upgradeBare(pass, bareOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = b.conn.Close() }()
	switch status := b.answer.StatusCode; {
	case status == http.StatusSwitchingProtocols:
		return leavings[kind](b)
	case v.away && status == http.StatusServiceUnavailable:
		return nil
	default:
		return fmt.Errorf("an upgrade was answered with %s", b.answer.Status)
	}
}

// visits lets count visitors come, several at a time.
func (v *visitor) visits(t *testing.T, count int) {
	t.Helper()
	const doors = 32
	var next atomic.Int64
	var running sync.WaitGroup
	failures := make([]error, doors)
	for door := range doors {
		running.Go(func() {
			for failures[door] == nil {
				i := int(next.Add(1)) - 1
				if i >= count {
					return
				}
				failures[door] = v.visit(i)
			}
		})
	}
	running.Wait()
	v.http.CloseIdleConnections()
	if err := errors.Join(failures...); err != nil {
		t.Fatal(err)
	}
}

// inventory is what an instance holds.
type inventory struct{ queues, bindings, channels, goroutines, heap int }

// takeInventory waits until nobody is connected and counts what is there then.
func takeInventory(t *testing.T, node *rabbittest.Node, admin *instance, goroutines int) inventory {
	t.Helper()
	for _, gauge := range []string{"websocket_hub_active_connections", "websocket_hub_active_users"} {
		awaited(t, 30*time.Second, gauge+" is 0", func() bool { return admin.metric(gauge) == 0 })
	}
	if goroutines > 0 {
		awaited(t, 30*time.Second, fmt.Sprintf("there are %d goroutines again", goroutines), func() bool { return admin.goroutines() <= goroutines })
	}
	lines := func(args ...string) (count int) {
		for line := range strings.Lines(node.Ctl(t, args...)) {
			if strings.HasPrefix(line, "websocket") || args[0] == "list_channels" {
				count++
			}
		}
		return count
	}
	return inventory{
		queues:     lines("list_queues", "--no-table-headers", "name"),
		bindings:   lines("list_bindings", "--no-table-headers", "source_name"),
		channels:   lines("list_channels", "--no-table-headers", "pid"),
		goroutines: admin.goroutines(),
		heap:       admin.liveHeap(),
	}
}

// churn lets visitors come and go in all ways: nothing is left of them.
func churn(t *testing.T, node *rabbittest.Node, scope string) {
	const (
		users = 200
		// heapNoise is what a second run of the same size may add. It does not grow with
		// the number of visits, so the long form sees what each of them leaves.
		heapNoise = 512 << 10
		warmUp    = 300
	)
	count := multiplied(2000, 100_000)
	between := newProxy(t, node.Address())
	p, admin := serveWithAdmin(t, plainBinary(t), clientEnv(between.through(node.URL()), "QUEUE_SCOPE", scope))
	newPeer(t, node.URL()).consume()
	v := &visitor{p: p, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 20 * time.Second}}
	for user := range int64(users) {
		v.tokens = append(v.tokens, tokenFor(t, user+1, time.Hour))
	}
	check := func(what string, got, want inventory) {
		t.Helper()
		wantQueues := 0
		if scope == "instance" {
			wantQueues = 1 // the instance's own
		}
		if got.queues != wantQueues || got.bindings != 0 || got.channels > want.channels {
			t.Errorf("%s: %d queues, %d bindings, %d channels; there were %d channels", what, got.queues, got.bindings, got.channels, want.channels)
		}
	}
	v.visits(t, warmUp)
	base := takeInventory(t, node, admin, 0)
	check("warm", base, base)

	began := time.Now()
	v.visits(t, count)
	took := time.Since(began)
	first := takeInventory(t, node, admin, base.goroutines)
	check("after the first run", first, base)
	v.visits(t, count)
	second := takeInventory(t, node, admin, base.goroutines)
	check("after the second run", second, base)
	if grown := second.heap - first.heap; grown > heapNoise {
		t.Errorf("a second run lets the heap grow by %d bytes", grown)
	}

	// The broker goes away under visitors who are there, and more come.
	var stayed []*bare
	for i := range multiplied(60, 1000) {
		stayed = append(stayed, p.connectBare(int64(i%users)+1, bareOptions{}))
	}
	between.blackHole(true)
	between.cut()
	admin.eventually("the instance is not ready", func() bool { return admin.status("/readyz") == http.StatusServiceUnavailable })
	v.away = true
	v.visits(t, count/10)
	for i, b := range stayed {
		if err := leavings[i%len(leavings)](b); err != nil {
			t.Errorf("leaving while the broker is away: %v", err)
		}
		_ = b.conn.Close()
	}
	between.blackHole(false)
	awaited(t, 30*time.Second, "the instance is ready again", func() bool { return admin.status("/readyz") == http.StatusOK })
	v.away = false
	v.visits(t, warmUp)
	check("after the broker was away", takeInventory(t, node, admin, base.goroutines), base)
	figure(t, "churn_visits_"+scope, strconv.FormatFloat(float64(count)/took.Seconds(), 'f', 0, 64), "1/s")
	figure(t, "churn_heap_after_first_run_"+scope, megabytes(float64(first.heap)), "MB")
	figure(t, "churn_heap_after_second_run_"+scope, megabytes(float64(second.heap)), "MB")
	figure(t, "churn_goroutines_before_"+scope, base.goroutines, "goroutines")
	figure(t, "churn_goroutines_after_second_run_"+scope, second.goroutines, "goroutines")
}
