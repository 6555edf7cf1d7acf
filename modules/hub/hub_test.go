package hub

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

func TestFrameMatrixOverASocket(t *testing.T) {
	h := newHouse(t, false, func(h *house) { h.config.MaxMessageBytes = 1 << 20 })
	for _, c := range frameMatrix() {
		t.Run(c.name, func(t *testing.T) {
			client := h.open(1)
			client.h = &house{t: t}
			before := h.publisher.count()
			client.text(c.text)
			client.message("next") // the connection goes on in any case
			switch {
			case c.integrity:
				client.expect(integrityError(c.answerTo))
			case len(c.faults) > 0:
				got := client.next()
				if !strings.HasPrefix(got, `{"title":"Data consistency error.","details":[{"type":"`+strings.Fields(c.faults[0])[0]+`","loc":["`) {
					t.Errorf("received %q", got)
				}
				if strings.Contains(got, `"client_message_id":`) || strings.Contains(got, `,"in_reply_to":`+strconv.Quote(c.answerTo)) != (c.answerTo != "-") {
					t.Errorf("received %q, in reply to %q", got, c.answerTo)
				}
			default:
				h.eventually("the message", func() bool { return h.publisher.count() == before+2 })
				message := h.publisher.at(before).message
				if message.Body() != c.body || message.Sender() != userID(t, 1) {
					t.Errorf("published %+v", message)
				}
				before++
			}
			h.eventually("the next message", func() bool { return h.publisher.count() == before+1 })
			client.sendClose(1000, "")
			client.awaitClose(1000)
		})
	}
}

// integrityError is the answer to a frame that is refused as a whole.
func integrityError(answerTo string) string {
	if answerTo == "" {
		return `{"title":"Data integrity error.","details":"Invalid JSON was provided."}`
	}
	return `{"title":"Data integrity error.","details":"Invalid JSON was provided.","in_reply_to":` + strconv.Quote(answerTo) + `}`
}

func TestBinaryFrameIsAnIntegrityError(t *testing.T) {
	h := newHouse(t, false, nil)
	c := h.open(1)
	c.write(fin|opBinary, []byte(goodFrame))
	c.expect(integrityError("m-1"))
	c.write(fin|opBinary, nil)
	c.expect(integrityError(""))
	c.write(opBinary, []byte(goodFrame[:10]))
	c.write(fin|opContinuation, []byte(goodFrame[10:]))
	c.expect(integrityError("m-1"))
	if h.publisher.count() != 0 {
		t.Error("published")
	}
	h.awaitCount(3, "websocket_messages_received_total", resultInvalid)
}

func TestFragmentsWithPingsBetween(t *testing.T) {
	h := newHouse(t, false, nil)
	c := h.open(1)
	c.write(opText, []byte(goodFrame[:10]))
	c.write(fin|opPing, []byte("are you there"))
	if opcode, payload, err := c.frame(); err != nil || opcode != opPong || string(payload) != "are you there" {
		t.Errorf("answer to a ping: %x %q %v", opcode, payload, err)
	}
	c.write(opContinuation, nil)
	for i := 10; i < len(goodFrame); i++ {
		c.write(opContinuation, []byte(goodFrame[i:i+1]))
	}
	c.write(fin|opContinuation, nil)
	h.eventually("the message", func() bool { return h.publisher.count() == 1 })
}

func TestMessageBytesAreBounded(t *testing.T) {
	h := newHouse(t, false, func(h *house) { h.config.MaxMessageBytes = 1000; h.publisher.hold = true })
	exact := func(n int) string {
		return strings.Replace(goodFrame, "hello", strings.Repeat("x", n-len(goodFrame)+len("hello")), 1)
	}
	for name, send := range map[string]func(c *client){
		"whole":              func(c *client) { c.text(exact(1001)) },
		"much":               func(c *client) { c.text(exact(1 << 20)) },
		"binary":             func(c *client) { c.write(fin|opBinary, make([]byte, 1001)) },
		"fragments":          func(c *client) { c.write(opText, make([]byte, 600)); c.write(fin|opContinuation, make([]byte, 401)) },
		"endless fragments":  func(c *client) { c.write(opText, make([]byte, 600)); c.write(opContinuation, make([]byte, 401)) },
		"announced, not yet": func(c *client) { c.raw(c.encode(fin|opText, make([]byte, 1<<20))[:3000]) },
	} {
		t.Run(name, func(t *testing.T) {
			c := h.open(1)
			c.h = &house{t: t}
			before := h.publisher.count()
			c.text(exact(1000))
			h.eventually("the greatest message", func() bool { return h.publisher.count() == before+1 })
			send(c)
			if name != "announced, not yet" && name != "endless fragments" {
				// What was read before must be answered before the close.
				c.message("late")
				c.expectError(titleDelivery, "late")
			}
			h.publisher.at(before).settled(app.ErrUnroutable)
			c.expectError(titleDelivery, "m-1")
			if name == "announced, not yet" || name == "endless fragments" {
				opcode, payload, err := c.frame()
				if err != nil || opcode != opClose || binary.BigEndian.Uint16(payload) != 1009 {
					t.Errorf("frame %x %q %v", opcode, payload, err)
				}
				return
			}
			if reason := c.awaitClose(1009); reason != "message too big" {
				t.Errorf("reason %q", reason)
			}
		})
	}
	h.awaitClosed(6, 1009)
}

