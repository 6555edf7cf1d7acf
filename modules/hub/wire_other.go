//go:build !unix

package hub

import (
	"net"
	"syscall"
)

// rawConn returns nil: this system has no write that does not wait, so each frame is
// written by a goroutine.
func rawConn(net.Conn) syscall.RawConn { return nil }

func writeNow(syscall.RawConn, []byte) (int, error) { return 0, nil }
