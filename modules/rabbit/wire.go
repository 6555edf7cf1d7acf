package rabbit

import (
	"bufio"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// writeTimeout is how long one write(2) may take. A host that is gone without a word
// takes what the send buffer holds and then nothing: without a deadline the writer,
// and with it every lock of the AMQP library, would be held until TCP gives up.
const writeTimeout = 5 * time.Second

// readBufferSize is how much is read from the broker at once.
const readBufferSize = 32 << 10

// wire is the TCP connection below an AMQP connection. It bounds every write, and
// knows when the broker was last heard of.
type wire struct {
	net.Conn

	// in is there because the library's own buffer holds ten messages or so.
	in       *bufio.Reader
	lastRead atomic.Int64 // as clock has it

	mu    sync.Mutex
	limit time.Time // the deadline set from outside, zero for none
}

func newWire(conn net.Conn) *wire {
	w := &wire{Conn: conn, in: bufio.NewReaderSize(conn, readBufferSize)}
	w.lastRead.Store(clock())
	return w
}

// started is what clock counts from.
var started = time.Now()

// clock returns a moment as nanoseconds since the process began: like time.Time's
// monotonic part, and unlike Unix time, it takes no part in corrections of the system's
// clock.
func clock() int64 { return int64(time.Since(started)) }

// moment returns the time for which clock has returned t.
func moment(t int64) time.Time { return started.Add(time.Duration(t)) }

// heard returns when the last bytes came from the broker.
func (w *wire) heard() time.Time { return moment(w.lastRead.Load()) }

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.in.Read(p)
	if n > 0 {
		w.lastRead.Store(clock())
	}
	return n, err
}

// Write implements net.Conn; it takes no longer than writeTimeout.
func (w *wire) Write(p []byte) (int, error) {
	deadline := time.Now().Add(writeTimeout)
	w.mu.Lock()
	if !w.limit.IsZero() && w.limit.Before(deadline) {
		deadline = w.limit
	}
	err := w.Conn.SetWriteDeadline(deadline)
	w.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return w.Conn.Write(p)
}

// SetDeadline implements net.Conn; a write ends by t or by writeTimeout, whichever is
// first.
func (w *wire) SetDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.limit = t
	return w.Conn.SetDeadline(t)
}