func TestOrderIsKeptAndNothingWaitsForConfirms(t *testing.T) {
	h := newHouse(t, false, func(h *house) { h.publisher.hold = true })
	c := h.open(7)
	before := time.Now()
	for i := range 50 {
		c.text(strings.Replace(strings.Replace(goodFrame, "m-1", strconv.Itoa(i), 1), "{", `{"sender_id":99,"status":"read",`, 1))
	}
	h.eventually("all messages", func() bool { return h.publisher.count() == 50 })
	for i := range 50 {
		got := h.publisher.at(i)
		if got.message.ClientMessageID().String() != strconv.Itoa(i) || got.message.Sender() != userID(t, 7) {
			t.Errorf("message %d: %+v", i, got.message)
		}
		if read := got.deadline.Add(-h.config.ConfirmTimeout); read.Before(before) || read.After(time.Now()) {
			t.Errorf("deadline %s", got.deadline)
		}
	}
	// Confirms come in any order; errors name the message that they are about.
	h.publisher.at(30).settled(app.ErrUnroutable)
	c.expectError(titleDelivery, "30")
	h.publisher.at(0).settled(nil)
	h.publisher.at(2).settled(app.ErrBrokerUnavailable)
	c.expectError(titleDelivery, "2")
	for i := range 50 {
		if i != 30 && i != 0 && i != 2 {
			h.publisher.at(i).settled(nil)
		}
	}
	h.awaitCount(48, "websocket_messages_received_total", resultAccepted)
	h.awaitCount(2, "websocket_messages_received_total", resultFailed)
}

func TestHostileFrames(t *testing.T) {
	h := newHouse(t, false, nil)
	for name, test := range map[string]struct {
		send func(c *client)
		code int // of the close frame; 0: none is due
	}{
		"reserved bit":            {func(c *client) { c.write(fin|0x40|opText, []byte("{}")) }, 1002},
		"unknown opcode":          {func(c *client) { c.write(fin|0x3, nil) }, 1002},
		"unknown control opcode":  {func(c *client) { c.write(fin|0xb, nil) }, 1002},
		"continuation of nothing": {func(c *client) { c.write(fin|opContinuation, []byte("x")) }, 1002},
		"message in a message":    {func(c *client) { c.write(opText, []byte("x")); c.write(fin|opText, []byte("y")) }, 1002},
		"fragmented ping":         {func(c *client) { c.write(opPing, nil) }, 1002},
		"long ping":               {func(c *client) { c.write(fin|opPing, make([]byte, 126)) }, 1002},
		"close of one byte":       {func(c *client) { c.write(fin|opClose, []byte{3}) }, 1002},
		"close with a bad code":   {func(c *client) { c.sendClose(1006, "") }, 1002},
		"unmasked":                {func(c *client) { c.raw([]byte{fin | opText, 2, '{', '}'}) }, 1002},
		"negative length": {func(c *client) {
			c.raw(append(binary.BigEndian.AppendUint64([]byte{fin | opText, 0x80 | 127}, 1<<63), 1, 2, 3, 4))
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := h.open(1)
			c.h = &house{t: t}
			test.send(c)
			if test.code == 0 {
				for { // with or without a close frame
					if _, _, err := c.frame(); err != nil {
						return
					}
				}
			}
			c.awaitClose(test.code)
		})
	}
	h.awaitClosed(11, 0)
}

func TestClientsThatLeave(t *testing.T) {
	for name, test := range map[string]struct {
		leave func(c *client)
		code  int
		by    string
	}{
		"normal":         {func(c *client) { c.sendClose(1000, "bye"); c.awaitClose(1000) }, 1000, byClient},
		"going away":     {func(c *client) { c.sendClose(1001, ""); c.awaitClose(1001) }, 1001, byClient},
		"no code":        {func(c *client) { c.write(fin|opClose, nil); c.awaitClose(1005) }, 1005, byClient},
		"own code":       {func(c *client) { c.sendClose(4999, ""); c.awaitClose(4999) }, 0, byClient},
		"one of ours":    {func(c *client) { c.sendClose(4401, ""); c.awaitClose(4401) }, 4401, byClient},
		"bad reason":     {func(c *client) { c.sendClose(1000, "\xff\n\x1b[31m"); c.awaitClose(1000) }, 1000, byClient},
		"no close frame": {func(c *client) { _ = c.conn.Close() }, 1006, byNetwork},
		"reset":          {func(c *client) { _ = c.conn.(*net.TCPConn).SetLinger(0); _ = c.conn.Close() }, 1006, byNetwork},
		"within a frame": {func(c *client) { c.raw(c.encode(fin|opText, []byte(goodFrame))[:20]); _ = c.conn.Close() }, 1006, byNetwork},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, false, nil)
			c := h.open(42)
			c.message("m-1")
			c.text("rubbish")
			c.next()
			test.leave(c)
			h.awaitClosed(1, test.code)
			h.eventually("the log", func() bool { return h.logs.FilterMessage("connection closed").Len() == 1 })
			fields := h.logs.FilterMessage("connection closed").All()[0].ContextMap()
			code := labelOther
			if test.code > 0 {
				code = strconv.Itoa(test.code)
			}
			for field, want := range map[string]any{"user": "42", "client": "127.0.0.1", "code": code, "closed_by": test.by, "frames_in": int64(2), "frames_out": int64(1)} {
				if fmt.Sprint(fields[field]) != fmt.Sprint(want) {
					t.Errorf("%s is %v, want %v", field, fields[field], want)
				}
			}
			if fields["bytes_in"].(int64) < 80 || fields["bytes_out"].(int64) < 70 {
				t.Errorf("bytes: %v", fields)
			}
			if text := fmt.Sprint(h.logs.All()); strings.Contains(text, "\xff") || strings.Contains(text, "rubbish") || strings.Contains(text, "hello") {
				t.Errorf("the log shows what the client sent: %s", text)
			}
		})
	}
}

