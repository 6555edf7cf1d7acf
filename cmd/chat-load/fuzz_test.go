package main

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// script is a connection over which a server says what it is told to, once the client
// has said something. $accept in it becomes the key that the client's nonce demands.
type script struct {
	net.Conn
	answer string
	said   []byte
	left   *strings.Reader // of the answer; nil before the client has said something
}

func (s *script) Write(p []byte) (int, error) {
	s.said = append(s.said, p...)
	if s.left == nil {
		s.left = strings.NewReader(s.answer)
	}
	return len(p), nil
}

func (s *script) Read(p []byte) (int, error) {
	if s.left == nil {
		return 0, io.ErrNoProgress
	}
	return s.left.Read(p)
}

func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// acceptKey is what a server answers to a client's nonce (RFC 6455, section 4.2.2).
func acceptKey(nonce string) string {
	sum := sha1.Sum([]byte(nonce + websocketGUID))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// upgradeScript is a script whose accept key fits the request.
type upgradeScript struct{ script }

func (s *upgradeScript) Write(p []byte) (int, error) {
	if request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(p))); err == nil {
		s.answer = strings.ReplaceAll(s.answer, "$accept", acceptKey(request.Header.Get("Sec-WebSocket-Key")))
	}
	return s.script.Write(p)
}

const upgradeAnswer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: $accept\r\n"

// FuzzUpgradeAnswer: an upgrade has succeeded only where the server has said so with the
// right key, and then nothing that came after its answer is lost; anything else is an
// error that tells what the server said.
func FuzzUpgradeAnswer(f *testing.F) {
	for _, answer := range []string{
		upgradeAnswer + "\r\n", upgradeAnswer + "\r\n\x81\x04text\x88\x02\x03\xf5", upgradeAnswer + "Sec-WebSocket-Protocol: v12.stomp\r\n\r\n",
		upgradeAnswer + "Content-Length: 3\r\n\r\nabc", upgradeAnswer + "\r\n" + strings.Repeat("x", 5000), upgradeAnswer,
		"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: wrong\r\n\r\n", "HTTP/1.0 101 \nsec-websocket-accept: $accept\n\n",
		"HTTP/1.1 503 x\r\nRetry-After: 3\r\n\r\n", "HTTP/1.1 429 x\r\nRetry-After: 1e300\r\n\r\n", "HTTP/1.1 429 x\r\nRetry-After: -1h5\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\n" + upgradeAnswer + "\r\n", "", "\r\n", "HTTP/1.1\r\n\r\n",
	} {
		f.Add(answer, "")
		f.Add(answer, stompProtocol)
	}
	f.Fuzz(func(t *testing.T, answer, protocol string) {
		if protocol != "" && protocol != stompProtocol {
			return
		}
		conn := &upgradeScript{script{answer: answer}}
		rest, err := handshake(t.Context(), conn, place{host: "gateway.example", prefix: "/base"}, socketPath, "connection_pass=x", protocol)
		request, requestErr := http.ReadRequest(bufio.NewReader(bytes.NewReader(conn.said)))
		if requestErr != nil || request.Method != http.MethodGet || request.RequestURI != "/base/messages/?connection_pass=x" ||
			request.Host != "gateway.example" || request.Header.Get("Sec-WebSocket-Protocol") != protocol {
			t.Fatalf("the request is %q, %v", conn.said, requestErr)
		}
		if err != nil {
			if refusal, ok := errors.AsType[*refusal](err); rest != nil || ok && (refusal.status == http.StatusSwitchingProtocols || refusal.retryAfter < 0) {
				t.Errorf("%q: %v, %+v, then %q", answer, err, refusal, rest)
			}
			return
		}
		after, _ := io.ReadAll(conn.left)
		after = append(rest, after...)
		head, ok := strings.CutSuffix(conn.answer, string(after))
		if !ok {
			t.Fatalf("%q is followed by %q", conn.answer, after)
		}
		said, err := http.ReadResponse(bufio.NewReader(strings.NewReader(head)), nil)
		if err != nil || said.StatusCode != http.StatusSwitchingProtocols || said.Header.Get("Sec-WebSocket-Protocol") != protocol ||
			said.Header.Get("Sec-WebSocket-Accept") != acceptKey(request.Header.Get("Sec-WebSocket-Key")) {
			t.Errorf("taken for an upgrade: %q, %v", head, err)
		}
		if _, err := http.ReadResponse(bufio.NewReader(strings.NewReader(head[:len(head)-1])), nil); err == nil {
			t.Errorf("the answer ends before %q does", head)
		}
	})
}

