package httpapi

import (
	"net/http"

	"github.com/go-chi/chi/v5"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// Health serves the routes that tell an orchestrator how the instance is.
type Health struct{ readiness *app.Readiness }

// NewHealth returns the routes over the use case.
func NewHealth(readiness *app.Readiness) *Health { return &Health{readiness} }

// Routes registers GET and HEAD of /healthz and /readyz.
func (h *Health) Routes(r chi.Router) {
	r.Get("/healthz", h.alive)
	r.Head("/healthz", h.alive)
	r.Get("/readyz", h.ready)
	r.Head("/readyz", h.ready)
}

// alive says that the process serves requests, and asks nobody else: an instance whose
// broker is away must not be restarted for it.
func (h *Health) alive(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, struct {
		Status string `json:"status"`
	}{"ok"})
}

// ready says whether new clients should be sent here.
func (h *Health) ready(w http.ResponseWriter, r *http.Request) {
	checks, ready := h.readiness.Report(r.Context())
	status, word := http.StatusOK, "ready"
	if !ready {
		status, word = http.StatusServiceUnavailable, "not ready"
	}
	writeJSON(w, status, struct {
		Status string            `json:"status"`
		Checks map[string]string `json:"checks"`
	}{word, checks})
}
