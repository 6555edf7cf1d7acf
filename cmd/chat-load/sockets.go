package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of what ends connections politely.
const (
	leaveTimeout   = 2 * time.Second // for the server's close frame
	goodbyeTimeout = 5 * time.Second // for all of them, at the end
)

// senders is how many goroutines write for all connections.
const senders = 16

// dialect is what is spoken over the WebSockets of a target.
type dialect interface {
	// open returns a connection, upgraded to WebSocket, and what came after the upgrade.
	open(ctx context.Context, c *client) (net.Conn, []byte, error)
	// greeting returns the texts to send next, or nil. The server has answered when
	// received calls c.greeted.
	greeting(c *client) [][]byte
	// appendText appends the text that brings the message to the broker.
	appendText(dst, scratch []byte, c *client, s stamp) (text, reuse []byte)
	// received takes a text of the server.
	received(c *client, text []byte) error
}

// sockets is a crew of WebSocket connections in this process.
type sockets struct {
	config    CrewConfig
	dialect   dialect
	envelope  envelope
	clients   []*client
	counters  counters
	settled   atomic.Uint64
	latency   histogram
	refusals  reasons
	misrouted atomic.Uint64
	foreign   atomic.Uint64
	passes    *passWindow

	mu     sync.Mutex
	closes map[int]uint64
}

func newSockets(config CrewConfig) (*sockets, error) {
	s := &sockets{
		config:   config,
		envelope: newEnvelope(config.Envelope.Size, config.Envelope.Now),
		clients:  make([]*client, config.connections()),
		closes:   make(map[int]uint64),
	}
	places := make([]place, len(config.URLs))
	for i, text := range config.URLs {
		var err error
		if places[i], err = parsePlace(text, config.Insecure); err != nil {
			return nil, fmt.Errorf("the server's URL: %w", err)
		}
	}
	dialer := &dialer{sources: config.Sources}
	s.passes = &passWindow{dialer: dialer}
	if config.Target == targetWebSTOMP {
		s.dialect = &stomp{dialer: dialer, places: places, config: config}
	} else {
		tokens, err := newTokens(config.Key, config.Algorithm)
		if err != nil {
			return nil, err
		}
		s.dialect = &gateway{dialer: dialer, passes: s.passes, places: places, tokens: tokens}
	}
	for i := range s.clients {
		index := config.From*config.PerUser + i
		s.clients[i] = &client{crew: s, index: index, user: index / config.PerUser, absent: true}
	}
	return s, nil
}

// client is one connection of one user. Its reader goroutine owns frames.
type client struct {
	crew  *sockets
	index int
	user  int // index of the user

	writing sync.Mutex // held over writes
	conn    net.Conn   // nil while not connected; guarded by writing
	leaving bool       // this side ends the connection; guarded by writing

	done   chan struct{} // closed when the reader has ended; written by the order's goroutine
	frames frameReader
	ready  bool // the greeting has been answered

	absent bool      // no attempt to connect has come to a lasting connection; guarded by writing
	opened time.Time // guarded by writing

	books    sync.Mutex
	incoming ledger
	outgoing outgoing
}

// errClosed ends a reader after a close frame, errTurnedAway after one that says that there
// was no room. Whether that one comes along with the upgrade or after it is chance, so it
// counts under one name.
var (
	errClosed     = errors.New("closed")
	errTurnedAway = fmt.Errorf("%w at once with %d", errClosed, closeTryAgain)
)

// open connects the client, which is not connected.
func (c *client) open(ctx context.Context) error {
	if c.done != nil {
		<-c.done // the reader of the connection before
	}
	c.setAbsent(true)
	conn, rest, err := c.crew.dialect.open(ctx, c)
	if err != nil {
		return err
	}
	c.frames, c.ready = frameReader{}, false
	c.writing.Lock()
	c.conn, c.leaving = conn, false
	c.writing.Unlock()
	if err := c.greet(ctx, conn, rest); err != nil {
		c.hangUp(conn)
		return err
	}
	c.setAbsent(false)
	c.done = make(chan struct{})
	c.crew.counters.connected.Add(1)
	go c.read(conn)
	return nil
}

// setAbsent says whether the client is one that could not connect.
func (c *client) setAbsent(absent bool) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.absent, c.opened = absent, time.Now()
}

