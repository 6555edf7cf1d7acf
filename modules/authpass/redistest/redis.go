// Package redistest gives tests a real Redis: one that is there already, or a
// redis-server of their own that they can stop, pause and start again.
package redistest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds how long a redis-server may take to answer, or to end.
const startTimeout = 20 * time.Second

// URL returns the URL of a Redis that tests may share: REDIS_URL where it is set, the
// one at localhost:6379 where it answers, else one that is started for the test.
func URL(tb testing.TB) string {
	tb.Helper()
	if url := os.Getenv("REDIS_URL"); url != "" {
		return url
	}
	if ping(tb.Context(), "localhost:6379") == nil {
		return "redis://localhost:6379/0"
	}
	return Start(tb).URL()
}

// Server is a redis-server on the loopback interface that belongs to one test. Its
// methods fail the test where they can't do what they say. It is not safe for
// concurrent use.
type Server struct {
	tb      testing.TB
	address string
	dir     string
	process *exec.Cmd // nil while it does not run
}

// Start starts a redis-server on a free port, with a new directory and without
// persistence, and returns when it answers. It is killed when the test ends.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s := &Server{tb: tb, address: freeAddress(tb), dir: tb.TempDir()}
	tb.Cleanup(func() {
		if s.process != nil {
			s.Kill()
		}
	})
	s.Restart()
	return s
}

// URL returns the server's URL, which stays the same over restarts.
func (s *Server) URL() string { return "redis://" + s.address + "/0" }

// Restart starts the server, after Stop or Kill, on the port it had. It is empty then.
func (s *Server) Restart() {
	s.tb.Helper()
	if s.process != nil {
		s.tb.Fatal("redistest: the server runs already")
	}
	host, port, err := net.SplitHostPort(s.address)
	if err != nil {
		s.tb.Fatalf("redistest: %v", err)
	}
	process := exec.Command("redis-server", "--bind", host, "--port", port, "--dir", s.dir, "--save", "", "--appendonly", "no", "--daemonize", "no")
	if err := process.Start(); errors.Is(err, exec.ErrNotFound) {
		s.tb.Fatal("redistest: there is no redis-server here: run scripts/test, which sees to it, or set REDIS_URL")
	} else if err != nil {
		s.tb.Fatalf("redistest: start redis-server: %v", err)
	}
	s.process = process
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for {
		err := ping(ctx, s.address)
		if err == nil {
			return
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			s.tb.Fatalf("redistest: redis-server does not answer: %v", err)
		}
	}
}

// Stop asks the server to end and waits for it.
func (s *Server) Stop() { s.tb.Helper(); s.end(syscall.SIGTERM) }

// Kill ends the server without a word to its clients.
func (s *Server) Kill() { s.tb.Helper(); s.end(syscall.SIGKILL) }

// Pause freezes the server: connections stay, and are even accepted by the kernel, but
// nothing is answered.
func (s *Server) Pause() { s.tb.Helper(); s.signal(syscall.SIGSTOP) }

// Resume lets the server go on after Pause.
func (s *Server) Resume() { s.tb.Helper(); s.signal(syscall.SIGCONT) }

func (s *Server) signal(signal syscall.Signal) {
	s.tb.Helper()
	if s.process == nil {
		s.tb.Fatal("redistest: the server does not run")
	}
	if err := s.process.Process.Signal(signal); err != nil {
		s.tb.Fatalf("redistest: send %s to redis-server: %v", signal, err)
	}
}

func (s *Server) end(signal syscall.Signal) {
	s.tb.Helper()
	s.signal(signal)
	// A server that ignores the signal is killed, so that the wait ends.
	process := s.process.Process
	kill := time.AfterFunc(startTimeout, func() { _ = process.Kill() })
	defer kill.Stop()
	// What it exits with is of no interest: it was told to end.
	_ = s.process.Wait()
	s.process = nil
}

// freeAddress returns an address on which nobody listens at the moment.
func freeAddress(tb testing.TB) string {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("redistest: look for a free port: %v", err)
	}
	defer func() { _ = listener.Close() }()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(listener.Addr().(*net.TCPAddr).Port))
}

// ping returns nil where a Redis that wants no password answers.
func ping(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return err
	}
	answer, err := bufio.NewReader(io.LimitReader(conn, 64)).ReadString('\n')
	if err != nil {
		return err
	}
	if answer != "+PONG\r\n" {
		return fmt.Errorf("not a Redis that can be used: %q", answer)
	}
	return nil
}
