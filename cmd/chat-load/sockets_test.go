package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/golang-jwt/jwt/v5"
)

// standIn is a gateway whose behaviour a test decides.
type standIn struct {
	t       *testing.T
	server  *httptest.Server
	serving sync.WaitGroup
	// passFails, where not nil, may answer a pass request in the gateway's place.
	passFails func(http.ResponseWriter) bool
	// talk speaks with one user, whose connection is closed afterwards.
	talk func(ctx context.Context, user int64, ws *websocket.Conn)

	mu      sync.Mutex
	passes  map[string]int64
	sources map[string]bool
}

func newStandIn(t *testing.T, talk func(context.Context, int64, *websocket.Conn)) *standIn {
	g := &standIn{t: t, talk: talk, passes: make(map[string]int64), sources: make(map[string]bool)}
	g.server = httptest.NewServer(g)
	t.Cleanup(func() {
		g.server.CloseClientConnections()
		g.server.Close()
		g.serving.Wait()
	})
	return g
}

func (g *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method + " " + r.URL.Path {
	case "POST /base" + passPath:
		if g.passFails != nil && g.passFails(w) {
			return
		}
		claims := &struct {
			UserID int64 `json:"user_id"`
			jwt.RegisteredClaims
		}{}
		if _, err := jwt.ParseWithClaims(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), claims,
			func(*jwt.Token) (any, error) { return []byte(secret), nil }, jwt.WithExpirationRequired(), jwt.WithValidMethods([]string{"HS256"})); err != nil {
			g.t.Errorf("the token is not good: %v", err)
		}
		g.mu.Lock()
		pass := "pass-" + strconv.Itoa(len(g.passes))
		g.passes[pass] = claims.UserID
		g.sources[r.RemoteAddr[:strings.LastIndex(r.RemoteAddr, ":")]] = true
		g.mu.Unlock()
		fmt.Fprintf(w, `{"connection_pass":%q,"expires_in":30}`, pass)
	case "GET /base" + socketPath:
		g.mu.Lock()
		user, ok := g.passes[r.URL.Query().Get("connection_pass")]
		g.mu.Unlock()
		if !ok {
			g.t.Error("the pass is not known")
		}
		g.serving.Add(1)
		defer g.serving.Done()
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			g.t.Errorf("accept: %v", err)
			return
		}
		g.talk(context.Background(), user, ws)
		_ = ws.CloseNow()
	default:
		g.t.Errorf("unexpected request: %s %s", r.Method, r.URL.Path)
	}
}

// crew returns a crew for the stand-in.
func (g *standIn) crew(users int, change func(*CrewConfig)) *sockets {
	config := CrewConfig{
		Target: targetGateway, URLs: []string{strings.Replace(g.server.URL, "http", "ws", 1) + "/base/"}, Key: []byte(secret), Algorithm: "HS256",
		FirstUser: 10, To: users, PerUser: 1, Run: 5, Envelope: envelopeConfig{330, time.Now()},
	}
	if change != nil {
		change(&config)
	}
	s, err := newSockets(config)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = s.Close() })
	return s
}

var atOnce = ConnectOrder{Concurrency: 8}