func TestConnectionsTurnedAwayAreLogged(t *testing.T) {
	h := newHouse(t, false, nil)
	pass := strings.Repeat("x", 32)
	c, response := h.request(upgradeRequest(pass))
	if response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("answered %s", response.Status)
	}
	c.awaitClose(4401)
	h.eventually("the log", func() bool { return h.logs.FilterMessage("connection turned away").Len() == 1 })
	fields := h.logs.FilterMessage("connection turned away").All()[0].ContextMap()
	if fields["code"] != "4401" || fields["client"] != "127.0.0.1" {
		t.Errorf("logged %v", fields)
	}
	if strings.Contains(fmt.Sprint(h.logs.All()), pass) {
		t.Error("the log shows the pass")
	}
}

// TestUpgradeOrder holds the order of the contract: for each refusal, whether the pass
// is spent and whether the user's inbox was touched.
func TestUpgradeOrder(t *testing.T) {
	down := errors.New("down")
	tests := []struct {
		name    string
		arrange func(h *house)
		upgrade func(h *house, pass string) string // the request; nil is the usual one
		held    int                                // connections of the user before
		status  int
		code    int // of the close frame, for status 101
		spent   bool
		opens   int
	}{
		{name: "good", status: 101, spent: true, opens: 1},
		{name: "broker away", arrange: func(h *house) { h.publisher.down = fmt.Errorf("%w: %w", app.ErrBrokerUnavailable, down) }, status: 503},
		{name: "inboxes away", arrange: func(h *house) { h.inboxes.down = fmt.Errorf("%w: %w", app.ErrBrokerUnavailable, down) }, status: 503},
		{name: "pass store away", arrange: func(h *house) { h.passes.down = app.ErrPassStoreUnavailable }, status: 503},
		{name: "broker away and foreign", arrange: func(h *house) { h.publisher.down = app.ErrBrokerUnavailable },
			upgrade: func(_ *house, pass string) string { return upgradeRequest(pass, "Origin: https://evil.example") }, status: 503},
		{name: "foreign origin", upgrade: func(_ *house, pass string) string { return upgradeRequest(pass, "Origin: https://evil.example") }, status: 403},
		{name: "foreign origin and no pass", upgrade: func(*house, string) string { return upgradeRequest("", "Origin: https://evil.example") }, status: 403},
		{name: "instance full", arrange: func(h *house) { h.limits.MaxConnections = 1 }, held: 1, status: 101, code: 1013, opens: 1},
		{name: "instance full and no pass", arrange: func(h *house) { h.limits.MaxConnections = 1 }, held: 1,
			upgrade: func(*house, string) string { return upgradeRequest("") }, status: 101, code: 1013, opens: 1},
		{name: "user full", arrange: func(h *house) { h.config.MaxConnectionsPerUser = 2 }, held: 2, status: 101, code: 1013, spent: true, opens: 1},
		{name: "no pass", upgrade: func(*house, string) string { return upgradeRequest("") }, status: 101, code: 4401},
		{name: "malformed pass", upgrade: func(*house, string) string { return upgradeRequest("%00%ff;--") }, status: 101, code: 4401},
		{name: "unknown pass", upgrade: func(*house, string) string { return upgradeRequest(strings.Repeat("x", 32)) }, status: 101, code: 4401},
		{name: "expired token", upgrade: func(h *house, pass string) string {
			h.passes.mu.Lock()
			defer h.passes.mu.Unlock()
			for digest, grant := range h.passes.kept {
				grant.TokenExpiresAt = time.Now().Add(-time.Second)
				h.passes.kept[digest] = grant
			}
			return upgradeRequest(pass)
		}, status: 101, code: 4401, spent: true},
		{name: "inbox can't be had", arrange: func(h *house) { h.inboxes.fail = app.ErrBrokerUnavailable }, status: 503, opens: 1},
		{name: "no upgrade", upgrade: func(_ *house, pass string) string {
			return "GET /messages/?connection_pass=" + pass + " HTTP/1.1\r\nHost: x\r\n\r\n"
		}, status: 426},
		{name: "no upgrade, other path", upgrade: func(_ *house, pass string) string {
			return "GET /messages?connection_pass=" + pass + " HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
		}, status: 426},
		{name: "other path", upgrade: func(_ *house, pass string) string {
			return strings.Replace(upgradeRequest(pass), "messages/", "messages", 1)
		}, status: 101, spent: true, opens: 1},
		{name: "odd case", upgrade: func(_ *house, pass string) string {
			return strings.NewReplacer("keep-alive, Upgrade", "UPGRADE,keep-alive", "Upgrade: websocket", "upgrade: h2c, WebSocket").Replace(upgradeRequest(pass))
		}, status: 101, spent: true, opens: 1},
		{name: "HTTP/1.0", upgrade: func(_ *house, pass string) string {
			return strings.Replace(upgradeRequest(pass), "HTTP/1.1", "HTTP/1.0", 1)
		}, status: 426},
		{name: "version 8", upgrade: func(_ *house, pass string) string {
			return strings.Replace(upgradeRequest(pass), "Version: 13", "Version: 8", 1)
		}, status: 400},
		{name: "short key", upgrade: func(_ *house, pass string) string { return strings.Replace(upgradeRequest(pass), "dGhl", "", 1) }, status: 400},
		{name: "two keys", upgrade: func(_ *house, pass string) string {
			return upgradeRequest(pass, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
		}, status: 400},
		{name: "POST", upgrade: func(_ *house, pass string) string { return strings.Replace(upgradeRequest(pass), "GET", "POST", 1) }, status: 405},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := newHouse(t, false, test.arrange)
			for range test.held {
				h.open(1)
			}
			request := upgradeRequest(h.pass(1, time.Hour))
			if test.upgrade != nil {
				pass, _, _ := strings.Cut(strings.SplitAfterN(request, "connection_pass=", 2)[1], " ")
				request = test.upgrade(h, pass)
			}
			c, response := h.request(request)
			if response.StatusCode != test.status {
				t.Fatalf("status %d, want %d", response.StatusCode, test.status)
			}
			switch {
			case test.code > 0:
				if reason := c.awaitClose(test.code); reason != closeReason(app.CloseCode(test.code)) {
					t.Errorf("reason %q", reason)
				}
				h.awaitClosed(1, test.code)
			case test.status == 426:
				body, _ := io.ReadAll(response.Body)
				if response.Header.Get("Upgrade") != "websocket" || !strings.HasPrefix(string(body), `{"detail":{"title":"Upgrade required.","details":{"non-field-error":"`) {
					t.Errorf("header %v, body %s", response.Header, body)
				}
			case test.status == 400:
				if response.Header.Get("Sec-WebSocket-Version") != "13" {
					t.Errorf("header %v", response.Header)
				}
			}
			if spent := h.passes.size() == 0; spent != test.spent {
				t.Errorf("spent: %v, want %v", spent, test.spent)
			}
			if h.inboxes.opens != test.opens {
				t.Errorf("%d inboxes opened, want %d", h.inboxes.opens, test.opens)
			}
		})
	}
}