// FuzzPassAnswer: what is taken for a pass is one that the server has sent with 200, and
// a connection that is kept is good for the next request.
func FuzzPassAnswer(f *testing.F) {
	const next = "HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n{\"connection_pass\":\"next\"}"
	for _, answer := range []string{
		next, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1a\r\n{\"connection_pass\":\"next\"}\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.0 200 OK\r\n\r\n{\"connection_pass\":\"a\"}",
		"HTTP/1.1 401 x\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 429 x\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 204 x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n{\"connection_pass\":\"next\"}", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull", "HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + strings.Repeat(" ", 70_000),
		"", "HTTP/1.1 100 Continue\r\n\r\n",
	} {
		f.Add(answer)
	}
	f.Fuzz(func(t *testing.T, answer string) {
		// What the server has sent by the time of the first request ends with an answer.
		conn := &script{answer: answer + next}
		kept := &passConn{conn, bufio.NewReaderSize(conn, 1024)}
		pass, reusable, err := kept.pass(t.Context(), place{host: "gateway.example"}, "token")
		input := strings.NewReader(answer + next)
		reader := bufio.NewReader(input)
		said, readErr := http.ReadResponse(reader, nil)
		var body []byte
		if readErr == nil {
			body, readErr = io.ReadAll(said.Body)
		}
		switch {
		case err != nil:
			if refusal, ok := errors.AsType[*refusal](err); pass != "" || ok && (refusal.status != said.StatusCode || refusal.retryAfter < 0) {
				t.Errorf("%q: %q, %v", answer, pass, err)
			}
		default:
			var content map[string]any
			if readErr != nil || said.StatusCode != http.StatusOK || json.Unmarshal(body, &content) != nil || pass == "" {
				t.Errorf("%q: a pass %q, %v", answer, pass, readErr)
			}
		}
		if left := reader.Buffered() + input.Len(); !reusable || left != len(next) || said.StatusCode < 200 {
			return
		}
		if pass, _, err := kept.pass(t.Context(), place{}, "token"); err != nil || pass != "next" {
			t.Errorf("after %q the connection was kept, and then gave %q, %v", answer, pass, err)
		}
	})
}

// talker returns a client whose server is told nothing and says nothing by itself.
func talker(t *testing.T, target string) (*client, *script) {
	t.Helper()
	s, err := newSockets(CrewConfig{
		Target: target, URLs: []string{"ws://gateway.example"}, Key: []byte(secret), Algorithm: "HS256",
		FirstUser: 10, To: 1, PerUser: 1, Run: 5, Envelope: envelopeConfig{330, time.Unix(0, 0)},
	})
	if err != nil {
		t.Fatal(err)
	}
	conn := new(script)
	s.clients[0].conn = conn
	return s.clients[0], conn
}

// booked returns how many texts have been counted, whatever they were.
func booked(c *client) uint64 {
	var refusals uint64
	for _, n := range c.crew.refusals.all() {
		refusals += n
	}
	return uint64(c.incoming.received) + uint64(c.incoming.duplicated) + c.crew.misrouted.Load() + c.crew.foreign.Load() + refusals
}

// checkBooks demands that the ledger adds up.
func checkBooks(t *testing.T, c *client) {
	t.Helper()
	l := &c.incoming
	if uint64(l.received)+l.missing.count() != uint64(l.next) || uint64(l.received) != c.crew.counters.received.Load() {
		t.Errorf("%d received, %d missing of %d; %d counted", l.received, l.missing.count(), l.next, c.crew.counters.received.Load())
	}
	if refused := c.outgoing.Refused.count(); refused != c.crew.counters.refused.Load() {
		t.Errorf("%d refused, %d counted", refused, c.crew.counters.refused.Load())
	}
}

// FuzzSTOMP: each text of a STOMP server is counted once at most and as what it is; a
// heart-beat is answered, and nothing but the receipt of the subscription is a greeting.
func FuzzSTOMP(f *testing.F) {
	for _, text := range []string{
		"\n", "\r\n", "", "CONNECTED\nversion:1.2\n\n\x00", "RECEIPT\nreceipt-id:greeting\n\n\x00", "\r\nRECEIPT\r\nreceipt-id:7\r\n\r\n\x00",
		"MESSAGE\nsubscription:0\n\n{\"client_message_id\":\"load.5.0.0.1\"}\x00", "MESSAGE\n\n{\"client_message_id\":\"load.5.0.4294967295.1\"}\x00",
		"MESSAGE\n\n{\"client_message_id\":\"load.6.0.0.1\"}\x00", "MESSAGE\n\n{\"client_message_id\":\"load.5.1.0.9223372036854775807\"}\x00", "MESSAGE",
		"ERROR\nmessage:receipt-id:greeting\n\n\x00", "ERROR", "SEND\n\n\x00", "message\n\n",
	} {
		f.Add([]byte(text), []byte("MESSAGE\n\n{\"client_message_id\":\"load.5.0.3.1\"}\x00"))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		c, conn := talker(t, targetWebSTOMP)
		for _, text := range [][]byte{first, second, first} {
			before, wasReady, said := booked(c), c.ready, len(conn.said)
			err := c.message(text)
			command, _, _ := strings.Cut(strings.TrimLeft(string(text), "\r\n"), "\n")
			command = strings.TrimRight(command, "\r")
			if (command == "ERROR") != errors.Is(err, errSTOMP) || command != "ERROR" && err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if frames := conn.said[said:]; command != "" && len(frames) > 0 {
				t.Errorf("%q is answered", text)
			} else if command == "" {
				if first, payload := unmask(t, frames); first != 0x80|opText || string(payload) != "\n" {
					t.Errorf("a heart-beat is answered with %x %q", first, payload)
				}
			}
			if c.ready && !wasReady && (command != "RECEIPT" || !bytes.Contains(text, []byte(stompGreeting))) {
				t.Errorf("%q is taken for the answer to the greeting", text)
			}
			want := before
			if !slices.Contains([]string{"", "CONNECTED", "RECEIPT"}, command) {
				want++
			}
			if got := booked(c); got != want {
				t.Errorf("after %q %d texts are counted, want %d", text, got, want)
			}
			checkBooks(t, c)
		}
	})
}

