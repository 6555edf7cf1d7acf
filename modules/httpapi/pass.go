package httpapi

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// Passes serves the route on which the bearer of a token gets a connection pass.
type Passes struct {
	issue  *app.IssuePass
	issued prometheus.Counter
}

// NewPasses returns the route over the use case and registers its metric.
func NewPasses(issue *app.IssuePass, registerer prometheus.Registerer) *Passes {
	p := &Passes{issue: issue, issued: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "connection_passes_issued_total",
		Help: "Connection passes that were handed out.",
	})}
	registerer.MustRegister(p.issued)
	return p
}

// Routes registers POST /messages/get-connection-pass.
func (p *Passes) Routes(r chi.Router) { r.Post("/messages/get-connection-pass", p.get) }

func (p *Passes) get(w http.ResponseWriter, r *http.Request) {
	// Without a token too: an instance past its admission limit says so to everybody.
	token, malformed := bearerToken(r.Header)
	issued, err := p.issue.Issue(r.Context(), token)
	if malformed != nil && errors.Is(err, app.ErrUnauthenticated) {
		err = malformed // which tells the log more
	}
	if err != nil {
		WriteError(w, r, err)
		return
	}
	p.issued.Inc()
	// For caches that know HTTP/1.0 only; writeJSON tells the others.
	w.Header().Set("Pragma", "no-cache")
	writeJSON(w, http.StatusOK, struct {
		ConnectionPass string `json:"connection_pass"`
		ExpiresIn      int64  `json:"expires_in"`
	}{issued.Pass.Reveal(), int64(issued.ExpiresIn / time.Second)})
}

// bearerToken returns the token of the one Authorization header, in the syntax of RFC
// 6750, section 2.1, or an error that wraps app.ErrUnauthenticated. The name of the
// scheme is case-insensitive (RFC 9110, section 11.1).
func bearerToken(header http.Header) (string, error) {
	const scheme = "Bearer"
	values := header.Values("Authorization")
	if len(values) != 1 {
		return "", fmt.Errorf("%w: %d Authorization headers", app.ErrUnauthenticated, len(values))
	}
	value := values[0]
	if len(value) <= len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) || value[len(scheme)] != ' ' {
		return "", fmt.Errorf("%w: another scheme than Bearer", app.ErrUnauthenticated)
	}
	token := strings.TrimLeft(value[len(scheme):], " ")
	if !isToken68(token) {
		return "", fmt.Errorf("%w: no token after the scheme", app.ErrUnauthenticated)
	}
	return token, nil
}

// isToken68 reports whether text is a b64token (RFC 6750, section 2.1), which RFC 9110
// calls token68.
func isToken68(text string) bool {
	text = strings.TrimRight(text, "=")
	if text == "" {
		return false
	}
	for i := range len(text) {
		c := text[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-._~+/", rune(c)) {
			return false
		}
	}
	return true
}
