package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// tokenLifetime is far longer than a run, so that no connection ends with its token.
const tokenLifetime = 24 * time.Hour

// tokens signs what an authentication service would: JWTs with user_id and exp. It is
// safe for concurrent use.
type tokens struct {
	key    []byte
	method jwt.SigningMethod
}

// newTokens returns the signer; the algorithm is HS256, HS384 or HS512.
func newTokens(key []byte, algorithm string) (*tokens, error) {
	method, ok := jwt.GetSigningMethod(algorithm).(*jwt.SigningMethodHMAC)
	if !ok {
		return nil, errors.New("the algorithm is none of HS256, HS384, HS512")
	}
	return &tokens{key, method}, nil
}

// token returns a token for a user.
func (t *tokens) token(user int64) (string, error) {
	token, err := jwt.NewWithClaims(t.method, jwt.MapClaims{
		"user_id": user,
		"exp":     time.Now().Add(tokenLifetime).Unix(),
	}).SignedString(t.key)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	return token, nil
}

// gateway is the dialect of chat-transportation, version 1 of its contract.
type gateway struct {
	dialer *dialer
	passes *passWindow
	places []place
	tokens *tokens
}

func (g *gateway) open(ctx context.Context, c *client) (net.Conn, []byte, error) {
	token, err := g.tokens.token(c.crew.config.user(c.user))
	if err != nil {
		return nil, nil, err
	}
	at := g.places[c.index%len(g.places)]
	pass, err := g.passes.pass(ctx, at, token)
	if err != nil {
		return nil, nil, err
	}
	return g.dialer.upgrade(ctx, at, socketPath, "connection_pass="+pass, "")
}

func (g *gateway) greeting(*client) [][]byte { return nil }

func (g *gateway) appendText(dst, scratch []byte, c *client, s stamp) (text, reuse []byte) {
	user := c.crew.config.user(c.user)
	return c.crew.envelope.appendFrame(dst, scratch, s, user, user)
}

func (g *gateway) received(c *client, text []byte) error {
	if s, ok := stampOf(text, memberID); ok {
		c.arrived(s)
		return nil
	}
	why := titleOf(text)
	if s, ok := stampOf(text, memberReplyTo); ok && why != "" {
		c.refused(s, why)
		return nil
	}
	c.crew.foreign.Add(1)
	return nil
}