// connect connects the crew or fails the test.
func connect(t *testing.T, s *sockets) {
	t.Helper()
	if result, err := s.Connect(t.Context(), atOnce); err != nil || result.Failed > 0 {
		t.Fatalf("%+v, %v", result.Faults, err)
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	timeout := time.NewTimer(20 * time.Second)
	defer timeout.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-timeout.C:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func (g *standIn) write(ctx context.Context, ws *websocket.Conn, id stamp) {
	e := newEnvelope(330, time.Now())
	if err := ws.Write(ctx, websocket.MessageText, e.appendStored(nil, id, 1, 1)); err != nil {
		g.t.Errorf("write: %v", err)
	}
}

// A gateway that loses, repeats, misroutes and mixes up messages is found out.
func TestFaultyDeliveriesAreCounted(t *testing.T) {
	g := newStandIn(t, nil)
	g.talk = func(ctx context.Context, user int64, ws *websocket.Conn) {
		stream := uint32(user - 10)
		for _, number := range []uint32{0, 1, 1, 3, 2, 6} {
			g.write(ctx, ws, stamp{5, stream, number, time.Now().UnixNano()})
		}
		g.write(ctx, ws, stamp{4, stream, 0, 1})     // of another run
		g.write(ctx, ws, stamp{5, stream + 1, 9, 1}) // another user's
		_ = ws.Write(ctx, websocket.MessageText, []byte(`{"hello":"world"}`))
		_, _, _ = ws.Read(ctx) // until the end
	}
	s := g.crew(3, nil)
	connect(t, s)
	eventually(t, "all are there", func() bool { return s.Progress().Received == 15 && s.foreign.Load() == 6 && s.misrouted.Load() == 3 })
	o, err := s.Reconcile(t.Context(), []uint32{8, 8, 8})
	if err != nil {
		t.Fatal(err)
	}
	if want := (tally{Expected: 24, Received: 15, Lost: 9, Duplicated: 3, Reordered: 3}); o.Tally != want || o.Misrouted != 3 || o.Foreign != 6 || len(o.Closes) != 0 {
		t.Errorf("%+v", o)
	}
	if o.Latency.count() != 15 {
		t.Errorf("%d latencies", o.Latency.count())
	}
	r := newReport(plan{scenario: scenarioDelivery})
	r.book(o, o.Tally, o.Latency, 24, o.Foreign)
	r.conclude()
	if r.OK || len(r.Problems) != 4 {
		t.Errorf("%q", r.Problems)
	}
}

// Messages that are refused are not lost, and the ones that are neither refused nor
// there are.
func TestRefusedAndAnsweredMessages(t *testing.T) {
	g := newStandIn(t, nil)
	g.talk = func(ctx context.Context, user int64, ws *websocket.Conn) {
		for n := 0; ; n++ {
			_, frame, err := ws.Read(ctx)
			if err != nil {
				return
			}
			id, ok := stampOf(frame, memberID)
			if !ok || int64(id.stream) != user-10 || id.number != uint32(n) {
				g.t.Errorf("frame %d of user %d: %s", n, user, frame)
			}
			switch n % 4 {
			case 0, 1: // the answer comes back
				if err := ws.Write(ctx, websocket.MessageText, frame); err != nil {
					return
				}
			case 2:
				answer := fmt.Sprintf(`{"title":"Delivery error.","details":"The message was not stored.","in_reply_to":%q}`, id.append(nil))
				if err := ws.Write(ctx, websocket.MessageText, []byte(answer)); err != nil {
					return
				}
			}
		}
	}
	s := g.crew(2, func(c *CrewConfig) { c.Echo = true })
	connect(t, s)
	if err := s.Send(t.Context(), SendOrder{Messages: 40, Window: 100, Duration: time.Minute}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all answers are there", func() bool { p := s.Progress(); return p.Received == 20 && p.Refused == 10 })
	o, err := s.Reconcile(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := (tally{Expected: 40, Received: 20, Lost: 10, Refused: 10}); o.Tally != want || o.Refusals["Delivery error."] != 10 {
		t.Errorf("%+v, %v", o.Tally, o.Refusals)
	}
	if len(o.Outgoing) != 2 || o.Outgoing[0].Sent != 20 {
		t.Errorf("%+v", o.Outgoing)
	}
}

// The answers to one connection of a user reach its other one too, and count once.
func TestAnswersToTheOtherConnectionDoNotCount(t *testing.T) {
	var all sync.Map
	g := newStandIn(t, nil)
	g.talk = func(ctx context.Context, _ int64, ws *websocket.Conn) {
		all.Store(ws, true)
		for {
			_, frame, err := ws.Read(ctx)
			if err != nil {
				return
			}
			all.Range(func(other, _ any) bool {
				_ = other.(*websocket.Conn).Write(ctx, websocket.MessageText, frame)
				return true
			})
		}
	}
	s := g.crew(1, func(c *CrewConfig) { c.Echo, c.PerUser = true, 2 })
	connect(t, s)
	if err := s.Send(t.Context(), SendOrder{Messages: 10, Window: 1, Duration: time.Minute}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all answers are there", func() bool { return s.Progress().Received == 10 })
	if o, _ := s.Reconcile(t.Context(), nil); o.Tally != (tally{Expected: 10, Received: 10}) || o.Misrouted != 0 {
		t.Errorf("%+v", o)
	}
}

func TestClosesOfTheOtherSideAreCounted(t *testing.T) {
	g := newStandIn(t, func(_ context.Context, user int64, ws *websocket.Conn) {
		switch user {
		case 10:
			_ = ws.Close(4401, "")
		case 11:
			_ = ws.Close(1012, "restart")
		default:
			_ = ws.CloseNow()
		}
	})
	s := g.crew(3, nil)
	if _, err := s.Connect(t.Context(), atOnce); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are closed", func() bool {
		o, _ := s.Reconcile(t.Context(), nil)
		return s.Progress().Connected == 0 && o.Closes[4401] == 1 && o.Closes[1012] == 1 && o.Closes[closeAbnormal] == 1
	})
	// Nobody is left to send.
	if err := s.Send(t.Context(), SendOrder{Rate: 1000, Duration: time.Minute}); err != nil || s.Progress().Sent != 0 {
		t.Errorf("%d sent, %v", s.Progress().Sent, err)
	}
}

// Whether the close frame comes along with the upgrade or after it, the client has not
// connected, and the other side has not ended a connection.
func TestTurnedAwayRightAfterTheUpgrade(t *testing.T) {
	frame := "\x88\x02" + string(binary.BigEndian.AppendUint16(nil, closeTryAgain))
	for name, together := range map[string]bool{"with the upgrade": true, "after the upgrade": false} {
		t.Run(name, func(t *testing.T) {
			upgraded := make(chan struct{})
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					fmt.Fprint(w, `{"connection_pass":"x"}`)
					return
				}
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = conn.Close() }()
				answer := strings.ReplaceAll(upgradeAnswer+"\r\n", "$accept", acceptKey(r.Header.Get("Sec-WebSocket-Key")))
				if together {
					_, _ = io.WriteString(conn, answer+frame)
				} else {
					_, _ = io.WriteString(conn, answer)
					<-upgraded
					_, _ = io.WriteString(conn, frame)
				}
				_, _ = io.Copy(io.Discard, conn) // the client's close frame, and its end
			}))
			defer server.Close()
			s, err := newSockets(CrewConfig{
				Target: targetGateway, URLs: []string{server.URL}, Key: []byte(secret), Algorithm: "HS256",
				FirstUser: 10, To: 1, PerUser: 1, Run: 5, Envelope: envelopeConfig{330, time.Now()},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			result, err := s.Connect(t.Context(), atOnce)
			close(upgraded)
			if err != nil || (result.Connected == 0) != together {
				t.Errorf("%+v, %v", result, err)
			}
			eventually(t, "it is turned away", func() bool {
				now := s.Progress()
				return now.Connected == 0 && now.TurnedAway == result.Connected
			})
			c := newConnectReport(result)
			c.turnAway(s.Progress().TurnedAway)
			if c.Connected != 0 || c.Failed != 1 || c.Faults["closed at once with 1013"] != 1 || len(c.Faults) != 1 {
				t.Errorf("%+v", c)
			}
			// It is owed nothing.
			if o, _ := s.Reconcile(t.Context(), []uint32{3}); len(o.Closes) != 0 || o.Tally != (tally{}) {
				t.Errorf("%+v", o)
			}
		})
	}
}