func TestRateOfUpgrades(t *testing.T) {
	h := newHouse(t, false, func(h *house) { h.limits.ConnectsPerSecond = 1; h.limits.PassFailuresPerMinute = 1 })
	if c, response := h.request(upgradeRequest("")); response.StatusCode != 101 {
		t.Errorf("status %d", response.StatusCode)
	} else {
		c.awaitClose(4401)
	}
	if _, response := h.request(upgradeRequest(h.pass(1, time.Hour))); response.StatusCode != 429 || h.passes.size() != 1 {
		t.Errorf("status %d, %d passes left", response.StatusCode, h.passes.size())
	}
	for result, want := range map[string]float64{"ok": 0, "invalid": 1, "unavailable": 0} {
		if got := h.gauge("connection_passes_redeemed_total", result); got != want {
			t.Errorf("%s: %v, want %v", result, got, want)
		}
	}
}

func TestOnePassOneConnection(t *testing.T) {
	h := newHouse(t, false, nil)
	request := upgradeRequest(h.pass(1, time.Hour))
	clients := make([]*client, 8)
	var racing sync.WaitGroup
	for i := range clients {
		conn, err := h.dial()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		racing.Go(func() {
			c, response := h.request(request)
			if response.StatusCode != 101 {
				t.Errorf("status %d", response.StatusCode)
			}
			clients[i] = c
		})
	}
	racing.Wait()
	h.awaitCount(1, "connection_passes_redeemed_total", "ok")
	h.awaitCount(7, "connection_passes_redeemed_total", "invalid")
	h.awaitCount(1, "websocket_hub_active_connections")
	for _, c := range clients { // the loser's handshakes need not wait for their bound
		_ = c.conn.Close()
	}
	h.awaitClosed(7, 4401)
}

