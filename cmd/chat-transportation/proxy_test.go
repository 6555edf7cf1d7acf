package main

import (
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
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
	pairs map[net.Conn]net.Conn // by client
	// stranded are pairs of which neither side hears anything any more.
	stranded map[net.Conn]net.Conn
	// tap, where it is set before the first connection, sees what passes: in order, for
	// each connection and direction.
	tap  func(client net.Conn, answers bool, data []byte)
	busy sync.WaitGroup
}

// newProxy returns a proxy to target, host:port, on a port of its own.
func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, listener: listener, target: target, pairs: make(map[net.Conn]net.Conn), stranded: make(map[net.Conn]net.Conn)}
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
		p.busy.Go(func() { p.carry(client, server, client, false) })
		p.busy.Go(func() { p.carry(server, client, client, true) })
	}
}

// carry passes bytes of the client's pair on in one direction until either side ends.
func (p *proxy) carry(from, to, client net.Conn, answers bool) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && p.passes(client, answers) {
			if p.tap != nil {
				p.tap(client, answers, buffer[:n])
			}
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
	for (p.requests || p.answers || p.stranded[client] != nil) && !p.closed {
		p.changed.Wait()
	}
	p.mu.Unlock()
	_ = from.Close()
	_ = to.Close()
}

// passes waits while answers are held and reports whether the bytes go on.
func (p *proxy) passes(client net.Conn, answers bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for answers && p.held && !p.closed {
		p.changed.Wait()
	}
	if p.stranded[client] != nil {
		return false
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

// strand swallows everything of the connections that there are now; those to come are
// not touched. A server that speaks AMQP goes on hearing heartbeats, so it does not
// notice before bury.
func (p *proxy) strand() {
	p.set(func() {
		for client, server := range p.pairs {
			p.stranded[client] = server
			p.busy.Go(func() { keepAlive(server) })
		}
	})
}

// keepAlive sends heartbeats until the connection is closed.
func keepAlive(server net.Conn) {
	heartbeat := []byte{8, 0, 0, 0, 0, 0, 0, 0xCE} // AMQP 0-9-1, section 4.2.7
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range tick.C {
		if _, err := server.Write(heartbeat); err != nil {
			return
		}
	}
}

// bury ends the stranded connections.
func (p *proxy) bury() {
	p.set(func() {
		for client, server := range p.stranded {
			_ = client.Close()
			_ = server.Close()
		}
	})
}

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