func TestPingsAreAnswered(t *testing.T) {
	answered := make(chan error, 1)
	g := newStandIn(t, nil)
	g.talk = func(ctx context.Context, _ int64, ws *websocket.Conn) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		reading := ws.CloseRead(ctx)
		answered <- ws.Ping(ctx)
		<-reading.Done()
	}
	s := g.crew(1, nil)
	connect(t, s)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func TestFailedAttemptsAreRepeated(t *testing.T) {
	var mu sync.Mutex
	left := 3
	g := newStandIn(t, func(ctx context.Context, _ int64, ws *websocket.Conn) { _, _, _ = ws.Read(ctx) })
	g.passFails = func(w http.ResponseWriter) bool {
		mu.Lock()
		defer mu.Unlock()
		if left--; left < 0 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	s := g.crew(2, nil)
	result, err := s.Connect(t.Context(), ConnectOrder{Concurrency: 2, Patience: time.Minute})
	if err != nil || result.Connected != 2 || result.Failed != 0 || result.Retries != 3 || result.Faults["pass request: HTTP 503"] != 3 {
		t.Errorf("%+v, %v", result, err)
	}
	mu.Lock()
	left = 1000
	mu.Unlock()
	if err := s.Drop(t.Context()); err != nil || s.Progress().Connected != 0 {
		t.Errorf("%d connected, %v", s.Progress().Connected, err)
	}
	result, err = s.Connect(t.Context(), ConnectOrder{Concurrency: 2})
	if err != nil || result.Connected != 0 || result.Failed != 2 || result.Retries != 0 {
		t.Errorf("without patience: %+v, %v", result, err)
	}
	if o, _ := s.Reconcile(t.Context(), nil); len(o.Closes) != 0 {
		t.Errorf("own cuts count as closes: %v", o.Closes)
	}
}

func TestChurnLeavesAndComesAgain(t *testing.T) {
	var mu sync.Mutex
	codes := make(map[websocket.StatusCode]int)
	g := newStandIn(t, func(ctx context.Context, _ int64, ws *websocket.Conn) {
		_, _, err := ws.Read(ctx)
		mu.Lock()
		defer mu.Unlock()
		codes[websocket.CloseStatus(err)]++
	})
	s := g.crew(4, nil)
	connect(t, s)
	result, err := s.Churn(t.Context(), ChurnOrder{Concurrency: 2, Rate: 100, Duration: 200 * time.Millisecond})
	if err != nil || result.Connected != 20 || result.Failed != 0 || s.Progress().Connected != 4 {
		t.Errorf("%+v, %v; %d connected", result, err, s.Progress().Connected)
	}
	eventually(t, "the server has seen the goodbyes", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return codes[websocket.StatusNormalClosure] == 20
	})
	if o, _ := s.Reconcile(t.Context(), nil); len(o.Closes) != 0 {
		t.Errorf("%v", o.Closes)
	}
}

