package hub

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test for something that is to happen.
const patience = 10 * time.Second

// passes is an app.PassStore in memory that can be told to be away.
type passes struct {
	mu    sync.Mutex
	kept  map[[sha256.Size]byte]app.PassGrant
	down  error
	taken func() // called within Take, where it is set
}

func (p *passes) Put(_ context.Context, pass domain.ConnectionPass, grant app.PassGrant) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept[pass.Digest()] = grant
	return nil
}

func (p *passes) Take(_ context.Context, pass domain.ConnectionPass) (app.PassGrant, error) {
	p.mu.Lock()
	taken := p.taken
	grant, ok := p.kept[pass.Digest()]
	delete(p.kept, pass.Digest())
	p.mu.Unlock()
	if taken != nil {
		taken()
	}
	if !ok {
		return app.PassGrant{}, app.ErrPassInvalid
	}
	return grant, nil
}

func (p *passes) Available() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down
}

func (p *passes) Check(context.Context) error { return p.Available() }

func (p *passes) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.kept)
}

// published is a message that a session handed to the publisher.
type published struct {
	message  domain.Message
	deadline time.Time
	settled  func(error)
}

// publisher is an app.Publisher that confirms at once, or when a test says so.
type publisher struct {
	mu   sync.Mutex
	hold bool // settle nothing by itself
	fail error
	down error
	got  []published
}

func (p *publisher) Publish(_ context.Context, message domain.Message, deadline time.Time, settled func(error)) {
	p.mu.Lock()
	p.got = append(p.got, published{message, deadline, settled})
	hold, fail := p.hold, p.fail
	p.mu.Unlock()
	if !hold {
		settled(fail)
	}
}

func (p *publisher) Available() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down
}

func (p *publisher) Check(context.Context) error { return p.Available() }

func (p *publisher) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.got)
}

func (p *publisher) at(i int) published {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.got[i]
}

// inboxes is an app.Inboxes that tests publish to. It hands deliveries out one after
// the other for each inbox, and notices misuse.
type inboxes struct {
	mu     sync.Mutex
	open   map[domain.UserID]*inbox
	opens  int
	fail   error
	down   error
	faults []string
	// opening and closing are called within Open and Close, where they are set.
	opening func(ctx context.Context, user domain.UserID) error
	closing func(user domain.UserID)
	opened  func(in *inbox) // before Open returns
}

type inbox struct {
	inboxes *inboxes
	user    domain.UserID
	receive func(app.Delivery)
	mu      sync.Mutex // one delivery after the other
	closed  bool
}

func (i *inboxes) Open(ctx context.Context, user domain.UserID, receive func(app.Delivery)) (app.Inbox, error) {
	i.mu.Lock()
	i.opens++
	opening, opened, fail := i.opening, i.opened, i.fail
	if i.open[user] != nil {
		i.faults = append(i.faults, "opened twice: "+user.String())
	}
	i.mu.Unlock()
	if fail != nil {
		return nil, fail
	}
	if opening != nil {
		if err := opening(ctx, user); err != nil {
			return nil, err
		}
	}
	in := &inbox{inboxes: i, user: user, receive: receive}
	i.mu.Lock()
	i.open[user] = in
	i.mu.Unlock()
	if opened != nil {
		opened(in)
	}
	return in, nil
}

func (i *inboxes) Available() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.down
}

func (i *inboxes) Check(context.Context) error { return i.Available() }

func (in *inbox) Close(context.Context) error {
	in.inboxes.mu.Lock()
	closing := in.inboxes.closing
	in.inboxes.mu.Unlock()
	if closing != nil {
		closing(in.user)
	}
	in.mu.Lock()
	again := in.closed
	in.closed = true
	in.mu.Unlock()
	in.inboxes.mu.Lock()
	defer in.inboxes.mu.Unlock()
	if again {
		in.inboxes.faults = append(in.inboxes.faults, "closed twice: "+in.user.String())
	}
	if in.inboxes.open[in.user] == in {
		delete(in.inboxes.open, in.user)
	}
	return nil
}

// settlement records how a delivery ended.
type settlement struct {
	mu            sync.Mutex
	acks, rejects int
}

func (s *settlement) Ack(uint64)    { s.mu.Lock(); s.acks++; s.mu.Unlock() }
func (s *settlement) Reject(uint64) { s.mu.Lock(); s.rejects++; s.mu.Unlock() }

