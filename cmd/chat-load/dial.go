package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// attemptTimeout bounds one attempt to connect, pass request included, and writeTimeout
// one write to a socket that takes nothing.
const (
	attemptTimeout = 20 * time.Second
	writeTimeout   = 20 * time.Second
)

// place is a server as -url names it.
type place struct {
	address string // host:port to dial
	host    string // of the Host header
	prefix  string // of each path, without a slash at its end
	tls     *tls.Config
}

// parsePlace reads an URL. The WebSocket and the HTTP scheme mean the same here, since
// the gateway needs both.
func parsePlace(text string, insecure bool) (place, error) {
	u, err := url.Parse(text)
	if err != nil {
		return place{}, errors.New("not a URL")
	}
	p := place{host: u.Host, prefix: strings.TrimRight(u.Path, "/")}
	port := "80"
	switch u.Scheme {
	case "http", "ws":
	case "https", "wss":
		port = "443"
		p.tls = &tls.Config{ServerName: u.Hostname(), InsecureSkipVerify: insecure, MinVersion: tls.VersionTLS12}
	default:
		return place{}, errors.New("its scheme is none of http, https, ws, wss")
	}
	if u.Hostname() == "" {
		return place{}, errors.New("it names no host")
	}
	if u.Port() != "" {
		port = u.Port()
	}
	p.address = net.JoinHostPort(u.Hostname(), port)
	return p, nil
}

// dialer opens connections from several source addresses in turn, because one address
// has only so many ports (28,000 by Linux's default). It is safe for concurrent use.
type dialer struct {
	sources []netip.Addr // empty: the system's choice
	turn    atomic.Uint32
}

func (d *dialer) dial(ctx context.Context, p place) (net.Conn, error) {
	it := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: false}}
	if len(d.sources) > 0 {
		source := d.sources[int(d.turn.Add(1))%len(d.sources)]
		it.LocalAddr = &net.TCPAddr{IP: source.AsSlice()}
		it.Control = bindLate
	}
	conn, err := it.DialContext(ctx, "tcp", p.address)
	if err != nil {
		return nil, err
	}
	if p.tls == nil {
		return conn, nil
	}
	secure := tls.Client(conn, p.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

// refusal is an answer other than the one that was hoped for.
type refusal struct {
	what       string
	status     int
	retryAfter time.Duration // 0 where the server did not say
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: HTTP %d", r.what, r.status) }

func refused(what string, answer *http.Response) *refusal {
	r := &refusal{what: what, status: answer.StatusCode}
	if seconds, err := time.ParseDuration(answer.Header.Get("Retry-After") + "s"); err == nil && seconds > 0 {
		r.retryAfter = seconds
	}
	return r
}

// passPath and socketPath are the gateway's routes, below the prefix of -url.
const (
	passPath   = "/messages/get-connection-pass"
	socketPath = "/messages/"
)

// passWindow gets passes over kept connections, as the proxy before a gateway does. It
// is safe for concurrent use.
type passWindow struct {
	dialer *dialer
	idle   sync.Map // place.address -> *idleConns
}

// maxIdle bounds the connections that a passWindow keeps for one place.
const maxIdle = 256

type idleConns struct {
	mu    sync.Mutex
	conns []*passConn
}

type passConn struct {
	net.Conn
	reader *bufio.Reader
}

func (w *passWindow) at(p place) *idleConns {
	if kept, ok := w.idle.Load(p.address); ok {
		return kept.(*idleConns)
	}
	kept, _ := w.idle.LoadOrStore(p.address, new(idleConns))
	return kept.(*idleConns)
}

func (i *idleConns) take() *passConn {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.conns) == 0 {
		return nil
	}
	last := i.conns[len(i.conns)-1]
	i.conns = i.conns[:len(i.conns)-1]
	return last
}

func (i *idleConns) give(conn *passConn) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.conns) < maxIdle {
		i.conns = append(i.conns, conn)
		return
	}
	_ = conn.Close()
}

// close closes the kept connections.
func (w *passWindow) close() {
	w.idle.Range(func(_, kept any) bool {
		for conn := kept.(*idleConns).take(); conn != nil; conn = kept.(*idleConns).take() {
			_ = conn.Close()
		}
		return true
	})
}

