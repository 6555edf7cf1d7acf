package hub

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

const (
	// readBufferSize is the size of a connection's buffer for reading. net/http's own
	// have 4 KB, which is most of what an idle connection would cost.
	readBufferSize = 512
	// controlBufferSize is what the WebSocket library gathers a frame in, and it only
	// writes control frames (RFC 6455, section 5.5): each leaves it in one write. It is
	// the length of the longest.
	controlBufferSize = 2 + 125
	// maxOwed is how many bytes of pings and pongs may wait for a socket. A service need
	// not answer each ping of many (RFC 6455, section 5.5.3).
	maxOwed = 1 << 10
	// closeWait is how long a peer may take to answer a close frame.
	closeWait = 2 * time.Second
)

// The opcodes that the wire takes notice of (RFC 6455, section 11.8), and the bit that
// says that a frame is the last, or only, one of its message.
const (
	opcodeText  = 0x1
	opcodeClose = 0x8
	opcodePing  = 0x9
	finalBit    = 0x80
)

// errCloseSent: a close frame has gone out, after which there are no others (RFC 6455,
// section 5.5.1).
var errCloseSent = errors.New("the close frame has been sent")

// errWouldBlock: the socket takes no more at the moment.
var errWouldBlock = errors.New("the socket takes no more at the moment")

// wire is the connection under a WebSocket. The WebSocket library reads from it, and
// writes its pongs to it like to any other connection; the session writes its messages
// and close frames past the library, as whole frames. The wire keeps the two apart,
// bounds each write, notices what passes, and can be cut at any time, whoever is doing
// what.
//
// Nothing but a frame that has begun holds a frame up: pings and pongs that meet one are
// owed, and whoever has written it writes them next. What is owed by then waits for who
// waits already, or a client that pings without end would get no message.
type wire struct {
	net.Conn
	raw          syscall.RawConn // nil where the system offers no writing without waiting
	writeTimeout time.Duration
	began        time.Time

	// early is what the client sent before the upgrade was answered. Reader only.
	early []byte
	// failed says that reading has come to its end. Reader only.
	failed bool

	// heard is when the last bytes came, and pinged is when the last ping that has been
	// written was begun, both as time since began.
	heard, pinged     atomic.Int64
	bytesIn, bytesOut atomic.Int64
	// stalled: a write could not be finished since the peer does not read.
	stalled atomic.Bool
	// ending: the library has come to a close frame, and will close the connection.
	ending atomic.Bool

	mu sync.Mutex
	// busy says that somebody writes a frame; it goes from one goroutine to the next
	// with the frame. free is signalled when it ends. closeSent belongs to who is busy.
	busy      bool
	free      sync.Cond
	closeSent bool
	// waiting is how many wait for free, and will be busy.
	waiting int
	// owed are whole pings and pongs that wait to be written. pings says that a ping is
	// among them.
	owed  []byte
	pings bool
}

func newWire(conn net.Conn, writeTimeout time.Duration) *wire {
	w := &wire{Conn: conn, raw: rawConn(conn), writeTimeout: writeTimeout, began: time.Now()}
	w.free.L = &w.mu
	return w
}

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	if len(w.early) > 0 {
		n := copy(p, w.early)
		if w.early = w.early[n:]; len(w.early) == 0 {
			w.early = nil
		}
		w.noteRead(n)
		return n, nil
	}
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.noteRead(n)
	}
	if err != nil {
		w.failed = true
	}
	return n, err
}

func (w *wire) noteRead(n int) {
	w.bytesIn.Add(int64(n))
	w.touch()
}

// touch counts as having heard from the peer.
func (w *wire) touch() { w.heard.Store(int64(time.Since(w.began))) }

// silent reports whether nothing has come since the last ping was written.
func (w *wire) silent() bool { return w.heard.Load() < w.pinged.Load() }

// Write implements net.Conn for the library: p is a whole control frame. It does not
// wait. A pong is owed. A close frame, which answers the client's or a client that breaks
// the protocol, is not written: the session does that, which knows what must go before.
func (w *wire) Write(p []byte) (int, error) {
	if p[0]&0x0f == opcodeClose {
		w.ending.Store(true)
	} else {
		w.owe(p, false)
	}
	return len(p), nil
}

// writeClose writes a close frame before the deadline, unless one has gone out, which it
// returns errCloseSent for. From then on the peer has closeWait to answer, whatever else
// it sends: then reading fails.
func (w *wire) writeClose(frame []byte, deadline time.Time) error {
	w.take()
	defer w.release()
	if w.closeSent {
		return errCloseSent
	}
	if err := w.writeWithin(frame, deadline); err != nil {
		return err
	}
	w.closeSent = true
	return w.SetReadDeadline(time.Now().Add(closeWait))
}

// closeFrame returns a close frame (RFC 6455, section 5.5.1). The reason has at
// most 123 bytes. CloseNoStatus is the code of a frame without one.
func closeFrame(code app.CloseCode, reason string) []byte {
	if code == app.CloseNoStatus {
		return []byte{finalBit | opcodeClose, 0}
	}
	frame := append(make([]byte, 0, controlBufferSize), finalBit|opcodeClose, byte(2+len(reason)))
	return append(binary.BigEndian.AppendUint16(frame, uint16(code)), reason...)
}

