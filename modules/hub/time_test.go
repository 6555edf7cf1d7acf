package hub

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// inBubble runs test in a synctest bubble with a house that is served over pipes: the
// real library, and time that passes at once.
func inBubble(t *testing.T, change func(*house), test func(t *testing.T, h *house)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t, newHouse(t, true, change))
	})
}

// took checks how much time has passed since began.
func took(t *testing.T, what string, began time.Time, least, most time.Duration) {
	t.Helper()
	if elapsed := time.Since(began); elapsed < least || elapsed > most {
		t.Errorf("%s after %s, want %s to %s", what, elapsed, least, most)
	}
}

func TestPeerThatAnswersPingsStays(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		c := h.open(1)
		c.patience = time.Hour
		began := time.Now()
		for i := 1; i <= 100; i++ {
			opcode, payload, err := c.frame()
			if err != nil || opcode != opPing {
				t.Fatalf("frame %x, %v; want a ping", opcode, err)
			}
			took(t, "a ping", began, time.Duration(i)*25*time.Second, time.Duration(i)*25*time.Second)
			c.write(fin|opPong, payload)
			if time.Since(began) > 50*time.Minute {
				break
			}
		}
		c.message("m-1")
		synctest.Wait()
		if h.publisher.count() != 1 {
			t.Error("the connection is of no use any more")
		}
	})
}

func TestPeerThatAnswersNothingIsDropped(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		c := h.open(1)
		c.patience = time.Hour
		began := time.Now()
		c.gone()
		took(t, "dropped", began, 50*time.Second, 50*time.Second)
		h.awaitClosed(1, 1006)
	})
}

func TestPeerThatTalksNeedNotPong(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		c := h.open(1)
		c.patience = time.Hour
		stop := make(chan struct{})
		go func() { // reads, and answers nothing
			defer close(stop)
			for {
				if _, _, err := c.frame(); err != nil {
					return
				}
			}
		}()
		for i := range 30 {
			<-time.After(20 * time.Second)
			c.message(fmt.Sprint(i))
		}
		synctest.Wait()
		if h.publisher.count() != 30 {
			t.Errorf("%d messages came through, want 30", h.publisher.count())
		}
		_ = c.conn.Close()
		<-stop
	})
}

func TestTokenExpiryClosesOnTime(t *testing.T) {
	for _, lifetime := range []time.Duration{3 * time.Second, 25 * time.Second, 62 * time.Second} {
		// A peer that does not answer its ping must not hold the expiry up either.
		for _, answers := range []bool{true, false} {
			inBubble(t, nil, func(t *testing.T, h *house) {
				if !answers && lifetime > 45*time.Second {
					return // it would be dropped before
				}
				began := time.Now()
				c := h.openWith(h.pass(1, lifetime))
				c.patience = time.Hour
				for {
					opcode, payload, err := c.frame()
					if err != nil {
						t.Fatal(err)
					}
					if opcode == opPing && answers {
						c.write(fin|opPong, payload)
					}
					if opcode == opClose {
						if !strings.HasPrefix(string(payload), "\x11\x31") { // 4401
							t.Errorf("close frame %q", payload)
						}
						break
					}
				}
				took(t, "closed", began, lifetime, lifetime)
				h.awaitClosed(1, 4401)
			})
		}
	}
}

func TestTokenExpiryCanBeTurnedOff(t *testing.T) {
	inBubble(t, func(h *house) { h.config.CloseOnTokenExpiry = false }, func(t *testing.T, h *house) {
		c := h.openWith(h.pass(1, time.Second))
		<-time.After(5 * time.Second)
		c.message("m-1")
		h.eventually("the message", func() bool { return h.publisher.count() == 1 })
	})
}

func TestWriteThatDoesNotFinishIs4408(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		c := h.open(1)
		began := time.Now()
		settled, _ := h.inboxes.publish(userID(t, 1), "", `"x"`)
		h.eventually("4408", func() bool { return h.gauge("websocket_closes_total", "4408") == 1 })
		took(t, "closed", began, 10*time.Second, 10*time.Second+100*time.Millisecond)
		h.eventually("the ack", func() bool { acks, rejects := settled.count(); return acks == 1 && rejects == 0 })
		if h.gauge("websocket_deliveries_dropped_total", dropSlowConsumer) != 1 {
			t.Error("the drop is not counted")
		}
		c.gone()
	})
}

