package hub

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// The end of a connection in the middle of a message does not finish the message.
func TestUnfinishedMessageIsNoMessage(t *testing.T) {
	half := goodFrame[:len(goodFrame)/2]
	for name, send := range map[string]func(c *client){
		"a first fragment that would do": func(c *client) { c.write(opText, []byte(goodFrame)) },
		"two fragments that would do": func(c *client) {
			c.write(opText, []byte(half))
			c.write(opContinuation, []byte(goodFrame[len(half):]))
		},
		"within a frame": func(c *client) {
			frame := c.encode(fin|opText, []byte(goodFrame))
			c.raw(frame[:len(frame)-1])
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, h *house) {
				c := h.open(1)
				send(c)
				_ = c.conn.Close()
				h.awaitClosed(1, 1006)
				if n := h.publisher.count(); n != 0 {
					t.Errorf("%d messages were published", n)
				}
			})
		})
	}
}

// A client that breaks the protocol gets its 1002 only after what it sent before has been
// confirmed or has got its error.
func TestProtocolErrorWaitsForWhatWasRead(t *testing.T) {
	for name, violate := range map[string]func(c *client){
		"unmasked frame":     func(c *client) { c.raw([]byte{fin | opText, 1, 'x'}) },
		"reserved bit":       func(c *client) { c.write(fin|0x40|opText, []byte("x")) },
		"unknown opcode":     func(c *client) { c.write(fin|0x3, nil) },
		"stray continuation": func(c *client) { c.write(fin|opContinuation, []byte("x")) },
		"long ping":          func(c *client) { c.write(fin|opPing, make([]byte, 126)) },
		"close code 1005":    func(c *client) { c.sendClose(1005, "") },
		"close payload of one byte": func(c *client) {
			c.write(fin|opClose, []byte{3})
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(h *house) { h.publisher.hold = true }, func(t *testing.T, h *house) {
				c := h.open(1)
				c.patience = time.Minute
				c.message("m-1")
				c.message("m-2")
				synctest.Wait()
				began := time.Now()
				violate(c)
				synctest.Wait()
				h.publisher.at(0).settled(nil)
				h.publisher.at(1).settled(app.ErrNotAcknowledged)
				c.expectError("Delivery error.", "m-2")
				c.awaitClose(1002)
				took(t, "the close", began, 0, closeWait)
				h.awaitClosed(1, 0)
			})
		})
	}
}

// The same where the broker never says anything: in time, and with an error for each.
func TestProtocolErrorIsBounded(t *testing.T) {
	inBubble(t, func(h *house) { h.publisher.hold = true }, func(t *testing.T, h *house) {
		c := h.open(1)
		c.patience = time.Minute
		c.message("m-1")
		synctest.Wait()
		began := time.Now()
		c.raw([]byte{fin | opText, 1, 'x'})
		c.expectError("Delivery error.", "m-1")
		c.awaitClose(1002)
		took(t, "the close", began, h.config.ConfirmTimeout, h.config.ConfirmTimeout+settleGrace+flushGrace+closeWait)
	})
}

// A 4408 that can be sent comes after the errors, too.
func TestTooSlowAnswersWhatWasRead(t *testing.T) {
	inBubble(t, func(h *house) { h.config.SendQueue, h.config.CloseWhenFull, h.publisher.hold = 1, true, true }, func(t *testing.T, h *house) {
		c := h.open(1)
		for _, id := range []string{"m-1", "m-2", "m-3"} {
			c.message(id)
		}
		synctest.Wait()
		h.publisher.at(1).settled(app.ErrUnroutable)
		synctest.Wait()
		var settled []*settlement
		for n := range 3 {
			s, _ := h.inboxes.publish(userID(t, 1), "", fmt.Sprint(n))
			settled = append(settled, s)
			synctest.Wait()
		}
		h.publisher.at(0).settled(app.ErrNotAcknowledged)
		_, texts := c.untilClose(4408)
		answers := strings.Join(texts, "\n")
		for _, id := range []string{"m-1", "m-2", "m-3"} {
			if strings.Count(answers, `"in_reply_to":"`+id+`"`) != 1 {
				t.Errorf("%s was read and is neither confirmed nor answered once: %s", id, answers)
			}
		}
		h.awaitClosed(1, 4408)
		for n, s := range settled {
			if acks, rejects := s.count(); acks != 1 || rejects != 0 {
				t.Errorf("delivery %d: %d acks, %d rejects", n, acks, rejects)
			}
		}
	})
}

