// Package hub is the WebSocket side of the gateway: it judges and answers upgrades,
// holds the connections, knows which of them belong to which user, reads what
// clients say and writes what backends publish.
//
// Who owns what. An upgrade's handler builds a session and hands it the socket; from
// then on the session's read goroutine owns it: it reads until the socket fails or is
// closed, and it alone ends the session (session.finish). Everybody else who wants the
// session to end says so with session.close, or cuts the socket and lets the reader
// find out. A delivery is written by whoever brings it, where the socket takes it at
// once; a writer goroutine exists only while something waits to be written, a closer
// goroutine only between the decision to close and the end. One timer pings all
// connections. At rest a connection is one goroutine, and a buffer of 512 bytes.
//
// The WebSocket library answers the handshake, reads, and writes pongs; the session
// writes its messages and every close frame to the wire as whole frames, several at once
// where they have had to wait.
//
// Locks, outermost first: member.turn (held over Open and Close of the inbox),
// Hub.mu, member.mu, session.mu, and below them round.mu and wire.mu. All but the first
// are held for moments only, never over I/O that can wait, or a call of somebody else's
// code.
package hub
