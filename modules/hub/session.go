package hub

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

const (
	// maxInFlight is how many frames of one connection may await their confirm, or
	// their error's being written, before no further one is read.
	maxInFlight = 256
	// maxErrorBytes bounds the error frames that wait for one connection: each may
	// repeat a client_message_id as long as a frame.
	maxErrorBytes = 256 << 10
	// settleGrace is what a close waits beyond ConfirmTimeout for messages in flight.
	settleGrace = time.Second
	// flushGrace is how long a close that is late waits for the last errors to be written.
	flushGrace = 250 * time.Millisecond
	// slowCloseWait is how long a 4408 waits for messages in flight, and then, for
	// flushGrace, for their errors and the write that is under way.
	slowCloseWait = 500 * time.Millisecond
	// keptQueue is how many places of its queue a connection keeps at rest.
	keptQueue = 4
	// burstGap is how soon after one delivery the next one of the same connection makes a
	// burst: then a goroutine writes, which finds more to write at once. It is several
	// times what a write takes.
	burstGap = 50 * time.Microsecond
)

// errClosing: the connection is being closed, so the message was not published.
var errClosing = errors.New("the connection is being closed")

// phase is how far a session has come to its end.
type phase uint8

const (
	// phaseOpen: everything is taken.
	phaseOpen phase = iota
	// phaseClosing: frames that are read get "Delivery error."; messages in flight are
	// awaited; deliveries are still taken.
	phaseClosing
	// phaseSealed: the messages in flight are settled; no more deliveries are taken,
	// and what is queued is being written.
	phaseSealed
	// phaseClosed: the close frame is next. Nothing else is written, frames that are
	// read are discarded.
	phaseClosed
	// phaseDead: the socket is gone, or as good as gone.
	phaseDead
)

// outgoing is a frame that waits to be written: a delivery, or else an error frame,
// which holds a place among the messages in flight.
type outgoing struct {
	parcel *parcel
	errors []byte
}

// flight is a message that the publisher has and has not settled.
type flight struct {
	session    *session
	to         reply
	prev, next *flight // in session.flights
	over       bool
}

// settled is the publisher's callback. It does not block.
func (f *flight) settled(err error) {
	if f.session.land(f) {
		f.session.settled(f.to, err)
	}
}

// session is one connection of one user.
type session struct {
	hub       *Hub
	user      domain.UserID
	client    netip.Addr
	requestID string // of the upgrade, for the log; empty where it has none
	admission *app.Admission
	limiter   *rate.Limiter // nil: no limit
	expires   time.Time     // zero: the connection outlives its token
	member    *member       // set by join
	retires   bool          // a drain is about to close it; guarded by member.mu

	// ws and wire are set by open, before any goroutine that uses them is started.
	ws       *websocket.Conn
	wire     *wire
	opened   time.Time
	framesIn int // reader only
	// slot and place are where the hub's round has the session; guarded by round.mu.
	slot, place int

	mu     sync.Mutex
	phase  phase
	corked bool // until the upgrade has been answered
	deaf   bool // no more deliveries are taken, whatever the phase
	// code and reason are why the service ends the connection; the first one wins.
	code   app.CloseCode
	reason string
	// queue from head on is what waits. writing says that somebody writes.
	queue   []outgoing
	head    int
	writing bool
	// claimed is when an offer was last the one to have its delivery written, as time since
	// wire.began; 0: never.
	claimed time.Duration
	// deliveries counts those that wait or are being written.
	deliveries int
	// flights are the messages that await the broker's verdict, in no order.
	flights *flight
	// inFlight counts the frames that were read and have neither been confirmed nor
	// had their error written; errorBytes is the size of such errors as are queued.
	inFlight   int
	errorBytes int
	framesOut  int
	// held says that the reader waits for room among the messages in flight.
	held bool
	// changed is there while somebody waits for any of these to change.
	changed chan struct{}
	timer   *time.Timer // of the token's end, once that is near
}