// FuzzGatewayText: each text of a gateway is counted once, as a message, an error or
// something foreign, but for an error that comes again; and none ends the connection.
func FuzzGatewayText(f *testing.F) {
	for _, text := range []string{
		`{"id":1,"client_message_id":"load.5.0.0.1"}`, `{"client_message_id": "load.5.0.4294967295.1"}`, `{"client_message_id":"load.5.0.4294967294.1"}`,
		`{"client_message_id":"load.5.1.0.1"}`, `{"title":"Delivery error.","details":"x","in_reply_to":"load.5.0.1.1"}`,
		`{"title":"Delivery error.","in_reply_to":"load.5.0.4294967295.1"}`, `{"title":"","in_reply_to":"load.5.0.1.1"}`, `{"title":"x"}`, "", "\xff", "load.5.0.0.1",
	} {
		f.Add([]byte(text), []byte(`{"client_message_id":"load.5.0.3.1"}`))
		f.Add([]byte(text), []byte(`{"title":"x","in_reply_to":"load.5.0.4294967294.1"}`))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		c, conn := talker(t, targetGateway)
		for i, text := range [][]byte{first, second, first} {
			before := booked(c)
			if err := c.message(text); err != nil || len(conn.said) > 0 {
				t.Fatalf("%q: %v, answered with %q", text, err, conn.said)
			}
			again := i > 0 && titleOf(text) != "" // it may be the same error
			if got := booked(c); got != before+1 && (got != before || !again) {
				t.Errorf("after %q %d texts are counted, before %d", text, got, before)
			}
			checkBooks(t, c)
		}
	})
}
