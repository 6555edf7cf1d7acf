package hub

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// stacks counts the goroutines that read a connection, and all others that work for the
// hub's connections in any way.
func stacks() (readers int, others []string) {
	buffer := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buffer, true)
		if n < len(buffer) {
			buffer = buffer[:n]
			break
		}
		buffer = make([]byte, 2*len(buffer))
	}
	for stack := range strings.SplitSeq(string(buffer), "\n\n") {
		ours, server := strings.Contains(stack, "/modules/hub."), strings.Contains(stack, "net/http.")
		switch {
		case strings.Contains(stack, "testing.tRunner("), strings.Contains(stack, "net/http.(*Server).Serve("):
			// the test itself, and what accepts connections
		case ours && !server && strings.Contains(stack, "/modules/hub.(*session).read("):
			readers++
		case ours || server || strings.Contains(stack, "/coder/websocket."):
			others = append(others, stack)
		}
	}
	return readers, others
}

// expectReaders waits until there is one goroutine for each connection and no other.
func (h *house) expectReaders(when string, connections int) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("%d goroutines for %d connections, %s", connections, connections, when), func() bool {
		readers, others := stacks()
		return readers == connections && len(others) == 0
	})
	if h.t.Failed() {
		readers, others := stacks()
		h.t.Fatalf("%d readers and %d other goroutines:\n%s", readers, len(others), strings.Join(others, "\n\n"))
	}
}

// moreThanFits returns a delivery that is longer than what the system takes for a client
// that does not read.
func (c *client) moreThanFits() string {
	c.h.t.Helper()
	if tcp, ok := c.conn.(*net.TCPConn); ok {
		if err := tcp.SetReadBuffer(256 << 10); err != nil { // or it grows as it likes
			c.h.t.Fatal(err)
		}
	}
	return `"` + strings.Repeat("x", 16<<20) + `"`
}

// A million connections at rest are a million goroutines, and not two.
func TestConnectionAtRestHasOneGoroutine(t *testing.T) {
	const count = 20
	h := newHouse(t, false, nil)
	h.expectReaders("before any", 0)
	clients := make([]*client, count)
	for i := range clients {
		clients[i] = h.open(int64(i + 1))
	}
	h.expectReaders("after the upgrades", count)

	for i, c := range clients {
		user := userID(t, int64(i+1))
		h.inboxes.publish(user, "", `"first"`)
		c.expect(`"first"`)
		c.message("m-1")
		c.text("rubbish")
		c.expect(integrityError(""))
		c.write(fin|opPing, []byte("hi"))
		if opcode, payload, err := c.frame(); err != nil || opcode != opPong || string(payload) != "hi" {
			t.Fatalf("frame %x %q, %v; want a pong", opcode, payload, err)
		}
		h.inboxes.publish(user, "", `"second"`)
		c.expect(`"second"`)
	}
	if got := h.publisher.count(); got != count {
		t.Errorf("%d messages were published, want %d", got, count)
	}
	h.expectReaders("after messages both ways", count)

	// Only a socket that takes no more has a second one, until it does.
	great := clients[0].moreThanFits()
	h.inboxes.publish(userID(t, 1), "", great)
	if readers, others := stacks(); readers != count || len(others) != 1 || !strings.Contains(others[0], ".(*session).write") {
		t.Errorf("with a full socket: %d readers and %q", readers, others)
	}
	clients[0].expect(great)
	h.expectReaders("after a full socket", count)
}

// upgrades serves the house's upgrades through another handler, over connections that
// accepted may replace.
func (h *house) upgrades(handler http.Handler, accepted func(net.Conn) net.Conn) {
	h.t.Helper()
	server := httptest.NewUnstartedServer(handler)
	if accepted != nil {
		server.Listener = &wrappingListener{server.Listener, accepted}
	}
	server.Start()
	h.t.Cleanup(server.Close)
	h.dial = func() (net.Conn, error) { return net.Dial("tcp", server.Listener.Addr().String()) }
}

type wrappingListener struct {
	net.Listener
	wrap func(net.Conn) net.Conn
}

func (l *wrappingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(conn), nil
}

// remains notes what net/http has made for a connection, without keeping it.
type remains struct {
	request weak.Pointer[http.Request]
	reader  weak.Pointer[bufio.Reader]
	writer  weak.Pointer[bufio.Writer]
}

// notingWriter notes the buffers that a connection is taken over with.
type notingWriter struct {
	http.ResponseWriter
	remains *remains
}

func (n *notingWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffers, err := http.NewResponseController(n.ResponseWriter).Hijack()
	if err == nil {
		n.remains.reader, n.remains.writer = weak.Make(buffers.Reader), weak.Make(buffers.Writer)
	}
	return conn, buffers, err
}

