//go:build unix

package hub

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
)

// rawConn returns what writeNow needs, nil where conn is none of the system's sockets.
func rawConn(conn net.Conn) syscall.RawConn {
	system, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := system.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// attempt is one write(2) that does not wait. It is kept for the next: RawConn takes a
// function, which would be an allocation for each frame.
type attempt struct {
	data []byte
	n    int
	err  error
	run  func(fd uintptr) bool
}

var attempts = sync.Pool{New: func() any {
	a := new(attempt)
	a.run = func(fd uintptr) bool {
		for {
			a.n, a.err = syscall.Write(int(fd), a.data)
			if !errors.Is(a.err, syscall.EINTR) {
				return true // that is all: do not wait until there is room
			}
		}
	}
	return a
}}

// writeNow writes what the socket takes at once of p, maybe nothing. Go's sockets do not
// block, so neither does write(2).
func writeNow(raw syscall.RawConn, p []byte) (int, error) {
	a, _ := attempts.Get().(*attempt)
	a.data = p
	err := raw.Write(a.run)
	if err == nil {
		err = a.err
	}
	n := max(a.n, 0)
	a.data, a.n, a.err = nil, 0, nil
	attempts.Put(a)
	switch {
	case err == nil, errors.Is(err, syscall.EAGAIN):
		return n, nil
	default:
		return n, fmt.Errorf("write: %w", err)
	}
}
