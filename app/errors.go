package app

import (
	"errors"
	"fmt"
	"time"
)

// Sentinels that the edges translate into an HTTP status, a close code or an
// error frame. Causes are wrapped around them with %w and go to the log only.
var (
	// ErrUnauthenticated: the token is missing, malformed, forged or out of its time.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrPassInvalid: the pass is unknown, used or expired, or the token that it came
	// from has expired meanwhile.
	ErrPassInvalid = errors.New("the connection pass is not valid")
	// ErrPassStoreUnavailable: passes can be neither stored nor redeemed now.
	ErrPassStoreUnavailable = errors.New("the pass store is unavailable")
	// ErrShuttingDown: the instance takes no more connections.
	ErrShuttingDown = errors.New("the service is shutting down")
	// ErrForeignOrigin: the page that opens the connection is not an allowed one.
	ErrForeignOrigin = errors.New("the origin is not allowed")
	// ErrAtCapacity: the instance holds as many connections as it may.
	ErrAtCapacity = errors.New("the instance is at its connection limit")
	// ErrUserAtCapacity: the user holds as many connections here as one user may.
	ErrUserAtCapacity = errors.New("the user is at the connection limit")

	// ErrBrokerUnavailable: there is no usable connection to the broker.
	ErrBrokerUnavailable = errors.New("the message broker is unavailable")
	// ErrBrokerBlocked: the broker has told its publishers to stop (resource alarm).
	ErrBrokerBlocked = errors.New("the message broker takes no messages at the moment")
	// ErrBrokerBusy: more messages wait for the broker than the instance holds.
	ErrBrokerBusy = errors.New("too many messages wait for the message broker")
	// ErrUnroutable: no queue is bound that would take the message.
	ErrUnroutable = errors.New("no queue takes the message")
	// ErrNotAcknowledged: the broker refused the message (basic.nack).
	ErrNotAcknowledged = errors.New("the message broker refused the message")
	// ErrConfirmTimeout: the confirm did not come in time; the message may be stored.
	ErrConfirmTimeout = errors.New("the message broker did not confirm the message in time")

	// ErrDeliveryBody: what a backend published is not JSON in valid UTF-8.
	ErrDeliveryBody = errors.New("the body is not valid JSON")
	// ErrControlBody: a control message whose body is not a JSON object.
	ErrControlBody = errors.New("the body of the control message is not a JSON object")
)

// RateLimitError says that a limit is exceeded and when to try again.
type RateLimitError struct {
	// What names the limit for people.
	What string
	// RetryAfter is how long to wait, at least a second.
	RetryAfter time.Duration
}

// Error implements error.
func (e *RateLimitError) Error() string {
	return fmt.Sprintf("%s: try again in %s", e.What, e.RetryAfter)
}