func TestForeignOrigin(t *testing.T) {
	h := &Hub{origins: parseOrigins([]string{"http://localhost", "https://Chat.example:8443/", "rubbish", "https://app.example:443"})}
	for _, test := range []struct {
		host    string
		origins []string
		foreign bool
	}{
		{"gateway.example", nil, false},
		{"gateway.example", []string{"https://gateway.example"}, false},
		{"gateway.example", []string{"http://GATEWAY.example"}, false},
		{"gateway.example:443", []string{"https://gateway.example"}, false},
		{"gateway.example:80", []string{"http://gateway.example"}, false},
		{"gateway.example", []string{"https://gateway.example:443"}, false},
		{"gateway.example:8001", []string{"http://gateway.example:8001"}, false},
		{"[::1]:8001", []string{"http://[::1]:8001"}, false},
		{"gateway.example:8001", []string{"http://gateway.example"}, true},
		{"gateway.example:80", []string{"https://gateway.example"}, true},
		{"gateway.example", []string{"https://gateway.example:8443"}, true},
		{"gateway.example", []string{"https://evil.gateway.example"}, true},
		{"gateway.example", []string{"https://gateway.example.evil"}, true},
		{"gateway.example", []string{"https://gateway.example@evil.example"}, true},
		{"gateway.example", []string{"https://user@gateway.example"}, true},
		{"gateway.example", []string{"null"}, true},
		{"gateway.example", []string{""}, true},
		{"gateway.example", []string{"gateway.example"}, true},
		{"gateway.example", []string{"//gateway.example"}, true},
		{"gateway.example", []string{"https://gateway.example/path"}, true},
		{"gateway.example", []string{"https://%zz"}, true},
		{"gateway.example", []string{"https://gateway.example", "https://evil.example"}, true},
		{"gateway.example", []string{"http://localhost"}, false},
		{"gateway.example", []string{"http://localhost:80"}, false},
		{"gateway.example", []string{"https://localhost"}, true},
		{"gateway.example", []string{"http://localhost:3000"}, true},
		{"gateway.example", []string{"https://chat.EXAMPLE:8443"}, false},
		{"gateway.example", []string{"https://chat.example"}, true},
		{"gateway.example", []string{"https://app.example"}, false},
		{"gateway.example", []string{"rubbish"}, true},
	} {
		r := httptest.NewRequest(http.MethodGet, "/messages/", nil)
		r.Host = test.host
		for _, origin := range test.origins {
			r.Header.Add("Origin", origin)
		}
		if got := h.foreignOrigin(r); got != test.foreign {
			t.Errorf("origin %q at %q: foreign %v, want %v", test.origins, test.host, got, test.foreign)
		}
	}
}

func TestClientAddress(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.1:1234": "192.0.2.1", "[2001:db8::1]:1": "2001:db8::1", "[::ffff:192.0.2.1]:1": "192.0.2.1",
		"192.0.2.1": "192.0.2.1", "2001:db8::1": "2001:db8::1", "": "invalid IP", "@": "invalid IP",
	} {
		if got := clientAddress(remote).String(); got != want {
			t.Errorf("%q: %s, want %s", remote, got, want)
		}
	}
}

func TestUpgradeNeedsAConnection(t *testing.T) {
	h := newHouse(t, false, nil)
	r := httptest.NewRequest(http.MethodGet, "/messages/?connection_pass="+h.pass(1, time.Hour), nil)
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
	w := httptest.NewRecorder() // no Hijacker
	h.hub.ServeHTTP(w, r)
	if w.Code != http.StatusNotImplemented || h.passes.size() != 1 {
		t.Errorf("status %d, %d passes left", w.Code, h.passes.size())
	}
}

func TestAnswerOnlyOnceTheInboxIsOpen(t *testing.T) {
	var h *house
	opening, release := make(chan struct{}), make(chan struct{})
	h = newHouse(t, false, func(h *house) {
		h.inboxes.opening = func(ctx context.Context, _ domain.UserID) error {
			if _, bounded := ctx.Deadline(); !bounded {
				t.Error("Open has no deadline")
			}
			close(opening)
			<-release
			return nil
		}
		// Deliveries that come before the answer wait, and are written after it.
		h.inboxes.opened = func(in *inbox) {
			for n := range 10 {
				in.deliver("", strconv.Itoa(n))
			}
		}
	})
	answered := make(chan *client)
	var early atomic.Bool
	early.Store(true)
	request := upgradeRequest(h.pass(1, time.Hour))
	go func() {
		c, response := h.request(request)
		if early.Load() || response.StatusCode != 101 {
			t.Errorf("status %d, before the inbox was open: %v", response.StatusCode, early.Load())
		}
		answered <- c
	}()
	<-opening
	early.Store(false)
	close(release)
	c := <-answered
	for n := range 10 {
		c.expect(strconv.Itoa(n))
	}
	h.awaitCount(10, "websocket_messages_delivered_total")
}