func TestPeerThatTakesDripsGainsNoTime(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		c := h.open(1)
		began := time.Now()
		h.inboxes.publish(userID(t, 1), "", `"`+strings.Repeat("x", 4000)+`"`)
		buffer := make([]byte, 100)
		for time.Since(began) < 30*time.Second {
			_ = c.conn.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := c.conn.Read(buffer); err != nil {
				break
			}
			<-time.After(time.Second)
		}
		took(t, "closed", began, 10*time.Second, 11*time.Second)
		h.awaitClosed(1, 4408)
	})
}

func TestPingIntoAFullSocketIs4408(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		c := h.open(1)
		began := time.Now()
		// A pipe has no room at all, so the ping itself can't be written.
		for h.gauge("websocket_closes_total", "4408") == 0 && time.Since(began) < time.Minute {
			<-time.After(time.Second)
		}
		took(t, "closed", began, 30*time.Second, 36*time.Second)
		h.awaitClosed(1, 4408)
		c.gone()
	})
}

// TestCloseWaitsForWhatWasRead holds the contract's order: each frame that was read has
// its confirm or its error, and what was queued is written, before the close frame.
func TestCloseWaitsForWhatWasRead(t *testing.T) {
	inBubble(t, func(h *house) { h.publisher.hold = true }, func(t *testing.T, h *house) {
		c := h.open(1)
		c.message("a")
		c.message("b")
		h.eventually("two messages", func() bool { return h.publisher.count() == 2 })
		first, _ := h.inboxes.publish(userID(t, 1), "", `"before"`)
		control, _ := h.inboxes.publish(userID(t, 1), app.ControlDisconnect, `{"reason":"banned"}`)
		if acks, _ := control.count(); acks != 1 {
			t.Error("the control message is not settled")
		}
		c.expect(`"before"`)
		c.message("c") // read while closing: not published
		c.expectError(titleDelivery, "c")
		second, _ := h.inboxes.publish(userID(t, 1), "", `"while closing"`)
		c.expect(`"while closing"`)
		h.publisher.at(1).settled(app.ErrConfirmTimeout)
		c.expectError(titleDelivery, "b")
		<-time.After(2 * time.Second)
		h.publisher.at(0).settled(nil)
		if reason := c.awaitClose(4403); reason != "banned" {
			t.Errorf("reason %q", reason)
		}
		h.awaitClosed(1, 4403)
		if h.publisher.count() != 2 {
			t.Errorf("%d messages published, want 2", h.publisher.count())
		}
		for _, settled := range []*settlement{first, second} {
			h.eventually("the ack", func() bool { acks, _ := settled.count(); return acks == 1 })
		}
		for result, want := range map[string]float64{resultAccepted: 1, resultFailed: 2, resultInvalid: 0} {
			if got := h.gauge("websocket_messages_received_total", result); got != want {
				t.Errorf("%s: %v, want %v", result, got, want)
			}
		}
	})
}

// unconfirmedError is the answer to a message that was not confirmed in time.
func unconfirmedError(answerTo string) string {
	return `{"title":"Delivery error.","details":"The message was not confirmed in time, so it may or may not be stored. ` +
		`Send it again under the same client_message_id.","in_reply_to":"` + answerTo + `"}`
}

func TestCloseIsBoundedWhereNothingSettles(t *testing.T) {
	inBubble(t, func(h *house) { h.publisher.hold = true }, func(t *testing.T, h *house) {
		c := h.open(1)
		c.message("a")
		h.eventually("the message", func() bool { return h.publisher.count() == 1 })
		began := time.Now()
		h.inboxes.publish(userID(t, 1), app.ControlDisconnect, `{}`)
		c.expect(unconfirmedError("a"))
		if reason := c.awaitClose(4403); reason != "disconnected" {
			t.Errorf("reason %q", reason)
		}
		took(t, "closed", began, 6*time.Second, 6*time.Second+flushGrace)
		h.publisher.at(0).settled(app.ErrConfirmTimeout) // late, and harmless
		h.awaitClosed(1, 4403)
	})
}