// The request and net/http's buffers would be most of what an idle connection costs.
func TestConnectionAtRestKeepsNothingOfItsUpgrade(t *testing.T) {
	const count = 5
	h := newHouse(t, false, nil)
	noted := make(chan *remains, count)
	h.upgrades(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		left := &remains{request: weak.Make(r)}
		h.hub.ServeHTTP(&notingWriter{w, left}, r)
		noted <- left
	}), nil)
	clients := make([]*client, count)
	for i := range clients {
		// What is sent along with the request passes through net/http's buffer.
		c, response := h.request(upgradeRequest(h.pass(1, time.Hour)) + string((&client{}).encode(fin|opPing, []byte("early"))))
		if response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("status %d", response.StatusCode)
		}
		if opcode, payload, err := c.frame(); err != nil || opcode != opPong || string(payload) != "early" {
			t.Fatalf("frame %x %q, %v; want a pong", opcode, payload, err)
		}
		clients[i] = c
	}
	for range clients {
		left := <-noted
		h.eventually("the upgrade to be forgotten", func() bool {
			runtime.GC()
			return left.request.Value() == nil && left.reader.Value() == nil && left.writer.Value() == nil
		})
		if t.Failed() {
			t.Fatalf("kept: request %t, reader %t, writer %t",
				left.request.Value() != nil, left.reader.Value() != nil, left.writer.Value() != nil)
		}
	}
	for _, c := range clients {
		c.message("m-1") // they have been connections all along
	}
	h.eventually("the messages", func() bool { return h.publisher.count() == count })
}

// What takes the place of net/http's buffers is small.
func TestBuffersOfAConnectionAreSmall(t *testing.T) {
	type sizes struct {
		reader, writer int
		early          string
		err            error
	}
	got := make(chan sizes, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		upgrade := &upgradeWriter{ResponseWriter: w, writeTimeout: time.Second}
		conn, buffers, err := upgrade.Hijack()
		if err != nil {
			got <- sizes{err: err}
			return
		}
		early := make([]byte, 5)
		_, err = buffers.Read(early)
		if upgrade.wire.early != nil {
			t.Error("what has been read early is kept")
		}
		got <- sizes{buffers.Reader.Size(), buffers.Writer.Size(), string(early), err}
		_ = conn.Close()
	}))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: gateway.example\r\n\r\nearly")); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s.err != nil || s.early != "early" || s.reader > 512 || s.writer > 128 {
		t.Errorf("buffers of %d and %d bytes, early %q, %v", s.reader, s.writer, s.early, s.err)
	}
}

// A queue that has grown is not kept, nor what was in it.
func TestConnectionAtRestKeepsNoQueue(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		c := h.open(1)
		h.inboxes.mu.Lock()
		in := h.inboxes.open[userID(t, 1)]
		h.inboxes.mu.Unlock()
		var bodies []weak.Pointer[byte]
		for n := range 50 {
			body := []byte(fmt.Sprintf(`"%0100d"`, n))
			bodies = append(bodies, weak.Make(&body[0]))
			in.receive(app.Delivery{Body: body, Acks: new(settlement)})
		}
		for n := range 50 {
			c.expect(fmt.Sprintf(`"%0100d"`, n))
		}
		synctest.Wait()
		s := h.hub.list()[0]
		s.mu.Lock()
		if cap(s.queue) > keptQueue || s.head != 0 || s.deliveries != 0 {
			t.Errorf("at rest: %d places from %d on, %d deliveries", cap(s.queue), s.head, s.deliveries)
		}
		s.mu.Unlock()
		h.eventually("the deliveries to be forgotten", func() bool {
			runtime.GC()
			return !slices.ContainsFunc(bodies, func(body weak.Pointer[byte]) bool { return body.Value() != nil })
		})
	})
}

