package main

import (
	"fmt"
	"io"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/config"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/demo"
)

// demoTokenLifetime is how long the tokens of the demo page are valid. It fetches a
// new one when it is told that its own has expired.
const demoTokenLifetime = time.Hour

// demoSigner signs the tokens that the demo page asks for.
func demoSigner(cfg authpass.Config) demo.Signer {
	return func(user domain.UserID) (string, error) {
		return authpass.SignToken(cfg.Token, user, demoTokenLifetime)
	}
}

// printDemoBanner says what demo mode is, what it is not, and where to look.
func printDemoBanner(to io.Writer, cfg config.Config) {
	base := "http://" + localAddress(cfg.HTTP.Addr)
	metrics := base
	if cfg.HTTP.AdminAddr != "" {
		metrics = "http://" + localAddress(cfg.HTTP.AdminAddr)
	}
	fmt.Fprintf(to, `
  ────────────────────────────────────────────────────────────────────────
   chat-transportation · DEMO MODE

   Broker, pass store and messaging backend live inside this process. The
   signing key is random. Nothing is stored and nothing is shared: all is
   gone when the process ends. Whoever reaches this address can be any
   user. For trying things out, not for production.

   chat page    %[1]s/demo
   API docs     %[1]s/docs
   metrics      %[2]s/metrics

   To run it for real, set RABBITMQ_URL and KEY (see README.md).
  ────────────────────────────────────────────────────────────────────────

`, base, metrics)
}
