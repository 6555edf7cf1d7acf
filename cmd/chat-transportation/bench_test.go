package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"go.uber.org/fx"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/config"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/httpapi"
)

// benchUsers is how many users take turns, so that none has too many connections while
// those that were closed are being cleared away.
const benchUsers = 1000

// ask sends a request and returns the answer, which ends with end, in buffer.
func ask(conn net.Conn, request, buffer, end []byte) ([]byte, error) {
	if _, err := conn.Write(request); err != nil {
		return nil, err
	}
	length := 0
	for length < len(buffer) {
		n, err := conn.Read(buffer[length:])
		if length += n; bytes.HasSuffix(buffer[:length], end) {
			return buffer[:length], nil
		}
		if err != nil {
			return nil, fmt.Errorf("the answer ends after %q: %w", buffer[:length], err)
		}
	}
	return nil, errors.New("the answer is too long")
}

// passRequests returns each user's request for a pass.
func passRequests(b *testing.B, tokens authpass.TokenConfig) [][]byte {
	b.Helper()
	requests := make([][]byte, benchUsers)
	for i := range requests {
		user, err := domain.NewUserID(int64(i + 1))
		if err != nil {
			b.Fatal(err)
		}
		token, err := authpass.SignToken(tokens, user, time.Hour)
		if err != nil {
			b.Fatal(err)
		}
		requests[i] = fmt.Appendf(nil, "POST /messages/get-connection-pass HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer %s\r\nContent-Length: 0\r\n\r\n", token)
	}
	return requests
}

// askPass fetches a pass over a connection that is kept.
func askPass(conn net.Conn, request, buffer []byte) (string, error) {
	answer, err := ask(conn, request, buffer, []byte("}\n"))
	if err != nil {
		return "", err
	}
	_, rest, _ := bytes.Cut(answer, []byte(`"connection_pass":"`))
	pass, _, found := bytes.Cut(rest, []byte(`"`))
	if !found {
		return "", errors.New("there is no pass in the answer")
	}
	return string(pass), nil
}

// BenchmarkConnect is what a client's coming costs in demo mode, the client's own
// part included: a pass over HTTP alone, and with the upgrade of a new TCP connection
// that is then closed. There is no plain way to hold against it.
func BenchmarkConnect(b *testing.B) {
	for _, part := range []struct {
		name    string
		upgrade bool
	}{{"part=pass", false}, {"part=pass-and-upgrade", true}} {
		b.Run(part.name, func(b *testing.B) {
			cfg, err := config.From(envconfig.MapLookuper(map[string]string{
				"HTTP_ADDR": "127.0.0.1:0", "PASS_REQUESTS_PER_MINUTE": "0", "SHUTDOWN_DRAIN_WINDOW": "0s",
			}))
			if err != nil {
				b.Fatal(err)
			}
			var server *httpapi.Server
			running := fx.New(service(cfg, zap.NewNop()), fx.Populate(&server))
			ctx, cancel := context.WithTimeout(b.Context(), startTimeout)
			defer cancel()
			if err := running.Start(ctx); err != nil {
				b.Fatal(err)
			}
			defer func() {
				ctx, cancel := context.WithTimeout(context.Background(), cfg.Shutdown.Total)
				defer cancel()
				if err := running.Stop(ctx); err != nil {
					b.Error(err)
				}
			}()
			requests := passRequests(b, cfg.Auth.Token)
			address := server.Addr().String()
			conn, err := net.Dial("tcp", address)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			buffer, next := make([]byte, 4<<10), 0
			b.ReportAllocs()
			for b.Loop() {
				pass, err := askPass(conn, requests[next%benchUsers], buffer)
				if err != nil {
					b.Fatal(err)
				}
				next++
				if !part.upgrade {
					continue
				}
				if err := comeAndGo(address, pass, buffer); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// comeAndGo opens a WebSocket and closes its TCP connection.
func comeAndGo(address, pass string, buffer []byte) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	// A port that waits for what may still come could not be used again for a while.
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	answer, err := ask(conn, upgradeRequest(pass, nil), buffer, []byte("\r\n\r\n"))
	if err == nil && !bytes.HasPrefix(answer, []byte("HTTP/1.1 101 ")) {
		err = fmt.Errorf("the upgrade is answered %q", answer)
	}
	return err
}