func newSession(h *Hub, admission *app.Admission, client netip.Addr, requestID string) *session {
	s := &session{hub: h, user: admission.User, client: client, requestID: requestID, admission: admission, corked: true}
	if h.config.MessagesPerSecond > 0 {
		s.limiter = rate.NewLimiter(rate.Limit(h.config.MessagesPerSecond), h.config.MessagesBurst)
	}
	if h.config.CloseOnTokenExpiry {
		s.expires = admission.TokenExpiresAt
	}
	return s
}

// open hands the session its socket, after the upgrade has been answered. What was
// queued until now is written.
func (s *session) open(ws *websocket.Conn, w *wire) {
	s.hub.meters.connections.Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ws, s.wire, s.corked = ws, w, false
	s.opened = time.Now()
	if s.phase == phaseDead {
		w.cut()
	}
	s.setExpiry(s.opened)
	s.hub.round.add(s)
	s.hub.trim.opens(s.opened)
	s.startWriter()
	s.signal()
	go s.read()
}

// abandon ends a session whose upgrade could not be answered.
func (s *session) abandon() {
	s.cut()
	s.dropAll(dropConnectionClosed)
	s.admission.Release()
	s.hub.leave(s)
	s.hub.unregister(s)
}

// signal wakes those who await a change. The caller holds mu.
func (s *session) signal() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// await waits until ok reports true, for as long as deadline allows where it is not
// zero, and returns what ok reported last. ok is called with mu held.
func (s *session) await(deadline time.Time, ok func() bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ok() {
		return true
	}
	var timeout <-chan time.Time
	if !deadline.IsZero() {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		timeout = timer.C
	}
	for {
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed, late := s.changed, false
		s.mu.Unlock()
		select {
		case <-changed:
		case <-timeout:
			late = true
		}
		s.mu.Lock()
		if ok() {
			return true
		}
		if late {
			return false
		}
	}
}

// ---- Reading

// read is the goroutine that owns the socket: it reads until that fails, and ends the
// session.
func (s *session) read() {
	s.finish(s.readFrames())
}

// readFrames returns the error that ended reading; nil where the session was cut.
func (s *session) readFrames() error {
	// A context that can end would cost the library a timer for each frame, and close
	// the connection. Cutting the wire ends reading as well.
	ctx := context.Background()
	for s.awaitRoom() {
		kind, message, err := s.ws.Reader(ctx)
		if err != nil {
			return err
		}
		if err := s.readFrame(kind, message); err != nil {
			return err
		}
	}
	return nil
}

// awaitRoom waits until another frame may be read; false says that none will be. It
// waits before reading, not after: the client's own socket then fills, and the time
// within which a message must be answered begins when it has been read.
func (s *session) awaitRoom() bool {
	s.mu.Lock()
	room := s.room()
	s.held = !room
	dead := s.phase == phaseDead
	s.mu.Unlock()
	if room {
		return !dead
	}
	s.await(time.Time{}, func() bool {
		dead = s.phase == phaseDead
		if s.room() && s.held {
			// It was the service that did not listen: the peer has not been silent.
			s.wire.touch()
			s.held = false
		}
		return !s.held
	})
	return !dead
}

// room reports whether another frame may be read. The caller holds mu.
func (s *session) room() bool {
	return s.phase >= phaseClosed || s.inFlight < maxInFlight && s.errorBytes < maxErrorBytes
}

// readBuffers hold a message while it is read; a connection at rest has none.
var readBuffers = sync.Pool{New: func() any {
	buffer := make([]byte, 0, 4<<10)
	return &buffer
}}

// maxKeptBuffer is the greatest buffer that goes back to the pool.
const maxKeptBuffer = 64<<10 + 1