func TestPeerThatIgnoresTheCloseIsCut(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		c := h.open(1)
		began := time.Now()
		h.inboxes.publish(userID(t, 1), app.ControlDisconnect, `{}`)
		if opcode, _, err := c.frame(); err != nil || opcode != opClose {
			t.Fatalf("frame %x, %v", opcode, err)
		}
		// It goes on talking instead: what it says is discarded.
		talked := make(chan struct{})
		go func() {
			defer close(talked)
			for range 1000 {
				if _, err := c.conn.Write(c.encode(fin|opText, []byte(goodFrame))); err != nil {
					return
				}
				<-time.After(100 * time.Millisecond)
			}
		}()
		c.gone()
		took(t, "cut", began, closeWait, closeWait+100*time.Millisecond)
		<-talked
		h.awaitClosed(1, 4403)
		if h.publisher.count() != 0 {
			t.Error("a message was published after the close frame")
		}
	})
}

func TestInFlightIsBounded(t *testing.T) {
	inBubble(t, func(h *house) { h.publisher.hold = true }, func(t *testing.T, h *house) {
		c := h.open(1)
		c.patience = time.Hour
		pinged := make(chan struct{}, 100)
		reading := make(chan struct{})
		go func() {
			defer close(reading)
			for {
				opcode, _, err := c.frame()
				if err != nil {
					return
				}
				if opcode == opPing {
					// The pong would wait in the socket, behind the messages.
					pinged <- struct{}{}
				}
			}
		}()
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for i := range maxInFlight + 10 {
				c.message(fmt.Sprint(i))
			}
		}()
		<-time.After(10 * time.Minute) // many ping intervals
		if got := h.publisher.count(); got != maxInFlight {
			t.Fatalf("%d messages in flight, want %d", got, maxInFlight)
		}
		if len(pinged) < 10 || h.gauge("websocket_hub_active_connections") != 1 {
			t.Errorf("a connection whose reader is held was not kept: %d pings", len(pinged))
		}
		for i := range 10 {
			h.publisher.at(i).settled(nil)
		}
		<-sent
		h.eventually("the rest", func() bool { return h.publisher.count() == maxInFlight+10 })
		_ = c.conn.Close()
		<-reading
	})
}

func TestErrorBytesAreBounded(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		c := h.open(1)
		c.patience = time.Hour
		id := strings.Repeat("x", 60000) // too long, and repeated in the error
		go func() {
			for range 100 {
				if _, err := c.conn.Write(c.encode(fin|opText, []byte(strings.Replace(goodFrame, "m-1", id, 1)))); err != nil {
					return
				}
			}
		}()
		<-time.After(5 * time.Second)
		h.hub.mu.Lock()
		for s := range h.hub.sessions {
			s.mu.Lock()
			if s.errorBytes > maxErrorBytes+61000 {
				t.Errorf("%d bytes of errors wait", s.errorBytes)
			}
			s.mu.Unlock()
		}
		h.hub.mu.Unlock()
		h.awaitClosed(1, 4408) // it never reads
	})
}

func TestSlowDeviceAmongThree(t *testing.T) {
	inBubble(t, func(h *house) { h.config.SendQueue = 4 }, func(t *testing.T, h *house) {
		var quick [2][]string
		done := make(chan struct{}, 2)
		for i := range quick {
			c := h.open(1)
			c.patience = time.Hour
			go func() {
				defer func() { done <- struct{}{} }()
				for len(quick[i]) < 20 {
					opcode, payload, err := c.frame()
					if err != nil {
						return
					}
					if opcode == opText {
						quick[i] = append(quick[i], string(payload))
					}
				}
			}()
		}
		slow := h.open(1) // never reads
		began := time.Now()
		var settled []*settlement
		var want []string
		for n := range 20 {
			s, ok := h.inboxes.publish(userID(t, 1), "", fmt.Sprint(n))
			if !ok {
				t.Fatal("no inbox")
			}
			settled, want = append(settled, s), append(want, fmt.Sprint(n))
		}
		took(t, "all delivered", began, 10*time.Second, 12*time.Second)
		<-done
		<-done
		for i := range quick {
			if fmt.Sprint(quick[i]) != fmt.Sprint(want) {
				t.Errorf("device %d received %q", i, quick[i])
			}
		}
		h.awaitClosed(1, 4408)
		for n, s := range settled {
			h.eventually(fmt.Sprintf("ack of delivery %d", n), func() bool { acks, rejects := s.count(); return acks == 1 && rejects == 0 })
		}
		if got := h.gauge("websocket_messages_delivered_total"); got != 40 {
			t.Errorf("%v deliveries counted, want 40", got)
		}
		slow.gone()
	})
}