func (s *settlement) count() (acks, rejects int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acks, s.rejects
}

// publish delivers as a backend's message, and reports whether the user has an inbox.
// It returns when receive has.
func (i *inboxes) publish(user domain.UserID, kind, body string) (*settlement, bool) {
	i.mu.Lock()
	in := i.open[user]
	i.mu.Unlock()
	if in == nil {
		return nil, false
	}
	return in.deliver(kind, body)
}

func (in *inbox) deliver(kind, body string) (*settlement, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return nil, false
	}
	settled := new(settlement)
	in.receive(app.Delivery{Body: []byte(body), Type: kind, Acks: settled})
	return settled, true
}

func (i *inboxes) size() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.open)
}

// house is a hub with all that it needs, served over sockets or, within a synctest
// bubble, over pipes.
type house struct {
	t         testing.TB
	config    Config
	limits    app.ConnectLimits
	passes    *passes
	publisher *publisher
	inboxes   *inboxes
	connect   *app.Connect
	hub       *Hub
	registry  *prometheus.Registry
	logs      *observer.ObservedLogs
	listener  net.Listener
	dial      func() (net.Conn, error)
}

func usualConfig() Config {
	return Config{
		MaxMessageBytes: 65536, PingInterval: 25 * time.Second, WriteTimeout: 10 * time.Second, SendQueue: 64,
		MaxConnectionsPerUser: 16, CloseOnTokenExpiry: true, ConfirmTimeout: 5 * time.Second,
		AllowedOrigins: []string{"http://localhost", "https://chat.example:8443"},
		DrainWindow:    2 * time.Second, DrainTimeout: 12 * time.Second,
	}
}

// newHouse starts a house; change may alter it before. pipes is for synctest bubbles.
func newHouse(t testing.TB, pipes bool, change func(*house)) *house {
	t.Helper()
	h := &house{
		t: t, config: usualConfig(),
		passes:    &passes{kept: make(map[[sha256.Size]byte]app.PassGrant)},
		publisher: new(publisher),
		inboxes:   &inboxes{open: make(map[domain.UserID]*inbox)},
		registry:  prometheus.NewRegistry(),
	}
	if change != nil {
		change(h)
	}
	core, logs := observer.New(zapcore.InfoLevel)
	h.logs = logs
	h.connect = app.NewConnect(h.passes, h.publisher, h.inboxes, h.limits)
	refuse := func(w http.ResponseWriter, _ *http.Request, err error) {
		var limit *app.RateLimitError
		switch {
		case errors.As(err, &limit):
			w.WriteHeader(http.StatusTooManyRequests)
		case errors.Is(err, app.ErrForeignOrigin):
			w.WriteHeader(http.StatusForbidden)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	h.hub = New(h.config, h.connect, app.NewSend(h.publisher, h.config.ConfirmTimeout), h.inboxes, refuse, zap.New(core), h.registry)
	router := chi.NewRouter()
	h.hub.Routes(router)
	if pipes {
		listener := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		h.listener, h.dial = listener, listener.dial
	} else {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		h.listener = listener
		h.dial = func() (net.Conn, error) { return net.Dial("tcp", listener.Addr().String()) }
	}
	server := &http.Server{Handler: router, ReadHeaderTimeout: patience}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(h.listener) })
	t.Cleanup(func() {
		for _, s := range h.hub.list() {
			s.cut()
		}
		_ = server.Close()
		serving.Wait()
		h.eventually("every session to end", func() bool {
			h.hub.mu.Lock()
			defer h.hub.mu.Unlock()
			return h.hub.live == 0 && len(h.hub.users) == 0
		})
		h.inboxes.mu.Lock()
		defer h.inboxes.mu.Unlock()
		if len(h.inboxes.faults) > 0 || len(h.inboxes.open) > 0 {
			t.Errorf("inboxes: %q; left open: %d", h.inboxes.faults, len(h.inboxes.open))
		}
		if active := h.gauge("websocket_hub_active_connections"); active != 0 {
			t.Errorf("%v connections counted as active at the end", active)
		}
		if active := h.gauge("websocket_hub_active_users"); active != 0 {
			t.Errorf("%v users counted as active at the end", active)
		}
	})
	return h
}

// pipeListener is a listener of net.Pipe connections, which synctest understands.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) dial() (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:1"))
}

