package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// problem is an answer that is an error: what the wire contract shows of it.
type problem struct {
	status int
	title  string
	detail string
	header http.Header
}

var (
	problemUnauthenticated = problem{
		status: http.StatusUnauthorized, title: "Authentication exception.",
		detail: "The token is missing or not valid.",
		// RFC 6750, section 3. No error code: it would say what is wrong with the token.
		header: http.Header{"Www-Authenticate": {"Bearer"}},
	}
	problemForbidden = problem{
		status: http.StatusForbidden, title: "Forbidden.",
		detail: "Pages of this origin may not connect.",
	}
	problemNotFound = problem{
		status: http.StatusNotFound, title: "Not found.",
		detail: "There is nothing at this address.",
	}
	problemMethodNotAllowed = problem{
		status: http.StatusMethodNotAllowed, title: "Method not allowed.",
		detail: "This address does not take the method.",
	}
	problemTooLarge = problem{
		status: http.StatusRequestEntityTooLarge, title: "Request too large.",
		detail: "The body of the request is too large.",
	}
	problemRateLimit = problem{
		status: http.StatusTooManyRequests, title: "Rate limit exceeded.",
		detail: "Too many requests: try again later.",
	}
	problemUnavailable = problem{
		status: http.StatusServiceUnavailable, title: "Service unavailable.",
		detail: "The service can't do this at the moment: try again later.",
	}
	problemInternal = problem{
		status: http.StatusInternalServerError, title: "Internal error.",
		detail: "Something went wrong on our side.",
	}
)

// write answers with the problem.
func (p problem) write(w http.ResponseWriter) {
	type details struct {
		Text string `json:"non-field-error"`
	}
	type detail struct {
		Title   string  `json:"title"`
		Details details `json:"details"`
	}
	for name, values := range p.header {
		w.Header()[name] = values
	}
	writeJSON(w, p.status, struct {
		Detail detail `json:"detail"`
	}{detail{p.title, details{p.detail}}})
}

// writeJSON answers with value, which nobody may store: passes, errors and health
// are all of the moment.
func writeJSON(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		// Only strings and numbers come here.
		panic("httpapi: encode an answer: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// A client that does not read its answer does not hear of it either.
	_, _ = w.Write(append(body, '\n'))
}

// WriteError answers a request with what the client may know about err, in the shape
// and with the statuses of the wire contract. It is the one place that translates
// errors into HTTP. An error that it does not know is logged and answered with 500;
// of the others the cause goes to the log at debug level. It logs only for requests
// that a Server serves.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	log := exchangeOf(r).log
	answer, known := translate(err)
	switch {
	case known:
		log.Debug("request refused", zap.Int("status", answer.status), zap.Error(err))
	case errors.Is(err, context.Canceled) && r.Context().Err() != nil:
		// The client has left: nothing of ours went wrong, and nobody reads the answer.
		answer = unavailable()
	default:
		log.Error("a request failed", zap.Error(err))
	}
	answer.write(w)
}

func translate(err error) (problem, bool) {
	var limit *app.RateLimitError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, app.ErrUnauthenticated):
		return problemUnauthenticated, true
	case errors.As(err, &limit):
		answer := problemRateLimit
		answer.header = retryAfter(limit.RetryAfter)
		return answer, true
	case errors.Is(err, app.ErrForeignOrigin):
		return problemForbidden, true
	case errors.Is(err, app.ErrShuttingDown),
		errors.Is(err, app.ErrPassStoreUnavailable),
		errors.Is(err, app.ErrBrokerUnavailable),
		errors.Is(err, app.ErrBrokerBlocked),
		errors.Is(err, app.ErrBrokerBusy):
		return unavailable(), true
	case errors.As(err, &tooLarge):
		return problemTooLarge, true
	}
	return problemInternal, false
}

// maxUnavailable is the longest that a client is told to stay away when the service
// can't serve: it comes back within seconds or not soon.
const maxUnavailable = 5

// unavailable draws how long to stay away, so that clients don't all come back at once.
func unavailable() problem {
	answer := problemUnavailable
	answer.header = retryAfter(time.Second * time.Duration(1+rand.IntN(maxUnavailable)))
	return answer
}

// retryAfter returns the header of RFC 9110, section 10.2.3, in whole seconds,
// rounded up, and at least one.
func retryAfter(wait time.Duration) http.Header {
	seconds := int64(wait / time.Second)
	if wait%time.Second > 0 {
		seconds++
	}
	return http.Header{"Retry-After": {strconv.FormatInt(max(seconds, 1), 10)}}
}
