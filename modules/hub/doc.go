// Package hub is the WebSocket side of the gateway: it judges and answers upgrades,
// holds the connections, knows which of them belong to which user, reads what
// clients say and writes what backends publish.
//
// Who owns what. An upgrade's handler builds a session and hands it the socket; from
// then on the session's read goroutine owns it: it reads until the socket fails or is
// closed, and it alone ends the session (session.finish). Everybody else who wants the
// session to end says so with session.close, or cuts the socket and lets the reader
// find out. A writer goroutine exists only while something waits to be written, a
// closer goroutine only between the decision to close and the end. At rest a
// connection is one goroutine, one timer, and buffers of 512 bytes.
//
// Locks, outermost first: member.turn (held over Open and Close of the inbox),
// Hub.mu, member.mu, session.mu. The last three are held for moments only, never over
// I/O or a call of somebody else's code.
package hub