func TestSourceAddresses(t *testing.T) {
	g := newStandIn(t, func(ctx context.Context, _ int64, ws *websocket.Conn) { _, _, _ = ws.Read(ctx) })
	sources, err := parseAddresses("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	s := g.crew(2, func(c *CrewConfig) { c.Sources = sources })
	connect(t, s)
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.sources) != 1 || !g.sources["127.0.0.1"] {
		t.Errorf("connections came from %v", g.sources)
	}
}

func TestAnswersThatAreNoUpgrade(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		header map[string]string
		want   string
	}{
		"too many":      {429, map[string]string{"Retry-After": "7"}, "upgrade: HTTP 429"},
		"another key":   {101, map[string]string{"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": "x"}, "Sec-WebSocket-Accept"},
		"nothing":       {0, nil, "read the answer"},
		"a page at all": {200, nil, "upgrade: HTTP 200"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if c.status == 0 {
					panic(http.ErrAbortHandler)
				}
				for name, value := range c.header {
					w.Header().Set(name, value)
				}
				w.WriteHeader(c.status)
			}))
			defer server.Close()
			at, err := parsePlace(server.URL, false)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = (&dialer{}).upgrade(t.Context(), at, "/", "", "")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
			if answer, ok := errors.AsType[*refusal](err); ok && c.status == 429 && answer.retryAfter != 7*time.Second {
				t.Errorf("Retry-After is %v", answer.retryAfter)
			}
		})
	}
}

// The end of a run does not wait for a server that does not answer.
func TestAttemptsEndWithTheirContext(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	at, err := parsePlace(server.URL, false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	timer := time.AfterFunc(50*time.Millisecond, cancel)
	defer timer.Stop()
	if _, _, err := (&dialer{}).upgrade(ctx, at, "/", "", ""); err == nil {
		t.Error("an upgrade without an answer succeeded")
	}
	window := &passWindow{dialer: &dialer{}}
	defer window.close()
	if _, err := window.pass(ctx, at, "token"); err == nil {
		t.Error("a pass without an answer")
	}
}

func TestTLS(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"connection_pass":"p"}`) }))
	defer server.Close()
	for insecure, ok := range map[bool]bool{true: true, false: false} {
		at, err := parsePlace(strings.Replace(server.URL, "https", "wss", 1), insecure)
		if err != nil {
			t.Fatal(err)
		}
		window := &passWindow{dialer: &dialer{}}
		pass, err := window.pass(t.Context(), at, "token")
		window.close()
		if (err == nil) != ok || ok && pass != "p" {
			t.Errorf("insecure %v: %q, %v", insecure, pass, err)
		}
	}
}
