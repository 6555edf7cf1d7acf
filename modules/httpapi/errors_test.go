package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

func TestWriteError(t *testing.T) {
	secret := errors.New("dial tcp 10.1.2.3:6379: sesame")
	for _, test := range []struct {
		name       string
		err        error
		status     int
		title      string
		retryAfter string // "": none; "short": 1 to 5
		logged     int    // at error level
	}{
		{"unauthenticated", fmt.Errorf("%w: %w", app.ErrUnauthenticated, secret), 401, "Authentication exception.", "", 0},
		{"pass store", fmt.Errorf("store: %w: %w", app.ErrPassStoreUnavailable, secret), 503, "Service unavailable.", "short", 0},
		{"broker", fmt.Errorf("%w: %w", app.ErrBrokerUnavailable, secret), 503, "Service unavailable.", "short", 0},
		{"broker blocked", fmt.Errorf("%w: %w", app.ErrBrokerBlocked, secret), 503, "Service unavailable.", "short", 0},
		{"broker busy", fmt.Errorf("%w: %w", app.ErrBrokerBusy, secret), 503, "Service unavailable.", "short", 0},
		{"shutting down", app.ErrShuttingDown, 503, "Service unavailable.", "short", 0},
		{"foreign origin", app.ErrForeignOrigin, 403, "Forbidden.", "", 0},
		{"rate limit", fmt.Errorf("wrapped: %w", &app.RateLimitError{What: "sesame", RetryAfter: 90 * time.Second}), 429, "Rate limit exceeded.", "90", 0},
		{"rate limit, rounded up", &app.RateLimitError{RetryAfter: 1100 * time.Millisecond}, 429, "Rate limit exceeded.", "2", 0},
		{"rate limit, at least a second", &app.RateLimitError{RetryAfter: time.Nanosecond}, 429, "Rate limit exceeded.", "1", 0},
		{"rate limit without a wait", &app.RateLimitError{RetryAfter: -time.Hour}, 429, "Rate limit exceeded.", "1", 0},
		{"too large", fmt.Errorf("read: %w", &http.MaxBytesError{Limit: 1}), 413, "Request too large.", "", 0},
		{"anything else", secret, 500, "Internal error.", "", 1},
		{"cancelled by us", context.Canceled, 500, "Internal error.", "", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(Config{}, []func(chi.Router){func(r chi.Router) {
				r.Get("/", func(w http.ResponseWriter, r *http.Request) { WriteError(w, r, test.err) })
			}}, nil)
			response := b.serve(httptest.NewRequest(http.MethodGet, "/", nil))
			mustBeProblem(t, response, test.status, test.title)
			if strings.Contains(response.Body.String(), "sesame") {
				t.Errorf("the answer says too much: %s", response.Body)
			}
			if got, want := response.Header().Get("Www-Authenticate"), map[bool]string{true: "Bearer"}[test.status == 401]; got != want {
				t.Errorf("WWW-Authenticate is %q, want %q", got, want)
			}
			got := response.Header().Get("Retry-After")
			if test.retryAfter == "short" {
				if n, err := strconv.Atoi(got); err != nil || n < 1 || n > 5 {
					t.Errorf("Retry-After is %q, want 1 to 5", got)
				}
			} else if got != test.retryAfter {
				t.Errorf("Retry-After is %q, want %q", got, test.retryAfter)
			}
			if n := b.logs.FilterLevelExact(zap.ErrorLevel).Len(); n != test.logged {
				t.Errorf("%d lines at error level, want %d", n, test.logged)
			}
		})
	}
}

// A client that leaves is no fault of ours, and WriteError needs no Server around it.
func TestWriteErrorClientLeft(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	leave()
	response := httptest.NewRecorder()
	WriteError(response, httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil), fmt.Errorf("ask: %w", context.Canceled))
	mustBeProblem(t, response, http.StatusServiceUnavailable, "Service unavailable.")
}
