package demo

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"
	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

//go:embed page
var pageFiles embed.FS

// maxTokenRequest bounds the body of POST /demo/token, in bytes.
const maxTokenRequest = 1 << 10

// Signer makes a token that proves to be the user, with the key of this process. It
// is safe for concurrent use.
type Signer func(domain.UserID) (string, error)

// Pages serves the chat page of demo mode and the tokens that it needs. It must
// never be mounted outside demo mode: POST /demo/token lets anyone be any user.
type Pages struct {
	sign     Signer
	log      *zap.Logger
	document []byte
	policy   string // Content-Security-Policy
	etag     string
}

// NewPages returns the routes, with the page rendered; sign makes the tokens.
func NewPages(sign Signer, log *zap.Logger) (*Pages, error) {
	style, err := pageFiles.ReadFile("page/demo.css")
	if err != nil {
		return nil, fmt.Errorf("read the style of the demo page: %w", err)
	}
	script, err := pageFiles.ReadFile("page/demo.js")
	if err != nil {
		return nil, fmt.Errorf("read the script of the demo page: %w", err)
	}
	page, err := pageFiles.ReadFile("page/index.html")
	if err != nil {
		return nil, fmt.Errorf("read the demo page: %w", err)
	}
	// One document without a further request, so that it works under every prefix
	// and behind every proxy. The hashes let exactly this style and script run. All
	// three are files of this package, so that nothing needs escaping; html/template
	// would cost megabytes, since it keeps the linker from leaving out methods.
	document := []byte(strings.NewReplacer("{{style}}", string(style), "{{script}}", string(script)).Replace(string(page)))
	digest := sha256.Sum256(document)
	return &Pages{
		sign:     sign,
		log:      log,
		document: document,
		policy: "default-src 'none'; connect-src 'self'; img-src data:; style-src " + cspHash(style) + "; script-src " +
			cspHash(script) + "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		etag: `"` + base64.RawURLEncoding.EncodeToString(digest[:12]) + `"`,
	}, nil
}

// cspHash is the source expression that allows one inline element (CSP Level 3,
// section 2.3.1).
func cspHash(text []byte) string {
	digest := sha256.Sum256(text)
	return "'sha256-" + base64.StdEncoding.EncodeToString(digest[:]) + "'"
}

// Routes mounts the page and its token endpoint.
func (p *Pages) Routes(r chi.Router) {
	r.Get("/demo", p.page)
	// The links of the page are relative to /demo.
	r.Get("/demo/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "../demo")
		w.WriteHeader(http.StatusPermanentRedirect)
	})
	r.Post("/demo/token", p.token)
}

func (p *Pages) page(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", p.policy)
	header.Set("Cache-Control", "no-cache")
	header.Set("ETag", p.etag)
	if r.Header.Get("If-None-Match") == p.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	header.Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(p.document) // fails only where the client has gone
}

func (p *Pages) token(w http.ResponseWriter, r *http.Request) {
	user, err := readTokenRequest(http.MaxBytesReader(w, r.Body, maxTokenRequest))
	if err != nil {
		p.answerError(w, http.StatusBadRequest, "Data consistency error.", tokenRequestText)
		return
	}
	token, err := p.sign(user)
	if err != nil {
		p.log.Error("sign a demo token", zap.Error(err))
		p.answerError(w, http.StatusInternalServerError, "Internal error.", "The token could not be made.")
		return
	}
	p.answer(w, http.StatusOK, map[string]string{"access_token": token})
}

// tokenRequestText tells people what POST /demo/token wants.
const tokenRequestText = `The body must be a JSON object like {"user_id": 1}, with an integer from 1 to 9223372036854775807.`

var errTokenRequest = errors.New("not a token request")

// readTokenRequest reads the user from {"user_id": 1}. The number is read as text:
// a float64 would make 2^53+1 another user.
func readTokenRequest(body io.Reader) (domain.UserID, error) {
	var request struct {
		UserID jsontext.Value `json:"user_id"`
	}
	if err := jsonv2.UnmarshalRead(body, &request); err != nil {
		return domain.UserID{}, errTokenRequest
	}
	user, err := domain.ParseUserID(string(request.UserID))
	if err != nil {
		return domain.UserID{}, errTokenRequest
	}
	return user, nil
}

// answerError writes the error body of the wire contract's section 1.
func (p *Pages) answerError(w http.ResponseWriter, status int, title, text string) {
	var body struct {
		Detail struct {
			Title   string            `json:"title"`
			Details map[string]string `json:"details"`
		} `json:"detail"`
	}
	body.Detail.Title = title
	body.Detail.Details = map[string]string{"non-field-error": text}
	p.answer(w, status, body)
}

func (p *Pages) answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // fails only where the client has gone
}