// TestRoundHasOneTimer: however many connections there are, each is pinged once in each
// interval, and the service wakes up for that no more often than for one of them.
func TestRoundHasOneTimer(t *testing.T) {
	const count = 100
	inBubble(t, nil, func(t *testing.T, h *house) {
		var visits atomic.Int64
		h.hub.round.each = func(time.Time) { visits.Add(1) }
		interval := h.config.PingInterval
		var (
			pings   [count]atomic.Int64
			clients []*client
		)
		for i := range count {
			c := h.open(int64(i%7 + 1))
			c.patience = 24 * time.Hour
			clients = append(clients, c)
			go func() {
				for {
					opcode, payload, err := c.frame()
					if err != nil {
						return
					}
					if opcode == opPing {
						pings[i].Add(1)
						c.write(fin|opPong, payload)
					}
				}
			}()
			<-time.After(300 * time.Millisecond) // over more than an interval
		}
		<-time.After(2*interval + time.Millisecond)
		for range 5 {
			synctest.Wait()
			visits.Store(0)
			for i := range pings {
				pings[i].Store(0)
			}
			<-time.After(interval)
			synctest.Wait()
			if n := visits.Load(); n != roundSlots {
				t.Errorf("%d visits in an interval, want %d", n, roundSlots)
			}
			for i := range pings {
				if n := pings[i].Load(); n != 1 {
					t.Errorf("connection %d has had %d pings in an interval", i, n)
				}
			}
		}
		for _, s := range h.hub.list() {
			s.mu.Lock()
			if s.timer != nil {
				t.Error("a connection far from its token's end has a timer")
			}
			s.mu.Unlock()
		}

		// The last to go takes the timer along, and the next brings one, and not two.
		for _, c := range clients {
			_ = c.conn.Close()
		}
		h.awaitClosed(count, 1006)
		synctest.Wait()
		visits.Store(0)
		<-time.After(10 * interval)
		synctest.Wait()
		if n := visits.Load(); n != 0 {
			t.Errorf("%d visits to nobody", n)
		}
		for range 2 {
			h.open(1)
		}
		<-time.After(interval + time.Millisecond)
		synctest.Wait()
		if n := visits.Load(); n != roundSlots {
			t.Errorf("%d visits in an interval, want %d", n, roundSlots)
		}
	})
}

// countingConn counts the writes of a connection, those that wait and those that don't.
type countingConn struct {
	*net.TCPConn
	writes *atomic.Int64
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.TCPConn.Write(p)
}

func (c *countingConn) SyscallConn() (syscall.RawConn, error) {
	raw, err := c.TCPConn.SyscallConn()
	return &countingRawConn{raw, c.writes}, err
}

type countingRawConn struct {
	syscall.RawConn
	writes *atomic.Int64
}

func (c *countingRawConn) Write(write func(fd uintptr) bool) error {
	c.writes.Add(1)
	return c.RawConn.Write(write)
}

// TestWaitingFramesLeaveInFewWrites: what has come together while a socket took nothing
// costs no write for each frame.
func TestWaitingFramesLeaveInFewWrites(t *testing.T) {
	const count = 200
	h := newHouse(t, false, func(h *house) { h.config.SendQueue, h.config.WriteTimeout = 1000, time.Minute })
	var writes atomic.Int64
	h.upgrades(h.hub, func(conn net.Conn) net.Conn {
		tcp, _ := conn.(*net.TCPConn)
		return &countingConn{tcp, &writes}
	})
	c := h.open(1)
	c.patience = time.Minute
	great := c.moreThanFits()
	settled := make([]*settlement, 0, count+1)
	publish := func(body string) {
		s, ok := h.inboxes.publish(userID(t, 1), "", body)
		if !ok {
			t.Fatal("no inbox")
		}
		settled = append(settled, s)
	}
	publish(great)
	for n := range count {
		publish(fmt.Sprintf(`"message %d"`, n))
	}
	s := h.hub.list()[0]
	s.mu.Lock()
	if !s.writing || s.deliveries != count+1 {
		t.Errorf("writing: %t, with %d deliveries; want %d to wait", s.writing, s.deliveries, count+1)
	}
	s.mu.Unlock()

	c.expect(great)
	for n := range count {
		c.expect(fmt.Sprintf(`"message %d"`, n))
	}
	for n, s := range settled {
		h.eventually(fmt.Sprintf("ack of delivery %d", n), func() bool { acks, rejects := s.count(); return acks == 1 && rejects == 0 })
	}
	// The answer to the upgrade, the great one's beginning, its header, and its rest; then
	// all others, in two or three where the socket has little room.
	if got := writes.Load(); got > 10 {
		t.Errorf("%d deliveries left in %d writes", count+1, got)
	}
}

// device is one of a user's several connections, which gathers what comes to it.
type device struct {
	*client
	texts chan string // has room for all
	code  chan int    // the close code, or 0
}

func (h *house) device(user int64) *device {
	h.t.Helper()
	d := &device{client: h.open(user), texts: make(chan string, 1000), code: make(chan int, 1)}
	d.patience = time.Hour
	return d
}

// read reads until the connection has ended.
func (d *device) read() {
	code := 0
	for {
		opcode, payload, err := d.frame()
		switch {
		case err != nil:
			d.code <- code
			return
		case opcode == opText:
			d.texts <- string(payload)
		case opcode == opClose:
			code = int(payload[0])<<8 | int(payload[1])
			_, _ = d.conn.Write(d.encode(fin|opClose, payload))
		}
	}
}

