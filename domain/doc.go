// Package domain holds the entities of the gateway: who a user is, what a
// message is, what a connection pass is. A value that one of its constructors
// returned is valid, so no other layer checks it again. It depends on the
// standard library only.
package domain