func TestFullQueueClosesAtOnceWhereUsersShareOne(t *testing.T) {
	inBubble(t, func(h *house) { h.config.SendQueue, h.config.CloseWhenFull = 4, true }, func(t *testing.T, h *house) {
		slow := h.open(1)
		began := time.Now()
		var settled []*settlement
		for n := range 10 {
			s, ok := h.inboxes.publish(userID(t, 1), "", fmt.Sprint(n))
			if !ok {
				t.Fatal("no inbox")
			}
			settled = append(settled, s)
		}
		took(t, "all taken", began, 0, 0)
		h.awaitClosed(1, 4408)
		took(t, "closed", began, 0, slowCloseWait+closeWait+100*time.Millisecond)
		for n, s := range settled {
			h.eventually(fmt.Sprintf("ack of delivery %d", n), func() bool { acks, _ := s.count(); return acks == 1 })
		}
		slow.gone()
	})
}

// Many users who are each a little slow must not use up what all share.
func TestManySlowClientsHoldUpNobody(t *testing.T) {
	const slow, prefetch = 12, 40
	inBubble(t, func(h *house) {
		h.config.SendQueue, h.config.CloseWhenFull, h.config.SharedPrefetch = 64, true, prefetch
	}, func(t *testing.T, h *house) {
		healthy := h.open(100)
		for user := range slow {
			h.open(int64(user + 1))
		}
		var settled []*settlement
		for n := range 10 * slow {
			<-time.After(100 * time.Millisecond)
			s, ok := h.inboxes.publish(userID(t, int64(n%slow+1)), "", fmt.Sprint(n))
			if !ok {
				break // its connection is closed
			}
			settled = append(settled, s)
			synctest.Wait()
			waiting := 0
			for _, s := range settled {
				if acks, _ := s.count(); acks == 0 {
					waiting++
				}
			}
			if waiting >= prefetch {
				t.Fatalf("%d deliveries wait, and nobody else gets any", waiting)
			}
			h.inboxes.publish(userID(t, 100), "", fmt.Sprint(n))
			healthy.expect(fmt.Sprint(n))
		}
		if closed := h.gauge("websocket_deliveries_dropped_total", dropSlowConsumer); closed == 0 {
			t.Error("no delivery of a slow connection was given up")
		}
	})
}

// TestSlowestIsClosedFirst: where many sockets are stuck with one delivery each, those go
// that have been for the longest time, as many as must, and not one for which more waits
// just now.
func TestSlowestIsClosedFirst(t *testing.T) {
	const slow, prefetch = 40, 40
	const room = prefetch * 3 / 4
	inBubble(t, func(h *house) {
		h.config.SendQueue, h.config.CloseWhenFull, h.config.SharedPrefetch = 64, true, prefetch
	}, func(t *testing.T, h *house) {
		healthy := h.open(100)
		clients := make([]*client, slow)
		for user := range clients {
			clients[user] = h.open(int64(user + 1))
		}
		for user := range clients {
			<-time.After(100 * time.Millisecond)
			if _, ok := h.inboxes.publish(userID(t, int64(user+1)), "", fmt.Sprint(user)); !ok {
				t.Fatalf("connection %d has gone before anything was published for it", user)
			}
			synctest.Wait()
			if user%5 > 0 {
				continue
			}
			for n := range 3 {
				h.inboxes.publish(userID(t, 100), "", fmt.Sprint(n))
			}
			for n := range 3 {
				healthy.expect(fmt.Sprint(n))
			}
			synctest.Wait()
		}
		// The last three bursts find the healthy one's three waiting beside all others.
		const closed, more = slow - room, 3
		<-time.After(time.Second)
		if n := h.gauge("websocket_closes_total", "4408"); n < closed || n > closed+more {
			t.Errorf("%v connections were closed, %d are enough", n, closed)
		}
		for user := closed + more; user < slow; user++ {
			clients[user].expect(fmt.Sprint(user))
		}
	})
}