// Close code of a server that has no room, and how soon after the upgrade it means that
// there never was any.
const (
	closeTryAgain = 1013
	tooSoon       = 5 * time.Second
)

// turnedAway books a close frame that says so, and reports whether it did.
func (c *client) turnedAway(code int) bool {
	c.writing.Lock()
	defer c.writing.Unlock()
	if code != closeTryAgain || time.Since(c.opened) > tooSoon {
		return false
	}
	if !c.absent { // else the attempt under way fails, and is counted as that
		c.absent = true
		c.crew.counters.turnedAway.Add(1)
	}
	return true
}

// greet says what a dialect begins with and waits for the answer.
func (c *client) greet(ctx context.Context, conn net.Conn, rest []byte) error {
	greeting := c.crew.dialect.greeting(c)
	if len(greeting) == 0 {
		if len(rest) == 0 {
			return nil
		}
		err := c.frames.feed(rest, c)
		if err != nil {
			// Accepted only to be turned away: that is no connection.
			if errors.Is(err, errTurnedAway) {
				return err
			}
			return fmt.Errorf("turned away: %w", err)
		}
		return nil
	}
	var out []byte
	for _, text := range greeting {
		out = appendFrame(out, opText, text)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(attemptTimeout)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("greet the server: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if _, err := conn.Write(out); err != nil {
		return fmt.Errorf("greet the server: %w", err)
	}
	buffer := make([]byte, 1024)
	for !c.ready {
		n, err := conn.Read(buffer)
		if err != nil {
			return fmt.Errorf("read the server's greeting: %w", err)
		}
		if err := c.frames.feed(buffer[:n], c); err != nil {
			return fmt.Errorf("read the server's greeting: %w", err)
		}
	}
	if !stop() {
		return ctx.Err()
	}
	return conn.SetDeadline(time.Time{})
}

// greeted says that the server has answered the greeting.
func (c *client) greeted() { c.ready = true }

func (c *client) hangUp(conn net.Conn) {
	c.writing.Lock()
	c.conn = nil
	c.writing.Unlock()
	_ = conn.Close()
}

// A reader waits with a small buffer of its own, which holds a typical message; when it
// is full there may be more, and a big one is borrowed.
const (
	smallRead = 512
	bigRead   = 16 << 10
)

var bigReads = sync.Pool{New: func() any { return new([bigRead]byte) }}

func (c *client) read(conn net.Conn) {
	defer close(c.done)
	err := c.readAll(conn)
	c.writing.Lock()
	c.conn = nil
	leaving := c.leaving
	c.writing.Unlock()
	_ = conn.Close()
	c.crew.counters.connected.Add(-1)
	// A close frame has been counted where it came.
	if !leaving && !errors.Is(err, errClosed) {
		c.crew.closed(closeAbnormal)
	}
}

func (c *client) readAll(conn net.Conn) error {
	small := make([]byte, smallRead)
	for {
		n, err := conn.Read(small)
		if n > 0 {
			if err := c.frames.feed(small[:n], c); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		if n == len(small) {
			if err := c.readBurst(conn); err != nil {
				return err
			}
		}
	}
}

// readBurst reads with a big buffer until one read does not fill it.
func (c *client) readBurst(conn net.Conn) error {
	big := bigReads.Get().(*[bigRead]byte)
	defer bigReads.Put(big)
	for {
		n, err := conn.Read(big[:])
		if n > 0 {
			if err := c.frames.feed(big[:n], c); err != nil {
				return err
			}
		}
		if err != nil || n < len(big) {
			return err
		}
	}
}

// message implements frameHandler.
func (c *client) message(text []byte) error { return c.crew.dialect.received(c, text) }

// control implements frameHandler.
func (c *client) control(opcode byte, payload []byte) error {
	switch opcode {
	case opPing:
		// A failed write ends the connection, which the reader notices.
		_ = c.write(appendFrame(nil, opPong, payload))
	case opClose:
		code := closeCode(payload)
		c.writing.Lock()
		leaving := c.leaving
		c.writing.Unlock()
		if !leaving {
			away := c.turnedAway(code)
			if !away {
				c.crew.closed(code)
			}
			_ = c.write(appendFrame(nil, opClose, payload[:min(len(payload), 2)]))
			if away {
				return errTurnedAway
			}
		}
		return fmt.Errorf("%w with %d", errClosed, code)
	}
	return nil
}

// errNotConnected is returned for a write to a client that is not connected.
var errNotConnected = errors.New("not connected")

// write sends whole frames. A failed write ends the connection.
func (c *client) write(frames []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.writeLocked(frames)
}

func (c *client) writeLocked(frames []byte) error {
	if c.conn == nil || c.leaving {
		return errNotConnected
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := c.conn.Write(frames); err != nil {
		_ = c.conn.Close()
		return err
	}
	return nil
}

// arrived books a message.
func (c *client) arrived(s stamp) {
	crew := c.crew
	switch {
	case s.run != crew.config.Run:
		crew.foreign.Add(1)
		return
	case crew.config.Echo && int(s.stream)/crew.config.PerUser != c.user,
		!crew.config.Echo && int(s.stream) != c.user:
		crew.misrouted.Add(1)
		return
	case crew.config.Echo && int(s.stream) != c.index:
		return // an answer to the user's other connection reaches this one too
	}
	c.books.Lock()
	fresh := c.incoming.add(s.number)
	c.books.Unlock()
	if fresh {
		now := time.Now().UnixNano()
		crew.latency.record(time.Duration(now - s.at))
		crew.counters.arrive(now)
	}
}

// refused books a message of this connection that the server did not take.
func (c *client) refused(s stamp, why string) {
	if s.run != c.crew.config.Run || int(s.stream) != c.index {
		c.crew.foreign.Add(1)
		return
	}
	c.refuse(s.number, why)
}

func (c *client) refuse(number uint32, why string) {
	c.books.Lock()
	fresh := c.outgoing.Refused.add(number)
	c.books.Unlock()
	if fresh {
		c.crew.counters.refused.Add(1)
		c.crew.refusals.add(why)
	}
}

// closed counts a connection that the other side has ended.
func (s *sockets) closed(code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closes[code]++
}

// leave says goodbye, waits for the server's answer for a moment, and hangs up.
func (c *client) leave() {
	if c.done == nil {
		return
	}
	c.startLeaving()
	timer := time.NewTimer(leaveTimeout)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
		c.cut()
		<-c.done
	}
}

// startLeaving sends the close frame.
func (c *client) startLeaving() {
	frame := appendFrame(nil, opClose, binary.BigEndian.AppendUint16(nil, closeNormal))
	c.writing.Lock()
	defer c.writing.Unlock()
	// A write that fails has closed the connection, and the reader sees to the rest.
	_ = c.writeLocked(frame)
	c.leaving = true
}

// cut ends the connection at once: with a reset, so that its port is free again.
func (c *client) cut() {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.conn == nil {
		return
	}
	c.leaving = true
	if tcp, ok := c.conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.conn.Close()
}

func (c *client) connected() bool {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.conn != nil && !c.leaving
}

// Connect implements crew.
func (s *sockets) Connect(ctx context.Context, order ConnectOrder) (ConnectResult, error) {
	var absent []int
	for i, c := range s.clients {
		if !c.connected() {
			absent = append(absent, i)
		}
	}
	return gather(ctx, order, absent, nil, func(ctx context.Context, i int) error { return s.clients[i].open(ctx) }), nil
}

// Churn implements crew.
func (s *sockets) Churn(ctx context.Context, order ChurnOrder) (ConnectResult, error) {
	ctx, cancel := context.WithTimeout(ctx, order.Duration+attemptTimeout)
	defer cancel()
	turns := int(order.Rate * order.Duration.Seconds())
	indexes := make([]int, turns)
	for i := range indexes {
		indexes[i] = i % len(s.clients)
	}
	// A client whose turn comes again while it is still on its way waits.
	busy := make([]sync.Mutex, len(s.clients))
	connect := ConnectOrder{Concurrency: order.Concurrency, Rate: order.Rate}
	return gather(ctx, connect, indexes, func(i int) {
		busy[i].Lock()
		s.clients[i].leave()
	}, func(ctx context.Context, i int) error {
		defer busy[i].Unlock()
		return s.clients[i].open(ctx)
	}), nil
}

// Drop implements crew.
func (s *sockets) Drop(context.Context) error {
	for _, c := range s.clients {
		c.cut()
	}
	for _, c := range s.clients {
		if c.done != nil {
			<-c.done
		}
	}
	return nil
}

// Send implements crew.
func (s *sockets) Send(ctx context.Context, order SendOrder) error {
	size := order.Window
	if order.Rate > 0 {
		size = 0
	}
	settled := s.settled.Load
	if s.config.Echo {
		settled = s.counters.received.Load
	}
	limit := newWindow(size, func() uint64 { return settled() + s.counters.refused.Load() })
	count := min(senders, len(s.clients))
	var sending sync.WaitGroup
	for k := range count {
		var mine []*client
		for i := k; i < len(s.clients); i += count {
			mine = append(mine, s.clients[i])
		}
		share := order.Messages / uint64(count)
		if uint64(k) < order.Messages%uint64(count) {
			share++
		}
		if order.Messages > 0 && share == 0 {
			continue
		}
		pacing := newPace(order.Rate/float64(count), order.Duration)
		pacing.shift(float64(k) / float64(count)) // else all would send at the same moments
		sending.Go(func() { s.send(ctx, mine, share, pacing, limit) })
	}
	sending.Wait()
	return nil
}

// send makes some clients send in turn; share is how many messages in all, 0 for as many
// as the pace lets.
func (s *sockets) send(ctx context.Context, clients []*client, share uint64, pacing *pace, limit *window) {
	var out, text, scratch []byte
	idle := 0 // clients in a row that are not connected
	for i := uint64(0); share == 0 || i < share; i++ {
		at, ok := pacing.next(ctx)
		if !ok {
			return
		}
		c := clients[i%uint64(len(clients))]
		if !c.connected() {
			if idle++; idle >= len(clients) {
				return
			}
			continue
		}
		idle = 0
		if !limit.enter(ctx, 1) {
			return
		}
		if limit.size > 0 {
			at = time.Now().UnixNano() // the wait for room is this program's own doing
		}
		c.books.Lock()
		number := c.outgoing.Sent
		c.outgoing.Sent++
		c.books.Unlock()
		id := stamp{s.config.Run, uint32(c.index), number, at}
		text, scratch = s.dialect.appendText(text[:0], scratch, c, id)
		out = appendFrame(out[:0], opText, text)
		s.counters.sent.Add(1)
		if err := c.write(out); err != nil {
			c.refuse(number, "the connection is gone")
		}
	}
}

// Settle implements crew.
func (s *sockets) Settle(n uint64) { s.settled.Store(n) }

// Progress implements crew.
func (s *sockets) Progress() Progress { return s.counters.progress() }

// Reconcile implements crew.
func (s *sockets) Reconcile(_ context.Context, sent []uint32) (Outcome, error) {
	o := Outcome{
		Latency:   s.latency.distribution(),
		Outgoing:  make([]outgoing, len(s.clients)),
		Refusals:  s.refusals.all(),
		Misrouted: s.misrouted.Load(),
		Foreign:   s.foreign.Load(),
		Closes:    make(map[int]uint64),
	}
	for i, c := range s.clients {
		c.writing.Lock()
		absent := c.absent
		c.writing.Unlock()
		c.books.Lock()
		o.Outgoing[i] = outgoing{c.outgoing.Sent, append(numbers(nil), c.outgoing.Refused...)}
		switch user := c.user - s.config.From; {
		case s.config.Echo:
			o.Tally.book(&c.incoming, c.outgoing.Sent, c.outgoing.Refused)
		case absent && c.incoming.received == 0:
			// Its connect has failed, and that is what is reported.
		case user < len(sent):
			o.Tally.book(&c.incoming, sent[user], nil)
		}
		c.books.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for code, n := range s.closes {
		o.Closes[code] = n
	}
	return o, nil
}

// Close implements crew.
func (s *sockets) Close() error {
	for _, c := range s.clients {
		c.startLeaving()
	}
	timer := time.NewTimer(goodbyeTimeout)
	defer timer.Stop()
	late := false
	for _, c := range s.clients {
		if c.done == nil {
			continue
		}
		if !late {
			select {
			case <-c.done:
				continue
			case <-timer.C:
				late = true
			}
		}
		c.cut()
		<-c.done
	}
	s.passes.close()
	return nil
}