// A client that has heard the answer to its close frame can take the place of its old
// connection, and has heard before it what became of what it sent.
func TestPlaceIsFreeOnceTheCloseIsAnswered(t *testing.T) {
	for name, limit := range map[string]func(*house){
		"of the user":     func(h *house) { h.config.MaxConnectionsPerUser = 1 },
		"of the instance": func(h *house) { h.limits.MaxConnections = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, false, limit)
			for range 50 {
				c := h.open(1)
				both := append(c.encode(fin|opText, []byte("junk")), c.encode(fin|opClose, []byte{3, 232})...)
				c.raw(both)
				if got := c.next(); !strings.Contains(got, "Data integrity error.") {
					t.Errorf("received %q, want the error before the close", got)
				}
				opcode, payload, err := c.frame()
				if err != nil || opcode != opClose || binary.BigEndian.Uint16(payload) != 1000 {
					t.Fatalf("frame %x %q, %v; want close 1000", opcode, payload, err)
				}
			}
		})
	}
}

// An answer must not be malformed where the client's close frame is.
func TestMalformedReasonIsNotRepeated(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		c := h.open(1)
		c.write(fin|opClose, []byte{3, 232, 0xff})
		if opcode, payload, err := c.frame(); err != nil || opcode != opClose || string(payload) != "\x03\xe8" {
			t.Errorf("frame %x %q, %v", opcode, payload, err)
		}
		h.awaitClosed(1, 1000)
	})
}

// A process that was not run for a while has heard nobody, which is nobody's fault.
func TestLateVisitDropsNobody(t *testing.T) {
	visits := 0
	r := newRound(time.Minute, func(time.Time) { visits++ })
	near, far := net.Pipe()
	s := &session{hub: &Hub{config: Config{PingInterval: time.Minute}}, wire: newWire(near, time.Minute)}
	pinged := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(far, make([]byte, len(pingFrame)))
		pinged <- err
	}()
	r.count, r.next = 1, time.Now().Add(-10*time.Minute)
	r.slots[r.hand] = []*session{s}
	r.timer = time.AfterFunc(time.Hour, func() {})
	defer r.timer.Stop()
	r.visit()
	if err := <-pinged; err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	if s.phase == phaseDead || visits != 1 {
		t.Errorf("phase %d after %d visits", s.phase, visits)
	}
	s.mu.Unlock()
	if wait := time.Until(r.next); wait > r.step {
		t.Errorf("the next visit is in %s", wait)
	}
	s.cut()
	_ = far.Close()
}

// A join that fails keeps no delivery.
func TestFailedJoinSettlesWhatItTook(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		h.open(1) // the user has a connection, and so an inbox
		grant := app.Grant{User: userID(t, 1), TokenExpiresAt: time.Now().Add(time.Hour)}
		s := newSession(h.hub, &app.Admission{Grant: grant}, clientAddress("127.0.0.1:1"), "")
		if err := h.hub.join(lateCancel{t.Context()}, s); err == nil {
			t.Fatal("a client that has left has joined")
		}
		// A delivery that was on its way to the session meanwhile:
		p := &parcel{delivery: app.Delivery{Body: []byte(`1`), Acks: new(settlement)}, unsettled: new(atomic.Int64)}
		if got := s.offer(p); got != offerRefused {
			t.Errorf("a session that is nobody's takes a delivery: %d", got)
		}
	})
}

// lateCancel is a context that has ended, which shows only to who asks.
type lateCancel struct{ context.Context }

func (lateCancel) Done() <-chan struct{} { return nil }
func (lateCancel) Err() error            { return context.Canceled }

// Whoever brings a delivery is not kept by a client that makes errors as fast as they are
// written.
func TestDeliveryIsBroughtInBoundedTime(t *testing.T) {
	h := newHouse(t, false, func(h *house) { h.config.CloseWhenFull = true })
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	s := newSession(h.hub, &app.Admission{Grant: app.Grant{User: userID(t, 1)}}, clientAddress("127.0.0.1:1"), "")
	s.wire, s.corked = newWire(near, time.Second), false
	socket := &eagerSocket{fd: null.Fd(), left: 10_000, during: func() {
		s.handle(websocket.MessageText, []byte("x"), time.Now())
	}}
	s.wire.raw = socket
	p := &parcel{delivery: app.Delivery{Body: []byte(`"hi"`), Acks: new(settlement)}, unsettled: new(atomic.Int64)}
	p.pending.Store(1)
	s.offer(p)
	s.await(time.Time{}, func() bool { return !s.writing })
	if socket.inline > 1 {
		t.Errorf("one delivery took %d writes of who brought it", socket.inline)
	}
	s.cut()
}

// eagerSocket always has room, and during each write something happens.
type eagerSocket struct {
	fd     uintptr
	left   int
	inline int
	during func()
}

func (*eagerSocket) Control(func(uintptr)) error   { return nil }
func (*eagerSocket) Read(func(uintptr) bool) error { return nil }

func (e *eagerSocket) Write(write func(uintptr) bool) error {
	if strings.Contains(string(debug.Stack()), ".(*session).offer(") {
		e.inline++
	}
	if e.left > 0 {
		e.left--
		e.during()
	}
	write(e.fd)
	return nil
}