// TestFullSocketsAreGivenTime: sockets that are full for the moment, of which a broadcast
// makes many, cost nobody the connection; those that stay full do, also where nothing
// more comes, since all of the prefetch waits for them.
func TestFullSocketsAreGivenTime(t *testing.T) {
	const users, prefetch = 40, 40
	inBubble(t, func(h *house) {
		h.config.SendQueue, h.config.CloseWhenFull, h.config.SharedPrefetch = 64, true, prefetch
	}, func(t *testing.T, h *house) {
		clients := make([]*client, users)
		for user := range clients {
			clients[user] = h.open(int64(user + 1))
		}
		broadcast := func(body string) {
			for user := range clients {
				h.inboxes.publish(userID(t, int64(user+1)), "", body)
			}
			synctest.Wait()
		}
		broadcast("1")
		<-time.After(stuckGrace - relieveEvery)
		for _, c := range clients {
			c.expect("1")
		}
		<-time.After(2 * time.Second)
		if n := h.gauge("websocket_closes_total", "4408"); n != 0 {
			t.Fatalf("%v connections were closed that read within %s", n, stuckGrace)
		}
		broadcast("2")
		<-time.After(stuckGrace + relieveEvery + slowCloseWait + flushGrace + time.Millisecond)
		if n := h.hub.unsettled.Load(); n != prefetch*3/4 {
			t.Errorf("%d deliveries wait", n)
		}
		h.awaitClosed(prefetch/4, 4408)
	})
}

// Whom it would relieve nobody to close is not closed.
func TestSlowestHasDeliveries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := new(stuck)
		errorsOnly, given, closing := &session{}, &session{deliveries: 2, deaf: true}, &session{deliveries: 3, phase: phaseClosing}
		for _, s := range []*session{errorsOnly, given, closing} {
			k.add(s)
		}
		if slowest, pending := k.slowest(); slowest != nil || pending != 2 {
			t.Errorf("at once: %v, %d pending", slowest, pending)
		}
		<-time.After(stuckGrace)
		k.add(&session{deliveries: 9})
		if slowest, pending := k.slowest(); slowest != closing || pending != 2 {
			t.Errorf("after the grace: %v, %d pending", slowest, pending)
		}
	})
}

func TestTooSlowGetsItsCloseFrameWhereItCan(t *testing.T) {
	inBubble(t, func(h *house) { h.config.SendQueue, h.config.CloseWhenFull = 1, true }, func(t *testing.T, h *house) {
		c := h.open(1)
		for n := range 3 {
			h.inboxes.publish(userID(t, 1), "", fmt.Sprint(n))
			synctest.Wait()
		}
		// The first is being written; the others are given up.
		if reason, texts := c.untilClose(4408); reason != "too slow" || fmt.Sprint(texts) != "[0]" {
			t.Errorf("reason %q after %q", reason, texts)
		}
		h.awaitClosed(1, 4408)
	})
}

func TestDrainSpreadsItsCloses(t *testing.T) {
	const connections = 20
	inBubble(t, nil, func(t *testing.T, h *house) {
		closedAt := make(chan time.Duration, connections)
		began := time.Now()
		for i := range connections {
			c := h.open(int64(i + 1))
			c.patience = time.Hour
			go func() {
				if reason := c.awaitClose(1012); reason != "service restart" {
					t.Errorf("reason %q", reason)
				}
				closedAt <- time.Since(began)
			}()
		}
		if err := NewDrain(h.hub).Stop(t.Context()); err != nil {
			t.Error(err)
		}
		took(t, "drained", began, 1900*time.Millisecond, 2*time.Second)
		var last time.Duration
		for i := range connections {
			at := <-closedAt
			if want := time.Duration(i) * 100 * time.Millisecond; at < want || at > want+50*time.Millisecond {
				t.Errorf("close %d after %s, want %s", i, at, want)
			}
			last = at
		}
		if last == 0 {
			t.Error("no spread")
		}
		h.awaitClosed(connections, 1012)
		if _, response := h.request(upgradeRequest(h.pass(1, time.Hour))); response.StatusCode != 503 || h.passes.size() != 1 {
			t.Errorf("after the drain: status %d, %d passes left", response.StatusCode, h.passes.size())
		}
		if h.connect.Draining() == nil {
			t.Error("still ready")
		}
	})
}