// received returns what has come, and checks that it is the first deliveries in order.
func (d *device) received() int {
	d.h.t.Helper()
	for n := 0; ; n++ {
		select {
		case got := <-d.texts:
			if want := fmt.Sprint(n); got != want {
				d.h.t.Errorf("received %q, want %q", got, want)
			}
		default:
			return n
		}
	}
}

func expectAcked(h *house, settled []*settlement) {
	h.t.Helper()
	for n, s := range settled {
		if acks, rejects := s.count(); acks != 1 || rejects != 0 {
			h.t.Errorf("delivery %d has %d acks and %d rejects", n, acks, rejects)
		}
	}
}

// TestFirstDeviceIsSlow: it is offered each delivery before the others, which must not
// wait for it where users share a queue, and WriteTimeout once where they don't.
func TestFirstDeviceIsSlow(t *testing.T) {
	const (
		count = 20
		queue = 4
	)
	// publish publishes deliveries one after the other, as a backend does that waits until
	// each is out.
	publish := func(h *house, after func(n int)) []*settlement {
		var settled []*settlement
		for n := range count {
			s, ok := h.inboxes.publish(userID(h.t, 1), "", fmt.Sprint(n))
			if !ok {
				h.t.Error("no inbox")
				return settled
			}
			settled = append(settled, s)
			after(n)
		}
		return settled
	}
	open := func(h *house) (slow *device, quick [2]*device) {
		slow = h.device(1)
		for i := range quick {
			quick[i] = h.device(1)
			go quick[i].read()
		}
		return slow, quick
	}

	t.Run("shared queue", func(t *testing.T) {
		inBubble(t, func(h *house) { h.config.SendQueue, h.config.CloseWhenFull = queue, true }, func(t *testing.T, h *house) {
			slow, quick := open(h)
			began := time.Now()
			settled := publish(h, func(n int) {
				synctest.Wait()
				for i, d := range quick {
					if got := len(d.texts); got != n+1 {
						t.Errorf("quick device %d has %d deliveries after %d", i, got, n+1)
					}
				}
			})
			took(t, "all delivered", began, 0, 0)
			go slow.read()
			if code := <-slow.code; code != 4408 {
				t.Errorf("close %d, want 4408", code)
			}
			if n := slow.received(); n != 1 { // what was being written
				t.Errorf("the slow device has %d deliveries", n)
			}
			for _, d := range quick {
				if n := d.received(); n != count {
					t.Errorf("a quick device has %d deliveries", n)
				}
			}
			h.awaitClosed(1, 4408)
			expectAcked(h, settled)
			if got := h.gauge("websocket_messages_delivered_total"); got != 2*count+1 {
				t.Errorf("%v deliveries counted, want %d", got, 2*count+1)
			}
			if got := h.gauge("websocket_deliveries_dropped_total", dropSlowConsumer); got != queue {
				t.Errorf("%v deliveries counted as given up, want %d", got, queue)
			}
		})
	})

	t.Run("own queue", func(t *testing.T) {
		inBubble(t, func(h *house) { h.config.SendQueue = queue }, func(t *testing.T, h *house) {
			slow, quick := open(h)
			began := time.Now()
			done := make(chan []*settlement, 1)
			go func() { done <- publish(h, func(int) { synctest.Wait() }) }()
			<-time.After(time.Millisecond)
			// One finds the slow device full, which the others have all the same.
			for i, d := range quick {
				if got := len(d.texts); got != queue+1 {
					t.Errorf("quick device %d has %d deliveries, want %d", i, got, queue+1)
				}
			}
			settled := <-done
			took(t, "all delivered", began, h.config.WriteTimeout, h.config.WriteTimeout)
			slow.gone()
			h.awaitClosed(1, 4408)
			for _, d := range quick {
				if n := d.received(); n != count {
					t.Errorf("a quick device has %d deliveries", n)
				}
			}
			expectAcked(h, settled)
		})
	})

	t.Run("own queue, slow for a while", func(t *testing.T) {
		inBubble(t, func(h *house) { h.config.SendQueue = queue }, func(t *testing.T, h *house) {
			slow, quick := open(h)
			began := time.Now()
			const wakes = 7 * time.Second
			time.AfterFunc(wakes, slow.read)
			settled := publish(h, func(int) { synctest.Wait() })
			took(t, "all delivered", began, wakes, wakes)
			synctest.Wait()
			for _, d := range []*device{slow, quick[0], quick[1]} {
				if n := d.received(); n != count {
					t.Errorf("a device has %d deliveries", n)
				}
			}
			expectAcked(h, settled)
			if got := h.gauge("websocket_messages_delivered_total"); got != 3*count {
				t.Errorf("%v deliveries counted, want %d", got, 3*count)
			}
			if got := h.gauge("websocket_hub_active_connections"); got != 3 {
				t.Errorf("%v connections are left", got)
			}
		})
	})
}
