package app

import (
	"context"
	"fmt"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// PassPolicy says what issued passes are like.
type PassPolicy struct {
	// Length is the number of characters, domain.MinPassLength to domain.MaxPassLength.
	Length int
	// Lifetime is how long a pass is good.
	Lifetime time.Duration
	// RequestsPerMinute is how many passes one user gets a minute; 0 is no limit.
	RequestsPerMinute int
}

// IssuedPass is a pass and how long it is good.
type IssuedPass struct {
	Pass      domain.ConnectionPass
	ExpiresIn time.Duration
}

// IssuePass gives the bearer of a valid token a pass for one connection. It is safe
// for concurrent use.
type IssuePass struct {
	tokens   TokenVerifier
	passes   PassStore
	policy   PassPolicy
	requests *Quota[domain.UserID]
	// overload reports for how long the instance admits no connections, if so.
	overload func() (time.Duration, bool)
}

// NewIssuePass returns the use case. connect tells whether the instance is past its
// admission limit, in which case passes are refused too.
func NewIssuePass(tokens TokenVerifier, passes PassStore, policy PassPolicy, connect *Connect) *IssuePass {
	return &IssuePass{
		tokens:   tokens,
		passes:   passes,
		policy:   policy,
		requests: NewQuota[domain.UserID](policy.RequestsPerMinute, time.Minute),
		overload: connect.Overloaded,
	}
}

// Issue returns a new pass for the user of the token, which is any text. The error is
// a *RateLimitError, or wraps ErrUnauthenticated or ErrPassStoreUnavailable.
func (u *IssuePass) Issue(ctx context.Context, token string) (IssuedPass, error) {
	if wait, over := u.overload(); over {
		return IssuedPass{}, &RateLimitError{What: "too many connects", RetryAfter: wait}
	}
	grant, err := u.tokens.Verify(token)
	if err != nil {
		return IssuedPass{}, err
	}
	if wait, ok := u.requests.Take(grant.User); !ok {
		return IssuedPass{}, &RateLimitError{What: "too many pass requests", RetryAfter: wait}
	}
	pass, err := domain.NewConnectionPass(u.policy.Length)
	if err != nil {
		u.requests.Return(grant.User)
		return IssuedPass{}, fmt.Errorf("draw a pass: %w", err)
	}
	err = u.passes.Put(ctx, pass, PassGrant{Grant: grant, PassExpiresAt: time.Now().Add(u.policy.Lifetime)})
	if err != nil {
		u.requests.Return(grant.User) // the limit is one of good passes
		return IssuedPass{}, fmt.Errorf("store a pass: %w", err)
	}
	return IssuedPass{Pass: pass, ExpiresIn: u.policy.Lifetime}, nil
}
