package app

import (
	"context"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// Grant is what a valid token proves: who the user is, and until when.
type Grant struct {
	User           domain.UserID
	TokenExpiresAt time.Time
}

// PassGrant is what a pass stands for: the grant it was issued for, and the moment
// from which the pass is good no more.
type PassGrant struct {
	Grant
	PassExpiresAt time.Time
}

// TokenVerifier checks the tokens that the authentication service issues.
// Implementations do no I/O and are safe for concurrent use.
type TokenVerifier interface {
	// Verify returns what the token proves, or an error that wraps
	// ErrUnauthenticated. The error's text holds nothing of the token.
	Verify(token string) (Grant, error)
}

// PassStore keeps issued passes until they are taken or have expired.
// Implementations are safe for concurrent use, also by other instances where the
// store is shared. Each call ends with ctx or within a second, whichever is first.
type PassStore interface {
	// Put keeps the pass until grant.PassExpiresAt. It returns an error that wraps
	// ErrPassStoreUnavailable where it can't.
	Put(ctx context.Context, pass domain.ConnectionPass, grant PassGrant) error
	// Take removes the pass and returns what it stands for. Of any number of
	// concurrent calls for one pass, on any number of instances, one gets the
	// grant and the others ErrPassInvalid, which is also what an unknown or
	// expired pass gets. Where the store can't be asked the error wraps
	// ErrPassStoreUnavailable; whether the pass is spent is then unknown.
	Take(ctx context.Context, pass domain.ConnectionPass) (PassGrant, error)
	// Available returns nil, or an error that wraps ErrPassStoreUnavailable, from
	// what the store knows already: it neither blocks nor does I/O.
	Available() error
	// Check asks the store whether it can serve now, within a second, and
	// returns an error that wraps ErrPassStoreUnavailable where it can't.
	Check(ctx context.Context) error
}

// Publisher hands the messages of clients to the broker. It is safe for concurrent
// use; messages that one goroutine publishes reach the broker in that order.
type Publisher interface {
	// Publish hands over message and returns without waiting for the broker. It
	// calls settled exactly once: with nil once the broker has confirmed the
	// message and has not returned it, else with an error that wraps one of
	// ErrBrokerUnavailable, ErrBrokerBlocked, ErrBrokerBusy, ErrUnroutable,
	// ErrNotAcknowledged and ErrConfirmTimeout, at the latest 500 ms after
	// deadline. A message is never handed to the broker twice, and not at all
	// once settled has been called.
	//
	// settled may be called before Publish returns, or from a goroutine of the
	// publisher; it must not block, since other messages wait behind it. ctx only
	// carries values (a trace); its end does not take the message back.
	Publish(ctx context.Context, message domain.Message, deadline time.Time, settled func(error))
	// Available returns nil while there is a connection to the broker, else an error
	// that wraps ErrBrokerUnavailable. It neither blocks nor does I/O.
	Available() error
	// Check asks whether the broker takes messages now, within a second, and
	// returns an error that wraps ErrBrokerUnavailable, ErrBrokerBlocked or
	// ErrConfirmTimeout where it does not.
	Check(ctx context.Context) error
}

// Inboxes gives each connected user an ephemeral place at the broker to which
// backends publish. It is safe for concurrent use, for different users; the caller
// serialises Open and Close for one user.
type Inboxes interface {
	// Open makes the user's inbox and returns once every message that a backend
	// publishes for the user from now on will be received. It returns an error
	// that wraps ErrBrokerUnavailable where that can't be had before ctx ends;
	// nothing is left behind then. The end of ctx after Open has returned means
	// nothing.
	//
	// receive is called for one delivery after the other, in the broker's order,
	// from a goroutine of the implementation, possibly before Open returns. Each
	// delivery must be settled once, by any goroutine, also after receive has
	// returned; the implementation hands out no more than its prefetch unsettled.
	// Where the user has a queue of its own, receive may block and holds up this
	// user only; where users share one (the instance scope), it must not block.
	//
	// From then on, and until Close, the inbox is made anew by itself whenever the
	// broker or the queue goes away; messages published meanwhile are not received.
	Open(ctx context.Context, user domain.UserID, receive func(Delivery)) (Inbox, error)
	// Available returns nil while inboxes can be opened, else an error that wraps
	// ErrBrokerUnavailable. It neither blocks nor does I/O.
	Available() error
	// Check returns nil while every open inbox receives, else an error that says
	// how many do not. It neither blocks nor does I/O.
	Check(ctx context.Context) error
}

// Inbox is an open inbox of one user.
type Inbox interface {
	// Close removes the inbox from the broker and returns when it is gone, when
	// the connection that it belongs to is gone (the broker then removes it), or
	// when ctx ends (it is then removed in the background). Until ctx ends, receive
	// is called for what the broker has handed over; after Close has returned it is
	// not called any more. A second call does nothing.
	Close(ctx context.Context) error
}

// Delivery is a message that a backend published for a user.
type Delivery struct {
	// Body is the message as published. It is shared and must not be changed.
	Body []byte
	// Type is the AMQP property "type"; see ControlDisconnect.
	Type string
	// Context carries the trace that the publisher sent along; nil where there is
	// none.
	Context context.Context
	// Tag and Acks settle the delivery; see Ack and Reject.
	Tag  uint64
	Acks Acknowledger
}

// Acknowledger settles deliveries by their tag. It is safe for concurrent use,
// does not block, and ignores tags of a connection that is gone.
type Acknowledger interface {
	// Ack tells the broker that the delivery has been dealt with.
	Ack(tag uint64)
	// Reject tells the broker to drop the delivery (basic.reject without requeue).
	Reject(tag uint64)
}

// Ack settles the delivery as dealt with.
func (d Delivery) Ack() { d.Acks.Ack(d.Tag) }

// Reject settles the delivery as not deliverable; it is not requeued.
func (d Delivery) Reject() { d.Acks.Reject(d.Tag) }

// Recipient is one connected user, as the hub knows it.
type Recipient interface {
	// Deliver writes the delivery to each of the user's open connections and acks
	// it when that is done or can't be done any more.
	Deliver(d Delivery)
	// Disconnect closes the user's open connections with 4403 and the reason, at
	// most 120 bytes. It does not wait for them to be closed.
	Disconnect(reason string)
}