func TestClientThatLeavesWhileItsInboxOpens(t *testing.T) {
	opening, release := make(chan struct{}), make(chan struct{})
	h := newHouse(t, false, func(h *house) {
		h.inboxes.opening = func(ctx context.Context, _ domain.UserID) error {
			close(opening)
			select {
			case <-release:
			case <-ctx.Done():
			}
			return ctx.Err()
		}
	})
	conn, err := h.dial()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(upgradeRequest(h.pass(1, time.Hour)))); err != nil {
		t.Fatal(err)
	}
	<-opening
	// A sibling waits behind it, and must not be hurt.
	sibling := make(chan *client)
	request := upgradeRequest(h.pass(1, time.Hour))
	go func() {
		c, response := h.request(request)
		if response.StatusCode != 101 {
			t.Errorf("status %d", response.StatusCode)
		}
		sibling <- c
	}()
	h.eventually("both to enter", func() bool { return h.refs(1) == 2 })
	_ = conn.Close()
	h.eventually("the service to know that the first has left", func() bool {
		h.hub.mu.Lock()
		defer h.hub.mu.Unlock()
		m := h.hub.users[userID(t, 1)]
		return m != nil && m.giveUp != nil
	})
	close(release)
	c := <-sibling
	h.inboxes.mu.Lock()
	if h.inboxes.opens != 1 {
		t.Errorf("the inbox was opened %d times: the sibling lost its place", h.inboxes.opens)
	}
	h.inboxes.mu.Unlock()
	if _, ok := h.inboxes.publish(userID(t, 1), "", `"x"`); !ok {
		t.Error("the sibling has no inbox")
	}
	c.expect(`"x"`)
	h.awaitCount(1, "websocket_hub_active_connections")
}

// refs returns how many sessions the user has, with those that join or leave.
func (h *house) refs(user int64) int {
	h.hub.mu.Lock()
	defer h.hub.mu.Unlock()
	if m := h.hub.users[userID(h.t, user)]; m != nil {
		return m.refs
	}
	return 0
}

// TestAllWhoWaitForTheInboxLeave has two clients of a user leave, one after the other,
// while the inbox is being opened: with the second it is given up.
func TestAllWhoWaitForTheInboxLeave(t *testing.T) {
	givenUp := make(chan error, 1)
	h := newHouse(t, false, func(h *house) {
		h.inboxes.opening = func(ctx context.Context, _ domain.UserID) error {
			<-ctx.Done()
			givenUp <- ctx.Err()
			return ctx.Err()
		}
	})
	var clients [2]net.Conn
	for i := range clients {
		conn, err := h.dial()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(upgradeRequest(h.pass(1, time.Hour)))); err != nil {
			t.Fatal(err)
		}
		clients[i] = conn
		h.eventually("the client to enter, and the first one to open the inbox", func() bool {
			h.inboxes.mu.Lock()
			opens := h.inboxes.opens
			h.inboxes.mu.Unlock()
			return opens == 1 && h.refs(1) == i+1
		})
	}
	_ = clients[0].Close()
	h.eventually("the service to know that the first has left", func() bool {
		h.hub.mu.Lock()
		defer h.hub.mu.Unlock()
		m := h.hub.users[userID(t, 1)]
		return m != nil && m.giveUp != nil
	})
	_ = clients[1].Close()
	if err := <-givenUp; !errors.Is(err, context.Canceled) {
		t.Errorf("the opening ended with %v", err)
	}
	h.eventually("both passes to be given back", func() bool { return h.passes.size() == 2 })
	h.eventually("the user to be forgotten", func() bool { return h.refs(1) == 0 })
}

// TestNobodyWaitsForTheInbox has a client leave while its inbox is being opened, which
// nobody else waits for: it is given up at once, and the pass is good again.
func TestNobodyWaitsForTheInbox(t *testing.T) {
	opening, givenUp := make(chan struct{}), make(chan error)
	h := newHouse(t, false, func(h *house) {
		h.inboxes.opening = func(ctx context.Context, _ domain.UserID) error {
			close(opening)
			<-ctx.Done()
			givenUp <- ctx.Err()
			return ctx.Err()
		}
	})
	conn, err := h.dial()
	if err != nil {
		t.Fatal(err)
	}
	pass := h.pass(1, time.Hour)
	if _, err := conn.Write([]byte(upgradeRequest(pass))); err != nil {
		t.Fatal(err)
	}
	<-opening
	_ = conn.Close()
	if err := <-givenUp; !errors.Is(err, context.Canceled) {
		t.Errorf("the opening ended with %v", err)
	}
	h.inboxes.mu.Lock()
	h.inboxes.opening = nil
	h.inboxes.mu.Unlock()
	h.eventually("the pass to be given back", func() bool { return h.passes.size() == 1 })
	if _, response := h.request(upgradeRequest(pass)); response.StatusCode != 101 {
		t.Errorf("status %d with the same pass", response.StatusCode)
	}
	h.awaitCount(1, "websocket_hub_active_users")
}

