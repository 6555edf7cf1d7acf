package main

import (
	"context"
	endian "encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/rabbitmq/amqp091-go"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// settlements follows what the broker hands to the service, and what the service says
// that it has dealt with, on the wire between them (AMQP 0-9-1, section 4.2.3).
type settlements struct {
	mu    sync.Mutex
	flows map[flow]*amqpStream
	taken map[amqpTag]delivered // by tag, until it is settled
	acked map[string]time.Time  // when a body that was acknowledged had come, by body
}

type delivered struct {
	body string
	at   time.Time
}

type flow struct {
	client  net.Conn
	answers bool
}

type amqpTag struct {
	client  net.Conn
	channel uint16
	tag     uint64
}

// amqpStream is one direction of a connection: the bytes of an unfinished frame, and
// the deliveries whose bodies are still coming, by channel.
type amqpStream struct {
	buffer []byte
	greets bool // still before the protocol header
	coming map[uint16]*comingDelivery
}

type comingDelivery struct {
	tag  uint64
	size uint64
	body []byte
}

// follow watches all connections that will come through the proxy.
func follow(p *proxy) *settlements {
	s := &settlements{flows: make(map[flow]*amqpStream), taken: make(map[amqpTag]delivered), acked: make(map[string]time.Time)}
	p.set(func() { p.tap = s.see })
	return s
}

func (s *settlements) see(client net.Conn, answers bool, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stream := s.flows[flow{client, answers}]
	if stream == nil {
		stream = &amqpStream{greets: !answers, coming: make(map[uint16]*comingDelivery)}
		s.flows[flow{client, answers}] = stream
	}
	stream.buffer = append(stream.buffer, data...)
	if stream.greets && len(stream.buffer) >= 8 {
		stream.buffer, stream.greets = stream.buffer[8:], false // "AMQP", 0, 0, 9, 1
	}
	for !stream.greets && len(stream.buffer) >= 8 {
		kind, channel := stream.buffer[0], endian.BigEndian.Uint16(stream.buffer[1:])
		end := 7 + int(endian.BigEndian.Uint32(stream.buffer[3:]))
		if len(stream.buffer) < end+1 {
			return
		}
		s.frame(client, stream, kind, channel, stream.buffer[7:end])
		stream.buffer = stream.buffer[end+1:]
	}
}

func (s *settlements) frame(client net.Conn, stream *amqpStream, kind byte, channel uint16, payload []byte) {
	const (
		method, header, body = 1, 2, 3
		basicDeliver         = 60<<16 | 60
		basicAck             = 60<<16 | 80
	)
	switch kind {
	case method:
		switch id := endian.BigEndian.Uint32(payload); id {
		case basicDeliver:
			rest := payload[5+int(payload[4]):] // after the consumer tag
			stream.coming[channel] = &comingDelivery{tag: endian.BigEndian.Uint64(rest)}
		case basicAck:
			s.settle(client, channel, endian.BigEndian.Uint64(payload[4:]), payload[12]&1 == 1)
		}
	case header:
		if coming := stream.coming[channel]; coming != nil {
			coming.size = endian.BigEndian.Uint64(payload[4:])
		}
	case body:
		coming := stream.coming[channel]
		if coming == nil {
			return
		}
		if coming.body = append(coming.body, payload...); uint64(len(coming.body)) >= coming.size {
			s.taken[amqpTag{client, channel, coming.tag}] = delivered{string(coming.body), time.Now()}
			delete(stream.coming, channel)
		}
	}
}

func (s *settlements) settle(client net.Conn, channel uint16, tag uint64, multiple bool) {
	for taken, what := range s.taken {
		if taken.client == client && taken.channel == channel && (taken.tag == tag || multiple && taken.tag <= tag) {
			s.acked[what.body] = what.at
			delete(s.taken, taken)
		}
	}
}

// talker is a client of shutdownUnderLoad: it sends all the time and remembers
// everything.
type talker struct {
	user   int64
	client *guest

	mu       sync.Mutex
	sent     []time.Time
	refused  map[int]bool
	received map[string]bool // bodies of deliveries
	closed   time.Time
	code     websocket.StatusCode
}

func (k *talker) id(n int) string { return fmt.Sprintf("%d-%d", k.user, n) }

func (k *talker) hear(frame []byte) {
	var answer struct {
		Title     string `json:"title"`
		InReplyTo string `json:"in_reply_to"`
	}
	_ = json.Unmarshal(frame, &answer)
	k.mu.Lock()
	defer k.mu.Unlock()
	if answer.Title == "" {
		k.received[string(frame)] = true
		return
	}
	var user int64
	var n int
	if _, err := fmt.Sscanf(answer.InReplyTo, "%d-%d", &user, &n); err == nil && answer.Title == "Delivery error." {
		k.refused[n] = true
	}
}

// talk sends a message each time until the connection ends.
func (k *talker) talk(every time.Duration) {
	pace := time.NewTicker(every)
	defer pace.Stop()
	for n := 0; ; n++ {
		select {
		case <-pace.C:
		case <-k.client.gone:
			k.mu.Lock()
			k.closed, k.code = time.Now(), websocket.CloseStatus(k.client.err)
			k.mu.Unlock()
			return
		}
		k.mu.Lock()
		k.sent = append(k.sent, time.Now())
		k.mu.Unlock()
		frame := fmt.Sprintf(`{"client_message_id":%q,"chat_id":"c","recipient_id":1,"body":"on and on"}`, k.id(n))
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		// An error says that the connection has ended; the reader says how.
		_ = k.client.conn.Write(ctx, websocket.MessageText, []byte(frame))
		cancel()
	}
}

// shutdownUnderLoad ends an instance while 500 clients send and receive.
func shutdownUnderLoad(t *testing.T, node *rabbittest.Node, scope string) {
	const (
		talkers = 500
		every   = 250 * time.Millisecond
		timeout = 20 * time.Second
		window  = 2 * time.Second
		warm    = 3000 // messages that the backend publishes before the signal
		// Few clients have a message on its way just when their close frame comes; and
		// nothing is delivered then, where the broker has removed the queue in time.
		mostUnread, mostLate = talkers / 2, talkers / 50
		removalLimit         = 900 * time.Millisecond // a close frame waits for a second
	)
	between := newProxy(t, node.Address())
	settled := follow(between)
	p := serveProgram(t, plainBinary(t), clientEnv(between.through(node.URL()), "QUEUE_SCOPE", scope,
		"SHUTDOWN_TIMEOUT", timeout.String(), "SHUTDOWN_DRAIN_WINDOW", window.String()))
	p.eventually("the instance is ready", func() bool { return p.status("/readyz") == http.StatusOK })
	database := newPeer(t, node.URL())
	stored := make(map[string]int)
	storing := make(chan struct{})
	deliveries := database.consume()
	go func() {
		defer close(storing)
		for d := range deliveries {
			if d.Type == "end" {
				return
			}
			stored[d.MessageId]++
		}
	}()

	company := make(map[int64]*talker)
	var everyone []*talker
	for i := range int64(talkers) {
		k := &talker{user: trafficBase + i, refused: make(map[int]bool), received: make(map[string]bool)}
		company[k.user] = k
		everyone = append(everyone, k)
	}
	for _, g := range p.crowd(trafficBase, talkers, func(g *guest, frame []byte) { company[g.user].hear(frame) }) {
		company[g.user].client = g
	}
	var talking sync.WaitGroup
	for _, k := range everyone {
		talking.Go(func() { k.talk(every) })
	}
	// The backend publishes for all of them, also while the instance shuts down.
	backend := newPeer(t, node.URL())
	published, routed, exited := 0, 0, false
	var signalled time.Time
	for ; !exited; published++ {
		if published == warm {
			signalled = time.Now()
			p.signal(syscall.SIGTERM)
		}
		if backend.publish(trafficBase+int64(published%talkers), "", fmt.Sprintf(`{"n":%d}`, published)) {
			routed++
		}
		select {
		case <-p.done:
			exited = true
		default:
		}
		if published > warm && time.Since(signalled) > timeout+schedulingAllowance {
			t.Fatal("the process has not ended within SHUTDOWN_TIMEOUT")
		}
	}
	took := time.Since(signalled)
	if code := p.ended(time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if took > timeout {
		t.Errorf("the shutdown took %v", took)
	}
	talking.Wait()
	if queues := websocketQueues(node.Queues(t)); len(queues) != 0 {
		t.Errorf("queues are left: %q", queues)
	}

	// What is behind this message in the queue was published after the process had ended.
	if err := database.channel.PublishWithContext(t.Context(), "database", "", false, false, amqp091.Publishing{Type: "end"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-storing:
	case <-time.After(20 * time.Second):
		t.Fatal("the stored messages do not come to their end")
	}
	var sent, accepted, refused, unread, received, lost int
	var oldestUnread time.Duration
	var closes []time.Time
	for _, k := range everyone {
		if k.code != websocket.StatusServiceRestart {
			t.Errorf("user %d was closed with %d: %v", k.user, k.code, k.client.err)
		}
		closes = append(closes, k.closed)
		sent += len(k.sent)
		received += len(k.received)
		// The service reads in order, so what it did not read any more is at the end.
		last := -1
		for n := range k.sent {
			if stored[k.id(n)] > 0 || k.refused[n] {
				last = n
			}
		}
		for n, at := range k.sent {
			switch {
			case stored[k.id(n)] > 1:
				t.Errorf("message %s is stored %d times", k.id(n), stored[k.id(n)])
			case stored[k.id(n)] == 1:
				accepted++
			case k.refused[n]:
				refused++
			case n > last && k.closed.Sub(at) < schedulingAllowance:
				// It crossed the close frame.
				unread++
				oldestUnread = max(oldestUnread, k.closed.Sub(at))
			default:
				lost++
				t.Errorf("message %s, sent %v before the close, is neither stored nor refused", k.id(n), k.closed.Sub(at))
			}
		}
	}
	// The user's queue goes before the close frame, so what came is written.
	late, oldestLate := 0, time.Duration(0)
	settled.mu.Lock()
	acked := len(settled.acked)
	for i := range published {
		body := fmt.Sprintf(`{"n":%d}`, i)
		k := everyone[i%talkers]
		came, found := settled.acked[body]
		switch {
		case !found || k.received[body]:
		case k.closed.Sub(came) < schedulingAllowance:
			late++
			oldestLate = max(oldestLate, k.closed.Sub(came))
		default:
			t.Errorf("a delivery that came %v before the close was acknowledged and not written", k.closed.Sub(came))
		}
	}
	settled.mu.Unlock()
	slices.SortFunc(closes, time.Time.Compare)
	// How far the closes lag behind their moments, which are spread evenly, says whether the
	// machine is overrun: then nothing follows from how much was on its way. Both promises
	// are held without a load by shutdownWithLateConfirms and shutdownUnanswered.
	var lag time.Duration
	for i, closed := range closes {
		lag = max(lag, closed.Sub(signalled)-window*time.Duration(i)/talkers)
	}
	if unread > mostUnread && lag < removalLimit {
		t.Errorf("%d messages were not read though they were sent before the close frame came, the oldest %v before", unread, oldestUnread)
	}
	if late > mostLate && lag < removalLimit {
		t.Errorf("%d deliveries were acknowledged and not written, the oldest came %v before the close", late, oldestLate)
	}
	spread := closes[len(closes)-1].Sub(closes[0])
	if spread < window/2 {
		t.Errorf("all 1012s came within %v", spread)
	}
	figure(t, "shutdown_took_"+scope, took, "")
	figure(t, "shutdown_closes_spread_over_"+scope, spread, "")
	figure(t, "shutdown_closes_lag_"+scope, lag, "")
	figure(t, "shutdown_sent_"+scope, sent, "messages")
	figure(t, "shutdown_accepted_"+scope, accepted, "messages")
	figure(t, "shutdown_refused_"+scope, refused, "messages")
	figure(t, "shutdown_crossed_the_close_"+scope, unread, "messages")
	figure(t, "shutdown_crossed_the_close_oldest_"+scope, oldestUnread, "")
	figure(t, "shutdown_lost_"+scope, lost, "messages")
	figure(t, "shutdown_deliveries_routed_"+scope, routed, "messages")
	figure(t, "shutdown_deliveries_acked_"+scope, acked, "messages")
	figure(t, "shutdown_deliveries_received_"+scope, received, "messages")
	figure(t, "shutdown_deliveries_late_"+scope, late, "messages")
	figure(t, "shutdown_deliveries_late_oldest_"+scope, oldestLate, "")
}

// shutdownTimeout is SHUTDOWN_TIMEOUT of the shutdowns under faults.
const shutdownTimeout = 10 * time.Second

// faultyShutdown starts an instance behind a proxy, with a short confirm timeout, and
// connects a company to it.
func faultyShutdown(t *testing.T, node *rabbittest.Node, scope string) (p *instance, between *proxy, company []*client) {
	t.Helper()
	between = newProxy(t, node.Address())
	p = serveWith(t, clientEnv(between.through(node.URL()), "QUEUE_SCOPE", scope, "PUBLISH_CONFIRM_TIMEOUT", "1s",
		"SHUTDOWN_TIMEOUT", shutdownTimeout.String(), "SHUTDOWN_DRAIN_WINDOW", "500ms"))
	newPeer(t, node.URL()).consume()
	for user := range int64(40) {
		company = append(company, p.connect(user+1))
	}
	return p, between, company
}

// refusedThenClosed has each client send two messages just before the signal, and
// expects an error for both, then 1012, and exit code 0.
func refusedThenClosed(t *testing.T, name string, p *instance, company []*client) {
	t.Helper()
	refused := make([]map[any]bool, len(company))
	// hear takes one frame; it returns true for the answer to what is no message.
	hear := func(i int) bool {
		got := company[i].next()
		if got["title"] == "Data integrity error." {
			return true
		}
		if got["title"] != "Delivery error." {
			t.Errorf("client %d got %v", i, got)
		}
		refused[i][got["in_reply_to"]] = true
		return false
	}
	for i, c := range company {
		refused[i] = make(map[any]bool)
		c.send(fmt.Sprint(i, "-a"), "c", 1, "")
		c.send(fmt.Sprint(i, "-b"), "c", 1, "")
		// Its answer shows that the service has read what came before it.
		if err := c.conn.Write(t.Context(), websocket.MessageText, []byte("rubbish")); err != nil {
			t.Fatal(err)
		}
	}
	for i := range company {
		for !hear(i) {
		}
	}
	began := time.Now()
	p.signal(syscall.SIGTERM)
	for i, c := range company {
		for len(refused[i]) < 2 {
			hear(i)
		}
		if !refused[i][fmt.Sprint(i, "-a")] || !refused[i][fmt.Sprint(i, "-b")] {
			t.Errorf("client %d got errors for %v", i, refused[i])
		}
		if code := c.code(); code != websocket.StatusServiceRestart {
			t.Errorf("client %d was closed with %d", i, code)
		}
	}
	if code := p.ended(shutdownTimeout); code != 0 {
		t.Errorf("exit code %d", code)
	}
	figure(t, name, time.Since(began), "")
}

// shutdownWithoutBroker ends an instance whose broker is away.
func shutdownWithoutBroker(t *testing.T, node *rabbittest.Node, scope string) {
	p, between, company := faultyShutdown(t, node, scope)
	between.blackHole(true) // of those who try to come back
	between.cut()
	p.eventually("the instance is not ready", func() bool { return p.status("/readyz") == http.StatusServiceUnavailable })
	refusedThenClosed(t, "shutdown_without_broker_took_"+scope, p, company)
	eventually(t, "the broker has removed the queues", func() bool { return len(websocketQueues(node.Queues(t))) == 0 })
}

// shutdownInBlackHole ends an instance that does not know yet that its broker is away.
func shutdownInBlackHole(t *testing.T, node *rabbittest.Node, scope string) {
	p, between, company := faultyShutdown(t, node, scope)
	between.blackHole(true)
	refusedThenClosed(t, "shutdown_in_black_hole_took_"+scope, p, company)
	between.blackHole(false)
	eventually(t, "the broker has removed the queues", func() bool { return len(websocketQueues(node.Queues(t))) == 0 })
}

// shutdownWithLateConfirms holds the broker's answers back, so that the connections take
// long to close while their clients go on sending: each message that is read meanwhile
// has been stored or refused when the close frame comes. Nothing is on its way then, so
// none may be missing.
func shutdownWithLateConfirms(t *testing.T, node *rabbittest.Node, scope string) {
	const (
		speakers = 20
		errors   = 3 // that show a client that its connection is closing
		every    = 50 * time.Millisecond
	)
	between := newProxy(t, node.Address())
	bindQueue(t, node.URL(), primary)
	t.Cleanup(func() { _, _ = backendChannel(t, node.URL()).QueueDelete(primary, false, false, false) })
	p := serveWith(t, brokerEnv(between.through(node.URL()), "QUEUE_SCOPE", scope, "PUBLISH_CONFIRM_TIMEOUT", "10s",
		"SHUTDOWN_TIMEOUT", "30s", "SHUTDOWN_DRAIN_WINDOW", "0s"))
	l := newLedger(t)
	guests := p.crowd(1, speakers, l.hear)
	between.hold(true)
	l.everyone(guests)
	p.signal(syscall.SIGTERM)
	err := many(speakers, func(i int) error {
		g, pace, limit := guests[i], time.NewTicker(every), time.After(20*time.Second)
		defer pace.Stop()
		for refused, _ := l.refusedOf(g.user); refused < errors; refused, _ = l.refusedOf(g.user) {
			select {
			case <-pace.C:
			case <-g.gone:
				return fmt.Errorf("closed before the confirms came: %w", g.err)
			case <-limit:
				return fmt.Errorf("user %d is not told that messages are refused", g.user)
			}
			if err := l.say(g); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// All that has been said has been read.
	awaited(t, 20*time.Second, "the last message of each user is refused", func() bool {
		for _, g := range guests {
			if _, last := l.refusedOf(g.user); !last {
				return false
			}
		}
		return true
	})
	between.hold(false)
	for _, g := range guests {
		select {
		case <-g.gone:
			if code := websocket.CloseStatus(g.err); code != websocket.StatusServiceRestart {
				t.Errorf("user %d was closed with %d: %v", g.user, code, g.err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("user %d is still connected", g.user)
		}
	}
	if code := p.ended(20 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	stored, duplicated, lost, _ := l.reconcile(node.URL())
	if lost != 0 || duplicated != 0 || stored < speakers {
		t.Errorf("lost without a word: %d; published twice: %d; stored: %d", lost, duplicated, stored)
	}
}

// shutdownUnanswered ends an instance whose clients do not answer a close frame, some
// of them since they do not read at all. When a client sees its close frame, its user
// has no queue any more.
func shutdownUnanswered(t *testing.T, node *rabbittest.Node, scope string) {
	const silent, stuck = 40, 3
	p := serveWith(t, clientEnv(node.URL(), "QUEUE_SCOPE", scope,
		"SHUTDOWN_TIMEOUT", shutdownTimeout.String(), "SHUTDOWN_DRAIN_WINDOW", "500ms"))
	var company []*bare
	for user := range int64(silent) {
		company = append(company, p.connectBare(user+1, bareOptions{}))
	}
	for user := range int64(stuck) {
		p.connectBare(1000+user, bareOptions{receiveBuffer: 4 << 10})
		if err := flood(node.URL(), 1000+user, 400, 32<<10); err != nil {
			t.Fatal(err)
		}
	}
	backend := newPeer(t, node.URL())
	type farewell struct {
		user int64
		code int
		err  error
	}
	farewells := make(chan farewell, silent)
	began := time.Now()
	p.signal(syscall.SIGTERM)
	for i, b := range company {
		go func() {
			code, err := b.closing(shutdownTimeout)
			farewells <- farewell{int64(i) + 1, code, err}
		}()
	}
	reachable := 0
	for range silent {
		f := <-farewells
		if f.err != nil || f.code != int(websocket.StatusServiceRestart) {
			t.Errorf("user %d was closed with %d (%v)", f.user, f.code, f.err)
		}
		if backend.publish(f.user, "", `{}`) {
			reachable++
		}
	}
	// A close frame waits for the broker to remove the queue, but no longer than a second in
	// which it removes none, which may happen on a machine that is busy otherwise. Where
	// nothing waits, next to all of them are reachable.
	if reachable > silent*3/4 {
		t.Errorf("%d of %d users still had a queue behind their close frame", reachable, silent)
	}
	for i, b := range company {
		if !readsToEnd(b.conn, shutdownTimeout) {
			t.Errorf("client %d is still connected", i)
		}
	}
	if code := p.ended(shutdownTimeout); code != 0 {
		t.Errorf("exit code %d", code)
	}
	took := time.Since(began)
	if took > shutdownTimeout {
		t.Errorf("the shutdown took %v", took)
	}
	if queues := websocketQueues(node.Queues(t)); len(queues) != 0 {
		t.Errorf("queues are left: %q", queues)
	}
	figure(t, "shutdown_unanswered_took_"+scope, took, "")
}