// readFrame reads one message and deals with it.
func (s *session) readFrame(kind websocket.MessageType, message io.Reader) error {
	pooled := readBuffers.Get().(*[]byte)
	data, err := readUpTo(message, (*pooled)[:0], s.hub.config.MaxMessageBytes)
	defer func() {
		if cap(data) <= maxKeptBuffer {
			*pooled = data[:0]
		}
		readBuffers.Put(pooled)
	}()
	switch {
	case errors.Is(err, errTooBig):
		s.close(app.CloseMessageTooBig, closeReason(app.CloseMessageTooBig))
		// The close frame must not overtake the rest: a socket that is closed with
		// bytes unread is reset, and the client might never see the code.
		_, err = io.Copy(io.Discard, message)
		return err
	case err != nil:
		return err
	case s.wire.failed:
		// The connection has ended between two fragments, which the library takes for the
		// end of the message: it was never finished.
		return io.ErrUnexpectedEOF
	}
	s.framesIn++
	s.handle(kind, data, time.Now())
	return nil
}

// errTooBig: a message is longer than MaxMessageBytes.
var errTooBig = errors.New("the message is too big")

// readUpTo appends the message to buffer, which grows as the message comes, so that
// announcing a great message costs a client as much as it costs the service.
func readUpTo(message io.Reader, buffer []byte, limit int64) ([]byte, error) {
	for {
		if len(buffer) == cap(buffer) {
			// One byte past the limit is enough to see that it is exceeded.
			grown := make([]byte, len(buffer), min(2*int64(cap(buffer)), limit+1))
			copy(grown, buffer)
			buffer = grown
		}
		// No more than that is asked for, since the library waits until it has it all.
		n, err := message.Read(buffer[len(buffer):min(int64(cap(buffer)), limit+1)])
		buffer = buffer[:len(buffer)+n]
		switch {
		case int64(len(buffer)) > limit:
			return buffer, errTooBig
		case errors.Is(err, io.EOF):
			return buffer, nil
		case err != nil:
			return buffer, err
		}
	}
}

// handle answers a client's message or has it published. It keeps nothing of data.
func (s *session) handle(kind websocket.MessageType, data []byte, readAt time.Time) {
	s.mu.Lock()
	now := s.phase
	if now < phaseClosed {
		s.inFlight++
	}
	s.mu.Unlock()
	if now >= phaseClosed {
		return
	}
	var (
		f   frame
		err = errIntegrity
	)
	if kind == websocket.MessageText {
		f, err = decodeFrame(data)
	} else {
		f.answerTo = salvageReply(data)
	}
	to := f.answerTo
	switch {
	case s.limiter != nil && !s.limiter.AllowN(readAt, 1):
		s.answer(resultRateLimited, errorFrame(titleRateLimit, rateLimitDetails(s.hub.config.MessagesPerSecond), to))
	case err != nil:
		s.answer(resultInvalid, errorFrame(titleIntegrity, detailsIntegrity, to))
	case len(f.faults) > 0:
		s.answer(resultInvalid, faultsFrame(f.faults, to))
	case now != phaseOpen:
		s.settled(to, errClosing)
	default:
		s.hub.send.Send(context.Background(), s.user, f.draft, readAt, s.takeOff(to).settled)
	}
}

// takeOff notes a message that is about to be given to the publisher.
func (s *session) takeOff(to reply) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &flight{session: s, to: to, next: s.flights}
	if f.next != nil {
		f.next.prev = f
	}
	s.flights = f
	return f
}

// land takes a message off the list and reports whether it was on it.
func (s *session) land(f *flight) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.over {
		return false
	}
	f.over = true
	if f.prev != nil {
		f.prev.next = f.next
	} else {
		s.flights = f.next
	}
	if f.next != nil {
		f.next.prev = f.prev
	}
	f.prev, f.next = nil, nil
	return true
}

// giveUpFlights answers all messages that are still unconfirmed; what the publisher says
// of them later counts no more.
func (s *session) giveUpFlights() {
	for {
		s.mu.Lock()
		f := s.flights
		s.mu.Unlock()
		if f == nil {
			return
		}
		f.settled(app.ErrConfirmTimeout)
	}
}