func TestFramesSentBeforeTheAnswer(t *testing.T) {
	h := newHouse(t, false, nil)
	builder := &client{h: h, mask: [4]byte{9, 8, 7, 6}}
	var pipelined strings.Builder
	for i := range 20 { // more than the connection's own buffer holds
		pipelined.Write(builder.encode(fin|opText, []byte(strings.Replace(goodFrame, "m-1", strconv.Itoa(i), 1))))
	}
	_, response := h.request(upgradeRequest(h.pass(1, time.Hour)) + pipelined.String())
	if response.StatusCode != 101 {
		t.Fatalf("status %d", response.StatusCode)
	}
	h.eventually("all messages", func() bool { return h.publisher.count() == 20 })
	for i := range 20 {
		if got := h.publisher.at(i).message.ClientMessageID().String(); got != strconv.Itoa(i) {
			t.Errorf("message %d is %q", i, got)
		}
	}
}

func TestDeliveriesReachEveryDevice(t *testing.T) {
	h := newHouse(t, false, nil)
	first, second, other := h.open(1), h.open(1), h.open(2)
	h.awaitCount(3, "websocket_hub_active_connections")
	h.awaitCount(2, "websocket_hub_active_users")
	bodies := []string{`{"a": 1}`, ` [ 1 ,2]` + "\n", `"ä😀"`, strings.Repeat(" ", 70000) + "1", `{"b":` + strings.Repeat("9", 600) + `}`}
	for _, body := range bodies {
		settled, ok := h.inboxes.publish(userID(t, 1), "chat.message", body)
		if !ok {
			t.Fatal("no inbox")
		}
		for _, c := range []*client{first, second} {
			c.expect(body) // byte for byte
		}
		h.eventually("the ack", func() bool { acks, rejects := settled.count(); return acks == 1 && rejects == 0 })
	}
	third := h.open(1)
	h.inboxes.publish(userID(t, 1), "", `"for three"`)
	for _, c := range []*client{first, second, third} {
		c.expect(`"for three"`)
	}
	if h.inboxes.opens != 2 {
		t.Errorf("%d inboxes opened, want 2", h.inboxes.opens)
	}
	first.sendClose(1000, "")
	first.awaitClose(1000)
	h.awaitClosed(1, 1000)
	h.awaitCount(2, "websocket_hub_active_users")
	h.inboxes.publish(userID(t, 1), app.ControlDisconnect, `{"reason":"`+strings.Repeat("ä", 100)+`"}`)
	for _, c := range []*client{second, third} {
		if reason := c.awaitClose(4403); reason != strings.Repeat("ä", 60) {
			t.Errorf("reason %q", reason)
		}
	}
	h.awaitCount(1, "websocket_hub_active_users")
	if _, ok := h.inboxes.publish(userID(t, 1), "", `1`); ok {
		h.eventually("the inbox to close", func() bool { return h.inboxes.size() == 1 })
	}
	h.inboxes.publish(userID(t, 2), "", `"still here"`)
	other.expect(`"still here"`)
	h.awaitClosed(2, 4403)
}

func TestRubbishFromABackend(t *testing.T) {
	h := newHouse(t, false, nil)
	c := h.open(1)
	for _, message := range []struct{ kind, body, reason string }{
		{"", "", dropInvalidBody}, {"", "hello", dropInvalidBody}, {"", "{}{}", dropInvalidBody}, {"", "\"\xff\"", dropInvalidBody},
		{app.ControlDisconnect, "", dropInvalidControl}, {app.ControlDisconnect, "[]", dropInvalidControl}, {app.ControlDisconnect, `{"reason":`, dropInvalidControl},
	} {
		before := h.gauge("websocket_deliveries_dropped_total", message.reason)
		settled, _ := h.inboxes.publish(userID(t, 1), message.kind, message.body)
		if acks, rejects := settled.count(); acks != 0 || rejects != 1 {
			t.Errorf("%q: %d acks, %d rejects", message.body, acks, rejects)
		}
		if after := h.gauge("websocket_deliveries_dropped_total", message.reason); after != before+1 {
			t.Errorf("%q is not counted", message.body)
		}
	}
	h.inboxes.publish(userID(t, 1), "", `"good"`)
	c.expect(`"good"`)
	if n := h.logs.FilterMessage("a backend's message is dropped").Len(); n != 7 {
		t.Errorf("%d lines in the log", n)
	}
	if strings.Contains(fmt.Sprint(h.logs.All()), "hello") {
		t.Error("the body is in the log")
	}
}

// TestJoinAndLeaveRace hammers one user's first joins and last leaves: whoever is
// connected must have an inbox.
func TestJoinAndLeaveRace(t *testing.T) {
	h := newHouse(t, false, func(h *house) {
		h.config.MaxConnectionsPerUser = 0
		yield := func() { <-time.After(time.Duration(rand.IntN(300)) * time.Microsecond) }
		h.inboxes.opening = func(context.Context, domain.UserID) error { yield(); return nil }
		h.inboxes.closing = func(domain.UserID) { yield() }
	})
	var running sync.WaitGroup
	for worker := range 6 {
		user := int64(worker%2 + 1)
		running.Go(func() {
			for round := range 25 {
				c := h.open(user)
				body := fmt.Sprintf(`"%d-%d"`, worker, round)
				if _, ok := h.inboxes.publish(userID(t, user), "", body); !ok {
					t.Error("connected without an inbox")
				}
				for c.next() != body && !t.Failed() {
				}
				if round%2 == 0 {
					_ = c.conn.Close()
				} else {
					c.sendClose(1000, "")
					c.untilClose(1000)
				}
			}
		})
	}
	running.Wait()
	h.awaitCount(0, "websocket_hub_active_connections")
	h.eventually("the inboxes to close", func() bool { return h.inboxes.size() == 0 })
}