func TestDrainWaitsForConfirms(t *testing.T) {
	inBubble(t, func(h *house) { h.publisher.hold = true }, func(t *testing.T, h *house) {
		c := h.open(1)
		c.message("a")
		c.message("b")
		h.eventually("the messages", func() bool { return h.publisher.count() == 2 })
		began := time.Now()
		done := make(chan error, 1)
		go func() { done <- NewDrain(h.hub).Stop(t.Context()) }()
		<-time.After(3 * time.Second)
		h.publisher.at(0).settled(nil)
		h.publisher.at(1).settled(app.ErrNotAcknowledged)
		c.expectError(titleDelivery, "b")
		c.awaitClose(1012)
		if err := <-done; err != nil {
			t.Error(err)
		}
		took(t, "drained", began, 3*time.Second, 3*time.Second+100*time.Millisecond)
	})
}

// TestDrainRemovesInboxesFirst has the broker hand a last message over while it removes
// the inbox: the connection that is closed last must get it before its close frame.
func TestDrainRemovesInboxesFirst(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		h.inboxes.closing = func(user domain.UserID) {
			<-time.After(100 * time.Millisecond)
			if _, ok := h.inboxes.publish(user, "", `{"last":true}`); !ok {
				t.Error("the inbox is gone already")
			}
		}
		last := make(chan int, 2)
		for range 2 {
			c := h.open(1)
			go func() {
				_, texts := c.untilClose(1012)
				last <- len(texts)
			}()
		}
		if err := NewDrain(h.hub).Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if first, second := <-last, <-last; first != 0 || second != 1 {
			t.Errorf("the first to be closed got %d messages, the last %d", first, second)
		}
		h.awaitCount(0, "websocket_deliveries_dropped_total", dropConnectionClosed)
		h.awaitCount(0, "websocket_deliveries_dropped_total", dropNoConnection)
	})
}

// An inbox may take its time as long as what the broker has handed over is written.
func TestDrainWaitsForWhatWasTaken(t *testing.T) {
	const count = 20
	inBubble(t, func(h *house) {
		h.config.DrainTimeout = 20 * time.Second
		h.inboxes.closing = func(user domain.UserID) {
			for n := range count { // 6 s, with a reader that takes its time
				<-time.After(300 * time.Millisecond)
				h.inboxes.publish(user, "", fmt.Sprint(n))
			}
		}
	}, func(t *testing.T, h *house) {
		c := h.open(1)
		c.patience = time.Minute
		got := make(chan int, 1)
		go func() {
			_, texts := c.untilClose(1012)
			got <- len(texts)
		}()
		if err := NewDrain(h.hub).Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if n := <-got; n != count {
			t.Errorf("%d of %d deliveries came before the close", n, count)
		}
	})
}

// A broker that removes one inbox after the other, and needs longer for all of them than a
// close waits for one, takes nothing for a connection that is past its close frame.
func TestDrainWaitsForASlowBroker(t *testing.T) {
	const users = 8
	inBubble(t, func(h *house) {
		h.config.DrainTimeout = 20 * time.Second
		h.config.DrainWindow = 100 * time.Millisecond
		broker := make(chan struct{}, 1) // holds a token while it removes an inbox
		h.inboxes.closing = func(user domain.UserID) {
			broker <- struct{}{}
			<-time.After(700 * time.Millisecond)
			h.inboxes.publish(user, "", `{"last":true}`)
			<-broker
		}
	}, func(t *testing.T, h *house) {
		got := make(chan int, users)
		for user := range int64(users) {
			c := h.open(user + 1)
			c.patience = time.Minute
			go func() {
				_, texts := c.untilClose(1012)
				got <- len(texts)
			}()
		}
		if err := NewDrain(h.hub).Stop(t.Context()); err != nil {
			t.Error(err)
		}
		for range users {
			if n := <-got; n != 1 {
				t.Errorf("a client got %d messages before the close", n)
			}
		}
	})
}

func TestDrainKeepsItsSlice(t *testing.T) {
	inBubble(t, func(h *house) {
		h.publisher.hold = true
		h.config.DrainTimeout = 4 * time.Second
		h.inboxes.closing = func(user domain.UserID) {
			if user.Int64() == 3 {
				<-time.After(5 * time.Second) // a broker that answers late
			}
		}
	}, func(t *testing.T, h *house) {
		silent, busy, deaf := h.open(1), h.open(2), h.open(3)
		busy.message("a") // is never confirmed
		h.eventually("the message", func() bool { return h.publisher.count() == 1 })
		began := time.Now()
		ended := make(chan struct{}, 2)
		go func() { // reads its close frame and never answers
			for {
				if _, _, err := silent.frame(); err != nil {
					ended <- struct{}{}
					return
				}
			}
		}()
		go func() {
			busy.expect(unconfirmedError("a"))
			busy.awaitClose(1012)
			ended <- struct{}{}
		}()
		if err := NewDrain(h.hub).Stop(t.Context()); err != nil {
			t.Error(err)
		}
		took(t, "drained", began, 3*time.Second, 4*time.Second)
		<-ended
		<-ended
		deaf.gone()
		h.awaitClosed(3, 1012)
	})
}

