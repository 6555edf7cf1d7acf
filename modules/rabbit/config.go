package rabbit

import "time"

// Scope says what has a queue of its own at the broker.
type Scope string

const (
	// ScopeUser gives each connected user a queue.
	ScopeUser Scope = "user"
	// ScopeInstance gives the instance one queue, with a binding for each connected
	// user.
	ScopeInstance Scope = "instance"
)

// Config is what Publisher and Inboxes need to know.
type Config struct {
	// URLs are the AMQP URLs of the nodes of one cluster, tried in turn; at least one.
	URLs []string
	// WebsocketsExchange is the direct exchange that backends publish deliveries to.
	WebsocketsExchange string
	// DatabaseExchange is the direct exchange that client messages are published to.
	DatabaseExchange string
	// Prefetch is how many deliveries of one user may be unsettled (ScopeUser).
	Prefetch int
	// InstancePrefetch is how many deliveries of all users together may be unsettled
	// (ScopeInstance).
	InstancePrefetch int
	// Scope says what has a queue of its own.
	Scope Scope
	// AppID is the AMQP property app_id of client messages, and what the names of the
	// connections begin with; at most 200 bytes.
	AppID string
	// StopTimeout bounds each Stop.
	StopTimeout time.Duration
}
