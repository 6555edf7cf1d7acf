package main

import (
	"net"
	"net/url"
	"sync"
	"testing"
)

// proxy stands between the service and a server, and does to the bytes what a broken
// network does.
type proxy struct {
	t        *testing.T
	listener net.Listener
	target   string

	mu      sync.Mutex
	changed *sync.Cond
	closed  bool
	// swallowed directions: bytes are read and never arrive, and nobody is told.
	requests, answers bool
	// held answers wait until the hold ends, and then go on in order.
	held  bool
	pairs map[net.Conn]net.Conn
	busy  sync.WaitGroup
}

// newProxy returns a proxy to target, host:port, on a port of its own.
func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, listener: listener, target: target, pairs: make(map[net.Conn]net.Conn)}
	p.changed = sync.NewCond(&p.mu)
	p.busy.Go(p.accept)
	t.Cleanup(func() {
		p.set(func() { p.closed = true })
		_ = listener.Close()
		p.cut()
		p.busy.Wait()
	})
	return p
}

// through returns the URL with the proxy in the place of its host.
func (p *proxy) through(rawURL string) string {
	p.t.Helper()
	parsed, err := url.Parse(rawURL)
	if err != nil {
		p.t.Fatal(err)
	}
	parsed.Host = p.listener.Addr().String()
	return parsed.String()
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.pairs[client] = server
		p.mu.Unlock()
		p.busy.Go(func() { p.carry(client, server, false) })
		p.busy.Go(func() { p.carry(server, client, true) })
	}
}

// carry passes bytes on in one direction until either side ends.
func (p *proxy) carry(from, to net.Conn, answers bool) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && p.passes(answers) {
			if _, err := to.Write(buffer[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	// In a black hole the other side must not learn of the end either.
	p.mu.Lock()
	for (p.requests || p.answers) && !p.closed {
		p.changed.Wait()
	}
	p.mu.Unlock()
	_ = from.Close()
	_ = to.Close()
}

// passes waits while answers are held and reports whether the bytes go on.
func (p *proxy) passes(answers bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for answers && p.held && !p.closed {
		p.changed.Wait()
	}
	if answers {
		return !p.answers
	}
	return !p.requests
}

func (p *proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	p.changed.Broadcast()
}

// blackHole swallows everything in both directions, or ends that. What was swallowed
// is lost, so the connections of that time are cut when it ends.
func (p *proxy) blackHole(on bool) {
	p.set(func() { p.requests, p.answers = on, on })
	if !on {
		p.cut()
	}
}

// hold keeps the server's answers back, or lets them go.
func (p *proxy) hold(on bool) { p.set(func() { p.held = on }) }

// cut ends all connections at once, as a router that restarts does.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for client, server := range p.pairs {
		_ = client.Close()
		_ = server.Close()
	}
	clear(p.pairs)
}