func TestDrainEndsWithItsContext(t *testing.T) {
	inBubble(t, func(h *house) { h.publisher.hold = true }, func(t *testing.T, h *house) {
		for i := range 5 {
			h.open(int64(i + 1)).message("a") // none reads, none is confirmed
		}
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := NewDrain(h.hub).Stop(ctx); err != nil {
			t.Error(err)
		}
		took(t, "drained", began, 500*time.Millisecond, time.Second)
		h.awaitClosed(5, 1012)
	})
}

// A drain that is called off does not wait for the broker any more.
func TestDrainIsCalledOff(t *testing.T) {
	inBubble(t, func(h *house) {
		h.inboxes.closing = func(domain.UserID) { <-time.After(5 * time.Second) }
	}, func(t *testing.T, h *house) {
		h.open(1)
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		if err := NewDrain(h.hub).Stop(ctx); err != nil {
			t.Error(err)
		}
		took(t, "drained", began, 100*time.Millisecond, 100*time.Millisecond)
	})
}

func TestDrainOfNothing(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, h *house) {
		drain := NewDrain(h.hub)
		if err := drain.Start(t.Context()); err != nil {
			t.Error(err)
		}
		began := time.Now()
		for range 2 {
			if err := drain.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		}
		took(t, "drained", began, 0, 0)
	})
}

// TestDrainMeetsAnUpgrade begins the drain at each step of an upgrade.
func TestDrainMeetsAnUpgrade(t *testing.T) {
	t.Run("pass taken", func(t *testing.T) {
		inBubble(t, nil, func(t *testing.T, h *house) {
			h.passes.taken = func() { _ = NewDrain(h.hub).Stop(context.Background()) }
			_, response := h.request(upgradeRequest(h.pass(1, time.Hour)))
			if response.StatusCode != 503 || h.passes.size() != 1 || h.inboxes.opens != 0 {
				t.Errorf("status %d, %d passes left, %d inboxes", response.StatusCode, h.passes.size(), h.inboxes.opens)
			}
		})
	})
	t.Run("inbox opening", func(t *testing.T) {
		inBubble(t, nil, func(t *testing.T, h *house) {
			stopped := make(chan struct{})
			h.inboxes.opening = func(context.Context, domain.UserID) error {
				go func() { defer close(stopped); _ = NewDrain(h.hub).Stop(context.Background()) }()
				<-time.After(time.Second)
				return nil
			}
			c, response := h.request(upgradeRequest(h.pass(1, time.Hour)))
			if response.StatusCode != 101 {
				t.Fatalf("status %d", response.StatusCode)
			}
			c.awaitClose(1012)
			<-stopped
			h.awaitClosed(1, 1012)
		})
	})
}

func TestRateLimit(t *testing.T) {
	inBubble(t, func(h *house) { h.config.MessagesPerSecond, h.config.MessagesBurst = 2, 3 }, func(t *testing.T, h *house) {
		c := h.open(1)
		c.message("a")
		c.text("rubbish") // counts as well
		c.expect(`{"title":"Data integrity error.","details":"Invalid JSON was provided."}`)
		c.message("b")
		c.message("c")
		c.expectError(titleRateLimit, "c")
		c.text("rubbish")
		if got := c.next(); !strings.Contains(got, titleRateLimit) || strings.Contains(got, "in_reply_to") {
			t.Errorf("received %q", got)
		}
		<-time.After(500 * time.Millisecond)
		c.message("d")
		c.message("e")
		c.expectError(titleRateLimit, "e")
		h.eventually("three messages", func() bool { return h.publisher.count() == 3 })
		for i, want := range []string{"a", "b", "d"} {
			if got := h.publisher.at(i).message.ClientMessageID().String(); got != want {
				t.Errorf("message %d is %q, want %q", i, got, want)
			}
		}
		h.awaitCount(3, "websocket_messages_received_total", resultRateLimited)
	})
}