func userID(t testing.TB, n int64) domain.UserID {
	t.Helper()
	user, err := domain.NewUserID(n)
	if err != nil {
		t.Fatal(err)
	}
	return user
}

// pass puts a pass for the user into the store; its token is good for lifetime.
func (h *house) pass(user int64, lifetime time.Duration) string {
	h.t.Helper()
	pass, err := domain.NewConnectionPass(32)
	if err != nil {
		h.t.Fatal(err)
	}
	grant := app.PassGrant{Grant: app.Grant{User: userID(h.t, user), TokenExpiresAt: time.Now().Add(lifetime)}, PassExpiresAt: time.Now().Add(time.Minute)}
	if err := h.passes.Put(context.Background(), pass, grant); err != nil {
		h.t.Fatal(err)
	}
	return pass.Reveal()
}

// eventually waits until ok. In a bubble, time passes at once.
func (h *house) eventually(what string, ok func() bool) {
	h.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			h.t.Errorf("waited in vain for %s", what)
			return
		}
		<-time.After(2 * time.Millisecond)
	}
}

func (h *house) gauge(name string, labels ...string) float64 {
	families, err := h.registry.Gather()
	if err != nil {
		h.t.Error(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, metric := range family.GetMetric() {
			if len(labels) == 0 || metric.GetLabel()[0].GetValue() == labels[0] {
				return metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
			}
		}
	}
	h.t.Errorf("no metric %s %v", name, labels)
	return -1
}

// awaitCount waits until a metric has the value.
func (h *house) awaitCount(want float64, name string, labels ...string) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("%s %v to be %v, not %v", name, labels, want, h.gauge(name, labels...)), func() bool {
		return h.gauge(name, labels...) == want
	})
}

func (h *house) awaitClosed(want float64, code int) {
	h.t.Helper()
	label := labelOther
	if code > 0 {
		label = strconv.Itoa(code)
	}
	h.awaitCount(want, "websocket_closes_total", label)
}

// upgradeRequest is an upgrade as it goes over the wire.
func upgradeRequest(pass string, headers ...string) string {
	lines := append([]string{
		"GET /messages/?connection_pass=" + pass + " HTTP/1.1", "Host: gateway.example:8001", "Connection: keep-alive, Upgrade",
		"Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
	}, headers...)
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// client speaks WebSocket by hand, so that it can do what a library would not.
type client struct {
	h        *house
	conn     net.Conn
	in       *bufio.Reader
	mask     [4]byte
	patience time.Duration
}

// request sends an upgrade and returns the client with the answer to it.
func (h *house) request(text string) (*client, *http.Response) {
	h.t.Helper()
	conn, err := h.dial()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = conn.Close() })
	c := &client{h: h, conn: conn, in: bufio.NewReader(conn), mask: [4]byte{1, 2, 3, 4}, patience: patience}
	c.raw([]byte(text))
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	response, err := http.ReadResponse(c.in, nil)
	if err != nil {
		h.t.Fatalf("read the answer: %v", err)
	}
	return c, response
}

// open opens a connection for the user.
func (h *house) open(user int64) *client {
	h.t.Helper()
	return h.openWith(h.pass(user, time.Hour))
}

func (h *house) openWith(pass string) *client {
	h.t.Helper()
	c, response := h.request(upgradeRequest(pass))
	if response.StatusCode != http.StatusSwitchingProtocols {
		h.t.Fatalf("status %d, want 101", response.StatusCode)
	}
	if got := response.Header.Get("Sec-WebSocket-Accept"); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		h.t.Fatalf("Sec-WebSocket-Accept %q", got) // RFC 6455, section 1.3
	}
	return c
}

func (c *client) raw(data []byte) {
	c.h.t.Helper()
	_ = c.conn.SetWriteDeadline(time.Now().Add(c.patience))
	if _, err := c.conn.Write(data); err != nil {
		c.h.t.Errorf("write: %v", err)
	}
}

const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xa
	fin            = 0x80
)

// encode builds a masked frame; first is the whole first byte.
func (c *client) encode(first byte, payload []byte) []byte {
	frame := []byte{first}
	switch n := len(payload); {
	case n < 126:
		frame = append(frame, 0x80|byte(n))
	case n < 1<<16:
		frame = binary.BigEndian.AppendUint16(append(frame, 0x80|126), uint16(n))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 0x80|127), uint64(n))
	}
	frame = append(frame, c.mask[:]...)
	for i, b := range payload {
		frame = append(frame, b^c.mask[i%4])
	}
	return frame
}

