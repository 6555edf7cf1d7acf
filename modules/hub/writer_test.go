package hub

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestBatchHoldsFrames: what a batch holds is the frames of RFC 6455, section 5.2, in
// order, whatever their lengths.
func TestBatchHoldsFrames(t *testing.T) {
	lengths := []int{0, 1, 125, 126, 300, 8000, 65535, 65536, batchBytes - maxFrameHead, batchBytes, 100_000, 5}
	var items []outgoing
	for i, length := range lengths {
		items = append(items, outgoing{errors: bytes.Repeat([]byte{byte('a' + i)}, length)})
	}
	var sent []byte
	for len(items) > 0 {
		b, _ := batches.Get().(*batch)
		for len(items) > 0 && b.add(items[0]) {
			items = items[1:]
		}
		if len(b.items) == 0 {
			t.Fatal("a batch without a frame")
		}
		if len(b.items) > 1 && len(b.data)+len(b.tail) > batchBytes {
			t.Errorf("%d frames of %d bytes in one batch", len(b.items), len(b.data)+len(b.tail))
		}
		total := b.ends[len(b.ends)-1]
		for b.written < total {
			rest := b.rest(total)
			n := min(len(rest), 777)
			sent = append(sent, rest[:n]...)
			b.written += n
		}
		if b.whole() != len(b.items) {
			t.Errorf("%d of %d frames are out", b.whole(), len(b.items))
		}
		b.free()
	}
	for i, length := range lengths {
		var head []byte
		switch {
		case length < 126:
			head = []byte{0x81, byte(length)}
		case length < 65536:
			head = []byte{0x81, 126, byte(length >> 8), byte(length)}
		default:
			head = []byte{0x81, 127, 0, 0, 0, 0, 0, byte(length >> 16), byte(length >> 8), byte(length)}
		}
		frame := append(head, bytes.Repeat([]byte{byte('a' + i)}, length)...)
		if !bytes.HasPrefix(sent, frame) {
			t.Fatalf("frame %d of %d bytes is not what follows", i, length)
		}
		sent = sent[len(frame):]
	}
	if len(sent) > 0 {
		t.Errorf("%d bytes more", len(sent))
	}
}

// TestControlFramesMeetAMessage: a ping and a pong that come while a message is being
// written follow it, and do not cut it in two; nor do they wait for each other.
func TestControlFramesMeetAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe() // has no room: a write lasts until it is read
		w := newWire(near, 10*time.Second)
		b, _ := batches.Get().(*batch)
		b.add(outgoing{errors: []byte(strings.Repeat("x", 1000))})
		if err := b.write(w, false); !errors.Is(err, errWouldBlock) {
			t.Fatalf("a write that must not wait: %v", err)
		}
		written := make(chan error, 1)
		go func() {
			err := b.write(w, true)
			b.release(w)
			written <- err
		}()
		buffer := make([]byte, 4000)
		n, _ := far.Read(buffer[:300])
		w.ping()
		w.ping() // one is enough
		pong := []byte{finalBit | 0xa, 2, 'h', 'i'}
		if _, err := w.Write(pong); err != nil {
			t.Fatal(err)
		}
		for range 1000 { // of which only some can be owed
			_, _ = w.Write(pong)
		}
		if w.pinged.Load() != 0 {
			t.Error("a ping that waits has been noted as written")
		}
		<-time.After(time.Second)
		for n < 1004+2+4*((maxOwed-2)/4) {
			more, err := far.Read(buffer[n:])
			if err != nil {
				t.Fatal(err)
			}
			n += more
		}
		synctest.Wait()
		if err := far.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if more, err := far.Read(buffer[n:]); err == nil {
			t.Errorf("%d bytes more were owed", more)
		}
		if err := <-written; err != nil {
			t.Error(err)
		}
		want := "\x81\x7e\x03\xe8" + strings.Repeat("x", 1000) + "\x89\x00" + "\x8a\x02hi"
		if !strings.HasPrefix(string(buffer[:n]), want) {
			t.Errorf("on the socket: %q", buffer[:n])
		}
		synctest.Wait()
		if at := time.Duration(w.pinged.Load()); at != time.Second {
			t.Errorf("the ping is noted at %v", at)
		}
		_ = far.Close()
		w.cut()
	})
}

