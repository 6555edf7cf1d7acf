package authpass

import (
	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// unavailableError wraps app.ErrPassStoreUnavailable and its cause. Its text names the
// reason only: it is shown on /readyz, where addresses of servers have no place. The
// cause goes to the log.
type unavailableError struct {
	reason string
	cause  error
}

func unavailable(reason string, cause error) *unavailableError {
	return &unavailableError{reason: reason, cause: cause}
}

func (e *unavailableError) Error() string {
	return app.ErrPassStoreUnavailable.Error() + ": " + e.reason
}

func (e *unavailableError) Unwrap() []error { return []error{app.ErrPassStoreUnavailable, e.cause} }