// settled ends the flight of a message. It does not block.
func (s *session) settled(to reply, err error) {
	if err != nil {
		s.answer(resultFailed, errorFrame(titleDelivery, deliveryDetails(err), to))
		return
	}
	s.hub.meters.received[resultAccepted].Inc()
	s.mu.Lock()
	s.inFlight--
	s.signal()
	s.mu.Unlock()
}

// answer queues an error frame; its place in flight is free once it has been written.
func (s *session) answer(result string, frame []byte) {
	s.hub.meters.received[result].Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase >= phaseClosed {
		s.inFlight--
		s.signal()
		return
	}
	s.errorBytes += len(frame)
	s.push(outgoing{errors: frame})
	s.startWriter()
}

// ---- Writing

// What became of offering a delivery.
type offered uint8

const (
	offerTaken offered = iota
	offerFull
	offerRefused // the connection is closing
)

// offer takes the delivery where there is room, and writes it at once where the socket
// takes it: a goroutine costs more than it gains, unless it writes several of a burst
// together; and where a full queue closes the connection at once, a delivery must not wait
// for a goroutine to be run. It does not block. The session settles what it takes.
func (s *session) offer(p *parcel) offered {
	s.mu.Lock()
	result := s.offerLocked(p)
	mine, burst := s.claim(), false
	if mine && !s.hub.config.CloseWhenFull {
		now := time.Since(s.wire.began)
		burst = s.claimed > 0 && now-s.claimed < burstGap
		s.claimed = max(now, 1)
	}
	s.mu.Unlock()
	switch {
	case burst:
		go s.write(nil, true)
	case mine:
		s.write(nil, false)
	}
	return result
}

// offerUntil is like offer but waits for room until the deadline.
func (s *session) offerUntil(p *parcel, deadline time.Time) offered {
	var result offered
	s.await(deadline, func() bool {
		result = s.offerLocked(p)
		s.startWriter()
		return result != offerFull
	})
	return result
}

func (s *session) offerLocked(p *parcel) offered {
	switch {
	case s.phase >= phaseSealed || s.deaf:
		return offerRefused
	case s.deliveries >= s.hub.config.SendQueue:
		return offerFull
	}
	p.pending.Add(1)
	s.deliveries++
	s.push(outgoing{parcel: p})
	return offerTaken
}

// push queues a frame. The caller holds mu.
func (s *session) push(item outgoing) {
	if s.head > 0 && len(s.queue) == cap(s.queue) {
		n := copy(s.queue, s.queue[s.head:])
		clear(s.queue[n:])
		s.queue, s.head = s.queue[:n], 0
	}
	s.queue = append(s.queue, item)
}

// dropAll settles what waits to be written as undeliverable, for the reason given.
func (s *session) dropAll(reason string) {
	s.drop(reason, func(outgoing) bool { return true })
}

// dropDeliveries is dropAll for deliveries: errors wait on.
func (s *session) dropDeliveries(reason string) {
	s.drop(reason, func(item outgoing) bool { return item.parcel != nil })
}

func (s *session) drop(reason string, which func(outgoing) bool) {
	s.mu.Lock()
	var kept, dropped []outgoing
	for _, item := range s.queue[s.head:] {
		if which(item) {
			dropped = append(dropped, item)
		} else {
			kept = append(kept, item)
		}
	}
	s.queue, s.head = kept, 0
	s.forget(dropped)
	s.signal()
	s.mu.Unlock()
	for _, item := range dropped {
		if item.parcel != nil {
			s.hub.meters.dropped[reason].Inc()
			item.parcel.done()
		}
	}
}

// ---- Time

// tick is the hub's visit once every PingInterval. A peer from which nothing has come
// since the last ping was written is dropped, unless it was the service that did not
// listen; else it is pinged. A peer that does not take the ping ends by the deadline of
// that write. It does not block.
func (s *session) tick(now time.Time) {
	if !s.isHeld() && s.wire.silent() {
		s.lose()
		return
	}
	s.mu.Lock()
	s.setExpiry(now)
	s.mu.Unlock()
	s.wire.ping()
}