// TestLibraryClient speaks to the hub as coder/websocket does, from both ends of a close.
func TestLibraryClient(t *testing.T) {
	h := newHouse(t, false, nil)
	url := "ws://" + h.listener.Addr().String() + "/messages/?connection_pass="
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dial := func() *websocket.Conn {
		conn, _, err := websocket.Dial(ctx, url+h.pass(1, time.Hour), nil)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	conn := dial()
	if err := conn.Write(ctx, websocket.MessageText, []byte("{}")); err != nil {
		t.Error(err)
	}
	if _, data, err := conn.Read(ctx); err != nil || !strings.Contains(string(data), titleConsistency) {
		t.Errorf("read %s, %v", data, err)
	}
	if err := conn.Close(websocket.StatusNormalClosure, "done"); err != nil {
		t.Error(err)
	}
	h.awaitClosed(1, 1000)
	conn = dial()
	h.inboxes.publish(userID(t, 1), app.ControlDisconnect, `{"reason":"x"}`)
	if _, _, err := conn.Read(ctx); websocket.CloseStatus(err) != 4403 {
		t.Errorf("read: %v", err)
	}
	h.awaitClosed(1, 4403)
}

func TestDrainOverSockets(t *testing.T) {
	h := newHouse(t, false, func(h *house) { h.config.DrainWindow = 50 * time.Millisecond })
	var closing sync.WaitGroup
	for i := range 20 {
		c := h.open(int64(i%5 + 1))
		closing.Go(func() {
			if _, texts := c.untilClose(1012); len(texts) != 1 {
				t.Errorf("received %q", texts)
			}
		})
	}
	for user := range 5 {
		h.inboxes.publish(userID(t, int64(user+1)), "", `"last words"`)
	}
	if err := NewDrain(h.hub).Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if h.inboxes.size() != 0 {
		t.Error("inboxes are left")
	}
	closing.Wait()
	h.awaitClosed(20, 1012)
}

func TestMetricsExistFromTheStart(t *testing.T) {
	h := newHouse(t, false, nil)
	for _, row := range app.CloseCodes {
		h.awaitCount(0, "websocket_closes_total", strconv.Itoa(int(row.Code)))
	}
	h.awaitCount(0, "websocket_closes_total", labelOther)
	for _, result := range []string{resultAccepted, resultInvalid, resultRateLimited, resultFailed} {
		h.awaitCount(0, "websocket_messages_received_total", result)
	}
	for _, reason := range []string{dropInvalidBody, dropInvalidControl, dropNoConnection, dropConnectionClosed, dropSlowConsumer} {
		h.awaitCount(0, "websocket_deliveries_dropped_total", reason)
	}
	for _, result := range []string{"ok", "invalid", "unavailable"} {
		h.awaitCount(0, "connection_passes_redeemed_total", result)
	}
}

func FuzzDelivery(f *testing.F) {
	for _, kind := range []string{"", "chat.message", app.ControlDisconnect} {
		for _, body := range []string{"", "1", `{"a":1}`, `{"reason":"x"}`, `{"reason":1}`, `{"reason":"\ud800"}`, "[]", "\xff", `{"reason":"` + strings.Repeat("ä", 200) + `"}`} {
			f.Add(kind, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		log, settled := zap.NewNop(), new(settlement)
		h := &Hub{config: usualConfig(), log: log, meters: newMeters(discard{})}
		m := &member{hub: h, user: userID(t, 1), turn: make(chan struct{}, 1)}
		s := &session{hub: h, user: m.user, member: m, corked: true}
		m.add(s)
		m.receive(app.Delivery{Body: body, Type: kind, Acks: settled})
		s.mu.Lock()
		queued, closing, reason := len(s.queue), s.phase != phaseOpen, s.reason
		s.mu.Unlock()
		s.cut() // ends the closer, if there is one
		acks, rejects := settled.count()
		switch {
		case rejects == 1 && acks == 0 && queued == 0 && !closing: // dropped
		case acks == 1 && rejects == 0 && closing && kind == app.ControlDisconnect && reason != "" && len(reason) <= app.MaxDisconnectReason:
		case acks == 0 && rejects == 0 && queued == 1 && kind != app.ControlDisconnect: // waits to be written
			s.dropAll(dropConnectionClosed)
			if acks, _ := settled.count(); acks != 1 {
				t.Fatal("not settled")
			}
		default:
			t.Fatalf("%d acks, %d rejects, %d queued, closing %v for %q", acks, rejects, queued, closing, reason)
		}
	})
}