// pass exchanges a token for a connection pass.
func (w *passWindow) pass(ctx context.Context, p place, token string) (string, error) {
	kept := w.at(p)
	for {
		conn := kept.take()
		fresh := conn == nil
		if fresh {
			dialled, err := w.dialer.dial(ctx, p)
			if err != nil {
				return "", fmt.Errorf("connect for a pass: %w", err)
			}
			conn = &passConn{dialled, bufio.NewReaderSize(dialled, 1024)}
		}
		pass, reusable, err := conn.pass(ctx, p, token)
		if reusable {
			kept.give(conn)
		} else {
			_ = conn.Close()
		}
		// A kept connection may have been closed by the server meanwhile.
		if _, answered := errors.AsType[*refusal](err); err == nil || fresh || answered || ctx.Err() != nil {
			return pass, err
		}
	}
}

func (c *passConn) pass(ctx context.Context, p place, token string) (pass string, reusable bool, err error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return "", false, fmt.Errorf("request a pass: %w", err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })
	defer func() { reusable = stop() && reusable }()
	if _, err := io.WriteString(c, "POST "+p.prefix+passPath+" HTTP/1.1\r\nHost: "+p.host+
		"\r\nAuthorization: Bearer "+token+"\r\nContent-Length: 0\r\n\r\n"); err != nil {
		return "", false, fmt.Errorf("request a pass: %w", err)
	}
	answer, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return "", false, fmt.Errorf("read the answer to a pass request: %w", err)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	if err != nil {
		return "", false, fmt.Errorf("read the answer to a pass request: %w", err)
	}
	_ = answer.Body.Close()
	reusable = !answer.Close
	if answer.StatusCode != http.StatusOK {
		return "", reusable, refused("pass request", answer)
	}
	var content struct {
		ConnectionPass string `json:"connection_pass"`
	}
	if err := json.Unmarshal(body, &content); err != nil || content.ConnectionPass == "" {
		return "", reusable, errors.New("the answer to a pass request holds no pass")
	}
	return content.ConnectionPass, reusable, nil
}

// readers lends buffers for the answers to upgrades.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 1024) }}

// websocketGUID is what RFC 6455, section 1.3, makes the accept key of.
const websocketGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// upgrade opens a WebSocket. Besides the connection it returns the bytes that the
// server has sent after its answer. query and protocol may be empty.
func (d *dialer) upgrade(ctx context.Context, p place, path, query, protocol string) (net.Conn, []byte, error) {
	conn, err := d.dial(ctx, p)
	if err != nil {
		return nil, nil, fmt.Errorf("connect: %w", err)
	}
	rest, err := handshake(ctx, conn, p, path, query, protocol)
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return conn, rest, nil
}

func handshake(ctx context.Context, conn net.Conn, p place, path, query, protocol string) ([]byte, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, fmt.Errorf("upgrade: %w", err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // never fails
	key := base64.StdEncoding.EncodeToString(nonce[:])
	request := "GET " + p.prefix + path
	if query != "" {
		request += "?" + query
	}
	request += " HTTP/1.1\r\nHost: " + p.host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + "\r\n"
	if protocol != "" {
		request += "Sec-WebSocket-Protocol: " + protocol + "\r\n"
	}
	if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
		return nil, fmt.Errorf("request an upgrade: %w", err)
	}
	reader := readers.Get().(*bufio.Reader)
	defer readers.Put(reader)
	defer reader.Reset(nil)
	reader.Reset(conn)
	answer, err := http.ReadResponse(reader, nil)
	if err != nil {
		return nil, fmt.Errorf("read the answer to an upgrade: %w", err)
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		return nil, refused("upgrade", answer)
	}
	sum := sha1.Sum([]byte(key + websocketGUID))
	if answer.Header.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) {
		return nil, errors.New("the answer to an upgrade has a wrong Sec-WebSocket-Accept")
	}
	if answer.Header.Get("Sec-WebSocket-Protocol") != protocol {
		return nil, errors.New("the answer to an upgrade names another subprotocol")
	}
	rest, _ := reader.Peek(reader.Buffered())
	rest = append([]byte(nil), rest...)
	if !stop() {
		return nil, ctx.Err()
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("upgrade: %w", err)
	}
	return rest, nil
}
