package domain

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
)

// Bounds of the length of a connection pass, in characters. The least length of
// 16 carries 95 bits; the greatest keeps a forged query from costing anything.
const (
	MinPassLength = 16
	MaxPassLength = 512
)

// ErrPassFormat is returned for text that can't be a connection pass.
var ErrPassFormat = errors.New("not a connection pass")

// passAlphabet are the characters of a pass, as the wire contract has them.
const passAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// ConnectionPass opens one connection, once. It is a secret: printing it by
// accident shows nothing of it.
type ConnectionPass struct{ secret string }

// NewConnectionPass draws a pass of length characters of [A-Za-z0-9] from the
// operating system's cryptographic source. The length is MinPassLength to
// MaxPassLength, else ErrPassFormat is returned.
func NewConnectionPass(length int) (ConnectionPass, error) {
	if length < MinPassLength || length > MaxPassLength {
		return ConnectionPass{}, ErrPassFormat
	}
	// 248 is the greatest multiple of 62 that a byte can hold: a byte above it is
	// drawn again, since byte%62 would make the first characters likelier.
	const fair = 256 - 256%len(passAlphabet)
	secret := make([]byte, 0, length)
	buffer := make([]byte, length+length/8+8)
	for len(secret) < length {
		// Read never fails: it ends the program where the system has no randomness.
		_, _ = rand.Read(buffer)
		for _, b := range buffer {
			if int(b) < fair && len(secret) < length {
				secret = append(secret, passAlphabet[int(b)%len(passAlphabet)])
			}
		}
	}
	return ConnectionPass{string(secret)}, nil
}

// ParseConnectionPass reads what a client presents as its pass. It returns
// ErrPassFormat for what can't be one; what it returns need not be known.
func ParseConnectionPass(text string) (ConnectionPass, error) {
	if len(text) < MinPassLength || len(text) > MaxPassLength {
		return ConnectionPass{}, ErrPassFormat
	}
	for i := range len(text) {
		c := text[i]
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return ConnectionPass{}, ErrPassFormat
		}
	}
	return ConnectionPass{text}, nil
}

// Reveal returns the secret. Only the answer to the client may hold it.
func (p ConnectionPass) Reveal() string { return p.secret }

// Digest returns the SHA-256 of the pass. Stores look passes up by it: it can't be
// turned back into the pass, and how long a comparison of digests takes tells
// nothing about the pass.
func (p ConnectionPass) Digest() [sha256.Size]byte { return sha256.Sum256([]byte(p.secret)) }

// String keeps the secret out of %v and %s, and so out of logs.
func (p ConnectionPass) String() string { return "[connection pass]" }

// GoString keeps the secret out of %#v.
func (p ConnectionPass) GoString() string { return "[connection pass]" }
