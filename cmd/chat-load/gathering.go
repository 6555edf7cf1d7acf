package main

import (
	"net"
	"sync"
	"time"
)

// maxGathered bounds what a gathering keeps, in bytes; past it a write waits.
const maxGathered = 256 << 10

// gathering is a connection whose writes return at once: what is written while another
// write is under way goes out together with the next. The AMQP library writes each
// message by itself; under a flood this saves most of the system calls, here and at the
// broker. A failed write shows at the next one.
type gathering struct {
	net.Conn
	done chan struct{} // closed when the writer has ended

	mu      sync.Mutex
	changed *sync.Cond
	waiting []byte
	fault   error
	closing bool
}

func newGathering(conn net.Conn) *gathering {
	g := &gathering{Conn: conn, done: make(chan struct{})}
	g.changed = sync.NewCond(&g.mu)
	go g.write()
	return g
}

// Write implements net.Conn.
func (g *gathering) Write(data []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.fault == nil && !g.closing && len(g.waiting) >= maxGathered {
		g.changed.Wait()
	}
	switch {
	case g.fault != nil:
		return 0, g.fault
	case g.closing:
		return 0, net.ErrClosed
	}
	if len(g.waiting) == 0 {
		g.changed.Broadcast()
	}
	g.waiting = append(g.waiting, data...)
	return len(data), nil
}

// write writes what has gathered, until the connection closes or fails.
func (g *gathering) write() {
	defer close(g.done)
	var batch []byte
	for {
		g.mu.Lock()
		for len(g.waiting) == 0 && !g.closing {
			g.changed.Wait()
		}
		batch, g.waiting = g.waiting, batch[:0]
		g.changed.Broadcast() // there is room again
		g.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		if _, err := g.Conn.Write(batch); err != nil {
			g.mu.Lock()
			g.fault = err
			g.changed.Broadcast()
			g.mu.Unlock()
			return
		}
	}
}

// Close implements net.Conn: it writes what has gathered, for a moment, and closes.
func (g *gathering) Close() error {
	g.mu.Lock()
	g.closing = true
	g.changed.Broadcast()
	g.mu.Unlock()
	_ = g.SetWriteDeadline(time.Now().Add(closeTimeout))
	<-g.done
	return g.Conn.Close()
}