func (c *client) write(first byte, payload []byte) {
	c.h.t.Helper()
	c.raw(c.encode(first, payload))
}

func (c *client) text(text string) {
	c.h.t.Helper()
	c.write(fin|opText, []byte(text))
}

// message sends a good frame with this id.
func (c *client) message(id string) {
	c.h.t.Helper()
	c.text(strings.Replace(goodFrame, "m-1", id, 1))
}

func (c *client) sendClose(code int, reason string) {
	c.h.t.Helper()
	c.write(fin|opClose, append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...))
}

// frame reads one frame of the server.
func (c *client) frame() (opcode byte, payload []byte, err error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(c.patience))
	var head [2]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return 0, nil, err
	}
	if head[0]&0x70 != 0 || head[1]&0x80 != 0 || head[0]&fin == 0 {
		return 0, nil, fmt.Errorf("frame head %x", head)
	}
	length := uint64(head[1])
	switch length {
	case 126:
		var more [2]byte
		_, err = io.ReadFull(c.in, more[:])
		length = uint64(binary.BigEndian.Uint16(more[:]))
	case 127:
		var more [8]byte
		_, err = io.ReadFull(c.in, more[:])
		length = binary.BigEndian.Uint64(more[:])
	}
	if err != nil {
		return 0, nil, err
	}
	payload = make([]byte, length)
	_, err = io.ReadFull(c.in, payload)
	return head[0] & 0x0f, payload, err
}

// next returns the next text frame; it answers pings.
func (c *client) next() string {
	c.h.t.Helper()
	for {
		opcode, payload, err := c.frame()
		switch {
		case err != nil:
			c.h.t.Errorf("read a frame: %v", err)
			return ""
		case opcode == opPing:
			c.write(fin|opPong, payload)
		case opcode == opText:
			return string(payload)
		default:
			c.h.t.Errorf("frame with opcode %x: %q; want text", opcode, payload)
			return ""
		}
	}
}

// expect reads the next text frame and compares it.
func (c *client) expect(want string) {
	c.h.t.Helper()
	if got := c.next(); got != want {
		c.h.t.Errorf("received %q, want %q", got, want)
	}
}

// expectError reads the next text frame, an error that answers the frame with this id.
func (c *client) expectError(title, id string) {
	c.h.t.Helper()
	if got := c.next(); !strings.Contains(got, strconv.Quote(title)) || !strings.HasSuffix(got, `,"in_reply_to":"`+id+`"}`) {
		c.h.t.Errorf("received %q, want %q for %q", got, title, id)
	}
}

// awaitClose reads up to the close frame, without any text on the way, answers it, and
// waits for the end of the connection.
func (c *client) awaitClose(code int) (reason string) {
	c.h.t.Helper()
	reason, texts := c.untilClose(code)
	if len(texts) > 0 {
		c.h.t.Errorf("received %q before the close", texts)
	}
	return reason
}

// untilClose is like awaitClose but returns the texts that came on the way.
func (c *client) untilClose(code int) (reason string, texts []string) {
	c.h.t.Helper()
	for {
		opcode, payload, err := c.frame()
		switch {
		case err != nil:
			c.h.t.Errorf("read a frame: %v; want close %d", err, code)
			return "", texts
		case opcode == opPing:
			c.write(fin|opPong, payload)
		case opcode == opText:
			texts = append(texts, string(payload))
		case opcode == opClose:
			got := 1005
			if len(payload) >= 2 {
				got, reason = int(binary.BigEndian.Uint16(payload)), string(payload[2:])
			}
			if got != code {
				c.h.t.Errorf("close %d %q, want %d", got, reason, code)
			}
			c.write(fin|opClose, payload)
			if _, _, err := c.frame(); !errors.Is(err, io.EOF) && !isReset(err) {
				c.h.t.Errorf("after the close: %v, want the end", err)
			}
			return reason, texts
		}
	}
}

func isReset(err error) bool {
	return err != nil && strings.Contains(err.Error(), "connection reset")
}

// gone waits until the connection has ended without a close frame.
func (c *client) gone() {
	c.h.t.Helper()
	for {
		opcode, payload, err := c.frame()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.h.t.Error("the connection lives on")
			return
		case err != nil:
			return
		case opcode == opClose:
			c.h.t.Errorf("close frame %q, want none", payload)
			return
		}
	}
}
