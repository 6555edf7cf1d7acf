package hub

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

const (
	// bufferSize is the size of each of a connection's two buffers. net/http's own have
	// 4 KB, which is most of what an idle connection would cost.
	bufferSize = 512
	// closeWait is how long a peer may take to answer a close frame.
	closeWait = 2 * time.Second
)

// The opcodes of control frames that the wire takes notice of (RFC 6455, section 11.8).
const (
	opcodeClose = 0x8
	opcodePing  = 0x9
)

// wire is the connection under a WebSocket. The WebSocket library reads and writes it
// like any other; the wire bounds each write, notices what passes, and can be cut at
// any time, whatever the library is doing.
type wire struct {
	net.Conn
	writeTimeout time.Duration
	began        time.Time

	// early is what the client sent before the upgrade was answered. Reader only.
	early []byte
	// failed says that reading has come to its end. Reader only.
	failed bool

	// heard is when the last bytes came, as time since began.
	heard             atomic.Int64
	bytesIn, bytesOut atomic.Int64
	// pings counts the pings that have been written.
	pings atomic.Int64
	// writing is true while a write is under way.
	writing atomic.Bool
	// stalled: a write could not be finished since the peer does not read.
	stalled atomic.Bool
	// cutting: the session has given the connection up.
	cutting atomic.Bool

	// The frame that is being written: its opcode, and how many of its bytes are still
	// to come. The library's write lock guards both.
	opcode byte
	left   uint64
}

func newWire(conn net.Conn, writeTimeout time.Duration) *wire {
	return &wire{Conn: conn, writeTimeout: writeTimeout, began: time.Now()}
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

// heardSince reports whether anything has come from the peer since t.
func (w *wire) heardSince(t time.Time) bool { return w.heard.Load() >= int64(t.Sub(w.began)) }

// Write implements net.Conn. All parts of one frame share one deadline, so that a peer
// that takes a little now and then gains no time.
func (w *wire) Write(p []byte) (int, error) {
	w.writing.Store(true)
	defer w.writing.Store(false)
	if w.left == 0 {
		w.opcode, w.left = frameHead(p)
		if err := w.SetWriteDeadline(time.Now().Add(w.writeTimeout)); err != nil {
			return 0, fmt.Errorf("set the deadline of a write: %w", err)
		}
	}
	n, err := w.Conn.Write(p)
	w.bytesOut.Add(int64(n))
	w.left -= min(uint64(n), w.left)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.stalled.Store(true)
		}
		return n, err
	}
	if w.left == 0 {
		switch w.opcode {
		case opcodePing:
			w.pings.Add(1)
		case opcodeClose:
			// The library waits five seconds for the answer, and a peer that keeps
			// sending could hold it even longer.
			_ = w.SetReadDeadline(time.Now().Add(closeWait))
		}
	}
	return n, nil
}

// Close implements net.Conn. The library closes the connection by itself where a
// control frame can't be written within five seconds: a stall like any other.
func (w *wire) Close() error {
	if w.writing.Load() && !w.cutting.Load() {
		w.stalled.Store(true)
	}
	return w.Conn.Close()
}

// cut ends the connection at once and whatever waits for it. It may be called often.
func (w *wire) cut() {
	w.cutting.Store(true)
	_ = w.Conn.Close()
}

// frameHead reads the opcode and the whole length of the frame that p begins with
// (RFC 6455, section 5.2). The frame is a server's, so it has no masking key; its head
// is in p, since the library's buffer is empty where a frame begins.
func frameHead(p []byte) (opcode byte, length uint64) {
	if len(p) < 2 {
		return 0, uint64(len(p))
	}
	opcode = p[0] & 0x0f
	switch n := p[1] & 0x7f; {
	case n == 126 && len(p) >= 4:
		return opcode, 4 + uint64(binary.BigEndian.Uint16(p[2:]))
	case n == 127 && len(p) >= 10:
		return opcode, 10 + binary.BigEndian.Uint64(p[2:])
	default:
		return opcode, 2 + uint64(n)
	}
}

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
		bufio.NewReaderSize(u.wire, bufferSize),
		bufio.NewWriterSize(u.wire, bufferSize),
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