// TestPongsDoNotHoldAMessageUp: a client that pings without end, and takes the pongs but
// slowly, gets its message all the same.
func TestPongsDoNotHoldAMessageUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		const writeTimeout = 10 * time.Second
		w := newWire(near, writeTimeout)
		pong := []byte{finalBit | 0xa, 2, 'h', 'i'}
		if _, err := w.Write(pong); err != nil {
			t.Fatal(err)
		}
		b, _ := batches.Get().(*batch)
		b.add(outgoing{errors: []byte("message")})
		written := make(chan error, 1)
		go func() {
			err := b.write(w, true)
			b.release(w)
			written <- err
		}()
		synctest.Wait()
		began := time.Now()
		for sent := false; !sent && time.Since(began) < 10*time.Minute; {
			for range 10 {
				_, _ = w.Write(pong)
			}
			if _, err := far.Read(make([]byte, 64)); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Second / 2)
			select {
			case err := <-written:
				if err != nil {
					t.Error(err)
				}
				sent = true
			default:
			}
		}
		took(t, "the message is written", began, 0, 2*writeTimeout)
		w.cut()
		_ = far.Close()
	})
}

// TestNothingFollowsACloseFrame: RFC 6455, section 5.5.1.
func TestNothingFollowsACloseFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		w := newWire(near, 10*time.Second)
		done := make(chan struct{})
		go func() {
			defer close(done)
			// The library's own close frames are not written, and end nothing.
			if _, err := w.Write([]byte{finalBit | opcodeClose, 2, 3, 234}); err != nil {
				t.Error(err)
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
			if err := w.writeClose(closeFrame(1000, ""), time.Now().Add(time.Second)); err != nil {
				t.Error(err)
			}
			if err := w.writeClose(closeFrame(1001, "late"), time.Now().Add(time.Second)); !errors.Is(err, errCloseSent) {
				t.Errorf("a second close frame: %v", err)
			}
		}()
		buffer := make([]byte, 100)
		n, err := far.Read(buffer)
		if err != nil || string(buffer[:n]) != "\x88\x02\x03\xe8" {
			t.Fatalf("%q, %v", buffer[:n], err)
		}
		<-done
		w.ping()
		b, _ := batches.Get().(*batch)
		b.add(outgoing{errors: []byte("late")})
		if err := b.write(w, true); !errors.Is(err, errCloseSent) {
			t.Errorf("a message after the close frame: %v", err)
		}
		b.release(w)
		w.cut()
		if n, err := far.Read(buffer); err == nil {
			t.Errorf("after the close frame: %q", buffer[:n])
		}
	})
}

// TestWaitingFramesShareAWrite: a client that was slow for a moment gets all that waited,
// in order, each once, and the deliveries are acked.
func TestWaitingFramesShareAWrite(t *testing.T) {
	h := newHouse(t, false, func(h *house) { h.config.SendQueue = 100_000 })
	c := h.open(1)
	body := strings.Repeat("x", 5000)
	var settled []*settlement
	const count = 5000 // 25 MB: more than the system's buffers take
	for i := range count {
		s, ok := h.inboxes.publish(userID(t, 1), "", `"`+body[:i]+`"`)
		if !ok {
			t.Fatal("no inbox")
		}
		settled = append(settled, s)
	}
	for i := range count {
		if got := c.next(); len(got) != i+2 {
			t.Fatalf("message %d has %d bytes", i, len(got))
		}
	}
	for i, s := range settled {
		h.eventually("the ack", func() bool { acks, rejects := s.count(); return acks == 1 && rejects == 0 })
		if t.Failed() {
			t.Fatalf("delivery %d is not acked", i)
		}
	}
	h.awaitCount(count, "websocket_messages_delivered_total")
}