// setExpiry sets the timer of the token's end where that comes before the next visit, so
// that a connection has a timer only towards its end. The caller holds mu.
func (s *session) setExpiry(now time.Time) {
	if s.timer == nil && s.phase == phaseOpen && !s.expires.IsZero() && s.expires.Before(now.Add(2*s.hub.config.PingInterval)) {
		s.timer = time.AfterFunc(time.Until(s.expires), func() {
			s.close(app.CloseUnauthorized, closeReason(app.CloseUnauthorized))
		})
	}
}

func (s *session) isHeld() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

// ---- Ending

// note records why the service ends the connection, unless that is known already. The
// caller holds mu.
func (s *session) note(code app.CloseCode, reason string) {
	if s.code == 0 {
		s.code, s.reason = code, reason
	}
}

// close closes the connection in order: every frame that has been read is confirmed or
// gets its error, what is queued is written, then the close frame goes out. It returns
// at once and does nothing where the session is closing already. The reason has at most
// 123 bytes (RFC 6455, section 5.5).
func (s *session) close(code app.CloseCode, reason string) {
	s.closeBefore(code, reason, time.Now().Add(s.hub.config.ConfirmTimeout+settleGrace))
}

// closeBefore is like close, and the close frame goes out before the deadline.
func (s *session) closeBefore(code app.CloseCode, reason string, deadline time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != phaseOpen {
		return
	}
	s.phase = phaseClosing
	s.note(code, reason)
	s.stopTimer()
	s.signal()
	go s.shut(deadline)
}

// shut is the closer goroutine of an orderly close.
func (s *session) shut(deadline time.Time) {
	settled := func() bool {
		if s.phase == phaseClosing && !s.corked && s.inFlight == 0 {
			s.phase = phaseSealed
			s.signal()
		}
		return s.phase != phaseClosing
	}
	if !s.await(deadline, settled) {
		// A drain has less time than the broker: no frame may be left without an answer.
		s.giveUpFlights()
		deadline = deadline.Add(flushGrace)
		s.await(deadline, settled)
	}
	s.await(deadline, func() bool {
		if s.phase == phaseSealed && !s.writing && s.head == len(s.queue) && s.inFlight == 0 {
			s.phase = phaseClosed
		}
		return s.phase >= phaseClosed
	})
	s.mu.Lock()
	if s.phase < phaseClosed { // late: what still waits is given up
		s.phase = phaseClosed
		s.signal()
	}
	able := s.phase == phaseClosed && !s.corked && !s.writing
	frame, patience := closeFrame(s.code, s.reason), s.hub.config.WriteTimeout
	if s.code == app.CloseTooSlow {
		patience = closeWait
	}
	s.mu.Unlock()
	// The reader hears the answer, or waits for it in vain, and ends the session.
	if !able || s.writeClose(frame, patience) != nil {
		s.cut()
	}
}

// writeClose writes the close frame, unless one has gone out. Where that takes longer
// than patience the connection is cut.
func (s *session) writeClose(frame []byte, patience time.Duration) error {
	// The deadline is not enough: a pong that waits for the socket comes first.
	guard := time.AfterFunc(patience, s.cut)
	defer guard.Stop()
	if err := s.wire.writeClose(frame, time.Now().Add(patience)); err != nil && !errors.Is(err, errCloseSent) {
		return err
	}
	return nil
}

// closeTooSlow closes the connection with 4408, or goes on with the close that is under
// way. Deliveries are given up, and no more are taken; errors and the close frame are
// sent where the socket takes them. It returns at once.
func (s *session) closeTooSlow() {
	s.mu.Lock()
	s.deaf = true
	s.mu.Unlock()
	s.dropDeliveries(dropSlowConsumer)
	s.closeBefore(app.CloseTooSlow, closeReason(app.CloseTooSlow), time.Now().Add(slowCloseWait))
}

// lose ends a connection whose peer is gone.
func (s *session) lose() {
	s.mu.Lock()
	s.note(app.CloseAbnormal, "")
	s.cutLocked()
	s.mu.Unlock()
}

