package app

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// ConnectLimits are the limits that Connect holds. 0 turns a limit off.
type ConnectLimits struct {
	// MaxConnections is how many connections the instance holds.
	MaxConnections int
	// ConnectsPerSecond is how many upgrades the instance looks at a second.
	ConnectsPerSecond int
	// PassFailuresPerMinute is how many bad passes one client address may present a minute.
	PassFailuresPerMinute int
}

// Attempt is what a client shows when it wants to connect.
type Attempt struct {
	// Pass is what the client gives as its pass: any text, possibly none.
	Pass string
	// Client is the client's address, for the limit of bad passes.
	Client netip.Addr
	// ForeignOrigin says that the upgrade comes from a page that may not connect.
	ForeignOrigin bool
}

// Connect decides whether a client may connect, in the order of the wire contract:
// what does not depend on the pass is judged before the pass is spent. It is safe
// for concurrent use.
type Connect struct {
	passes    PassStore
	publisher Publisher
	inboxes   Inboxes
	limits    ConnectLimits

	draining  atomic.Bool
	admitted  atomic.Int64
	admission *admissionValve
	failures  *Quota[netip.Addr]
}

// NewConnect returns the use case.
func NewConnect(passes PassStore, publisher Publisher, inboxes Inboxes, limits ConnectLimits) *Connect {
	return &Connect{
		passes:    passes,
		publisher: publisher,
		inboxes:   inboxes,
		limits:    limits,
		admission: newAdmissionValve(limits.ConnectsPerSecond),
		failures:  NewQuota[netip.Addr](limits.PassFailuresPerMinute, time.Minute),
	}
}

// Admission is the right to hold one connection. It must be given back with Release.
type Admission struct {
	Grant

	pass     domain.ConnectionPass
	grant    PassGrant
	connect  *Connect
	released atomic.Bool
}

// Release gives the place of the connection back. Calls after the first do nothing.
func (a *Admission) Release() {
	if !a.released.Swap(true) {
		a.connect.admitted.Add(-1)
	}
}

// Unspend makes the pass good again for the rest of its time, where the connection
// could not be had for a reason that is not the client's.
func (a *Admission) Unspend(ctx context.Context) error {
	if err := a.connect.passes.Put(ctx, a.pass, a.grant); err != nil {
		return fmt.Errorf("give the pass back: %w", err)
	}
	return nil
}

// Drain refuses every attempt from now on with ErrShuttingDown.
func (c *Connect) Drain() { c.draining.Store(true) }

// Draining returns ErrShuttingDown once Drain has been called.
func (c *Connect) Draining() error {
	if c.draining.Load() {
		return ErrShuttingDown
	}
	return nil
}

// Overloaded reports whether attempts exceed ConnectsPerSecond, and when to come back.
func (c *Connect) Overloaded() (time.Duration, bool) { return c.admission.overloaded() }

// Admit judges an attempt. Its error wraps, in this order, ErrShuttingDown,
// ErrBrokerUnavailable or ErrPassStoreUnavailable, is a *RateLimitError, wraps
// ErrForeignOrigin or ErrAtCapacity (up to here the pass is not spent), or
// ErrPassInvalid. The caller releases the admission when the connection has ended.
func (c *Connect) Admit(ctx context.Context, attempt Attempt) (*Admission, error) {
	for _, check := range []func() error{c.Draining, c.publisher.Available, c.inboxes.Available, c.passes.Available} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	if wait, ok := c.admission.take(); !ok {
		return nil, &RateLimitError{What: "too many connects", RetryAfter: wait}
	}
	client := addressBlock(attempt.Client)
	if wait, over := c.failures.Exceeded(client); over {
		return nil, &RateLimitError{What: "too many bad passes", RetryAfter: wait}
	}
	if attempt.ForeignOrigin {
		return nil, ErrForeignOrigin
	}
	if c.full(c.admitted.Load() + 1) {
		return nil, ErrAtCapacity
	}
	// The place is taken after the pass: attempts that will not be admitted must not
	// keep others out meanwhile.
	admission := &Admission{connect: c}
	if err := c.redeem(ctx, attempt.Pass, admission); err != nil {
		if errors.Is(err, ErrPassInvalid) {
			c.failures.Take(client)
		}
		return nil, err
	}
	if c.full(c.admitted.Add(1)) {
		admission.Release()
		if err := admission.Unspend(context.WithoutCancel(ctx)); err != nil {
			return nil, err
		}
		return nil, ErrAtCapacity
	}
	return admission, nil
}

// full reports whether so many connections are more than there may be.
func (c *Connect) full(connections int64) bool {
	return c.limits.MaxConnections > 0 && connections > int64(c.limits.MaxConnections)
}

func (c *Connect) redeem(ctx context.Context, text string, admission *Admission) error {
	pass, err := domain.ParseConnectionPass(text)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPassInvalid, err)
	}
	grant, err := c.passes.Take(ctx, pass)
	if err != nil {
		return fmt.Errorf("take a pass: %w", err)
	}
	if !time.Now().Before(grant.TokenExpiresAt) {
		return fmt.Errorf("%w: its token has expired", ErrPassInvalid)
	}
	admission.Grant, admission.pass, admission.grant = grant.Grant, pass, grant
	return nil
}

// addressBlock returns what one client is taken to own: an IPv4 address, or the /64
// of an IPv6 address, since a client can choose freely within that.
func addressBlock(address netip.Addr) netip.Addr {
	address = address.Unmap()
	if address.Is6() {
		if block, err := address.Prefix(64); err == nil {
			return block.Addr()
		}
	}
	return address
}

// admissionValve holds ConnectsPerSecond and tells those it refuses when to come
// back: the more it refuses, the wider it spreads them.
type admissionValve struct {
	limiter *rate.Limiter // nil: no limit
	limit   int

	mu          sync.Mutex
	lastRefused time.Time
	waiting     int // refused since the valve was last idle
}

func newAdmissionValve(perSecond int) *admissionValve {
	v := &admissionValve{limit: perSecond}
	if perSecond > 0 {
		v.limiter = rate.NewLimiter(rate.Limit(perSecond), perSecond)
	}
	return v
}

func (v *admissionValve) take() (time.Duration, bool) {
	if v.limiter == nil || v.limiter.Allow() {
		return 0, true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	if now.Sub(v.lastRefused) >= time.Second {
		v.waiting = 0
	}
	v.lastRefused = now
	v.waiting++
	return v.spread(), false
}

// overloaded reports whether an attempt was refused within the last second.
func (v *admissionValve) overloaded() (time.Duration, bool) {
	if v.limiter == nil {
		return 0, false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if time.Since(v.lastRefused) >= time.Second {
		return 0, false
	}
	return v.spread(), true
}

// spread draws a wait of whole seconds from one to the time that the limit needs to
// admit all who were refused, a minute at most.
func (v *admissionValve) spread() time.Duration {
	seconds := min(v.waiting/v.limit, 59)
	return time.Second * time.Duration(1+rand.IntN(seconds+1))
}