var pingFrame = []byte{finalBit | opcodePing, 0}

// ping writes a ping as soon as the socket takes it, and does not wait for that.
func (w *wire) ping() { w.owe(pingFrame, true) }

// owe writes a ping or a pong as soon as the socket takes it: now, or when the frame that
// is being written has gone out.
func (w *wire) owe(frame []byte, ping bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.owed)+len(frame) > maxOwed || ping && w.pings {
		return
	}
	w.owed = append(w.owed, frame...)
	w.pings = w.pings || ping
	if !w.busy && w.waiting == 0 {
		w.busy = true
		w.pay()
	}
}

// take waits until nobody writes, and makes the caller the one who does.
func (w *wire) take() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting++
	for w.busy {
		w.free.Wait()
	}
	w.waiting--
	w.busy = true
}

// tryTake is take for who can't wait.
func (w *wire) tryTake() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy {
		return false
	}
	w.busy = true
	return true
}

// release is called by who is busy after a whole frame. It does not wait.
func (w *wire) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pay()
}

// pass ends being busy, for who waits. The caller holds mu and is busy.
func (w *wire) pass() {
	w.busy = false
	w.free.Signal()
}

// pay writes what is owed and ends being busy; or a goroutine does, where the socket takes
// no more. The caller holds mu and is busy.
func (w *wire) pay() {
	if len(w.owed) > 0 && !w.closeSent {
		owed, pings := w.owed, w.pings
		w.owed, w.pings = nil, false
		now := time.Since(w.began) // the pong may come before the write returns
		n, err := w.writeNow(owed)
		switch {
		case err != nil:
			_ = w.Conn.Close() // the reader finds out
		case n < len(owed):
			go w.payLate(owed[n:], pings, now)
			return
		case pings:
			w.pinged.Store(int64(now))
		}
	}
	w.pass()
}

// payLate goes on with pay, and then lets those write who have come meanwhile.
func (w *wire) payLate(owed []byte, pings bool, began time.Duration) {
	err := w.writeWithin(owed, time.Now().Add(w.writeTimeout))
	switch {
	case err != nil:
		_ = w.Conn.Close()
	case pings:
		w.pinged.Store(int64(began))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting > 0 {
		w.pass()
	} else {
		w.pay()
	}
}

// writeWithin writes all of p before the deadline. The caller is busy.
func (w *wire) writeWithin(p []byte, deadline time.Time) error {
	if err := w.SetWriteDeadline(deadline); err != nil {
		return fmt.Errorf("set the deadline of a write: %w", err)
	}
	n, err := w.Conn.Write(p)
	w.bytesOut.Add(int64(n))
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.stalled.Store(true)
		}
		return fmt.Errorf("write: %w", err)
	}
	// A deadline that has passed would fail the next write that does not wait.
	return w.SetWriteDeadline(time.Time{})
}

// writeNow writes what the socket takes at once of p, maybe nothing. The caller is busy.
func (w *wire) writeNow(p []byte) (int, error) {
	if w.raw == nil {
		return 0, nil
	}
	n, err := writeNow(w.raw, p)
	w.bytesOut.Add(int64(n))
	return n, err
}

// Close implements net.Conn for the library, which closes the connection after a close
// frame: it stays open until the session has written its own and cuts it.
func (w *wire) Close() error {
	if w.ending.Load() {
		return nil
	}
	return w.Conn.Close()
}

// cut ends the connection at once and whatever waits for it. It may be called often.
func (w *wire) cut() { _ = w.Conn.Close() }

// discard reads and forgets what comes until reading fails.
func (w *wire) discard() { _, _ = io.Copy(io.Discard, struct{ io.Reader }{w}) }

// upgradeWriter is a ResponseWriter that hands out a wire when it is hijacked.
type upgradeWriter struct {
	http.ResponseWriter
	writeTimeout time.Duration
	wire         *wire
}

// Hijack implements http.Hijacker. The buffers it returns are small and new, so that
// nothing of net/http's stays alive with the connection.
func (u *upgradeWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffers, err := http.NewResponseController(u.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("take the connection over: %w", err)
	}
	u.wire = newWire(conn, u.writeTimeout)
	if n := buffers.Reader.Buffered(); n > 0 {
		early, _ := buffers.Reader.Peek(n)
		u.wire.early = append([]byte(nil), early...)
	}
	return u.wire, bufio.NewReadWriter(
		bufio.NewReaderSize(u.wire, readBufferSize),
		bufio.NewWriterSize(u.wire, controlBufferSize),
	), nil
}

// hijackable reports whether w leads to a connection that can be taken over. HTTP/2
// has none.
func hijackable(w http.ResponseWriter) bool {
	for {
		switch t := w.(type) {
		case http.Hijacker:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = t.Unwrap()
		default:
			return false
		}
	}
}