// cut ends the connection at once; the reader finds out and ends the session.
func (s *session) cut() {
	s.mu.Lock()
	s.cutLocked()
	s.mu.Unlock()
}

func (s *session) cutLocked() {
	s.phase = phaseDead
	s.stopTimer()
	s.signal()
	if s.wire != nil {
		s.wire.cut() // closing a socket does not block
	}
}

func (s *session) stopTimer() {
	if s.timer != nil {
		s.timer.Stop()
	}
}

// Who ended a connection, for the log.
const (
	byServer  = "server"
	byClient  = "client"
	byNetwork = "network"
)

// finish ends the session, once: the reader calls it last. err is what ended reading.
func (s *session) finish(err error) {
	s.hub.round.remove(s)
	code, by := s.end(err)
	s.cut()
	_ = s.ws.CloseNow() // the library lets go of what it has
	s.await(time.Time{}, func() bool { return !s.writing })
	reason := dropConnectionClosed
	if code == app.CloseTooSlow {
		reason = dropSlowConsumer
	}
	s.dropAll(reason)

	h := s.hub
	h.meters.connections.Dec()
	h.meters.closed(code)
	s.admission.Release()
	s.mu.Lock()
	framesOut := s.framesOut
	s.mu.Unlock()
	h.log.Info("connection closed",
		zap.String("request_id", s.requestID),
		zap.Stringer("user", s.user),
		zap.Stringer("client", s.client),
		zap.Duration("duration", time.Since(s.opened)),
		zap.Int("frames_in", s.framesIn),
		zap.Int("frames_out", framesOut),
		zap.Int64("bytes_in", s.wire.bytesIn.Load()),
		zap.Int64("bytes_out", s.wire.bytesOut.Load()),
		zap.String("code", h.meters.closeLabel(code)),
		zap.String("closed_by", by),
	)
	h.leave(s)
	h.unregister(s)
}

// end does what is left to do for the client, and says which close code the connection
// ended with, and who ended it. err is what ended reading.
func (s *session) end(err error) (app.CloseCode, string) {
	s.mu.Lock()
	dead := s.phase == phaseDead
	s.mu.Unlock()
	var received websocket.CloseError
	closed := errors.As(err, &received)
	switch {
	case dead:
	case closed:
		s.answerClose(received)
	case err != nil && !s.wire.failed && !s.wire.stalled.Load():
		// Reading failed though the socket did not: the peer broke the protocol. What it
		// sent before is dealt with all the same; what else it sends means nothing.
		s.close(app.CloseCode(websocket.StatusProtocolError), "protocol error")
		s.wire.discard()
	}
	s.mu.Lock()
	code := s.code
	s.mu.Unlock()
	switch {
	case code == app.CloseAbnormal:
		return code, byNetwork
	case code != 0:
		return code, byServer
	case closed:
		return app.CloseCode(received.Code), byClient
	case s.wire.stalled.Load():
		return app.CloseTooSlow, byServer
	}
	return app.CloseAbnormal, byNetwork
}

// answerClose answers the client's close frame with its code (RFC 6455, section 5.5.1).
// The errors that wait go out before, as far as the socket takes them soon; and the
// connection's place is free before the client can know that it has ended.
func (s *session) answerClose(received websocket.CloseError) {
	s.member.remove(s)
	s.admission.Release()
	s.mu.Lock()
	s.deaf = true
	s.mu.Unlock()
	s.dropDeliveries(dropConnectionClosed)
	s.await(time.Now().Add(flushGrace), func() bool {
		if !s.writing && s.head == len(s.queue) {
			s.phase = max(s.phase, phaseClosed)
		}
		return s.phase >= phaseClosed
	})
	s.mu.Lock()
	s.phase = max(s.phase, phaseClosed)
	s.mu.Unlock()
	reason := received.Reason
	if !utf8.ValidString(reason) {
		reason = "" // an answer must not be malformed as well
	}
	_ = s.writeClose(closeFrame(app.CloseCode(received.Code), reason), closeWait)
}
