package domain

import (
	"errors"
	"strconv"
)

// ErrUserID is returned for a number or text that is no user id.
var ErrUserID = errors.New("a user id is an integer from 1 to 9223372036854775807")

// UserID identifies a user: an integer from 1 to 2^63-1. It is comparable, so it
// can be a map key. The zero value is no user.
type UserID struct{ n int64 }

// NewUserID returns the user id n, or ErrUserID where n is less than 1.
func NewUserID(n int64) (UserID, error) {
	if n < 1 {
		return UserID{}, ErrUserID
	}
	return UserID{n}, nil
}

// ParseUserID reads a user id in the only notation that the wire contract
// allows: decimal digits without sign, leading zero, fraction or exponent.
func ParseUserID(text string) (UserID, error) {
	if text == "" || text[0] < '1' || text[0] > '9' {
		return UserID{}, ErrUserID
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return UserID{}, ErrUserID
	}
	return NewUserID(n)
}

// Int64 returns the id as a number, at least 1 for a valid id.
func (u UserID) Int64() int64 { return u.n }

// String returns the id in decimal; it is the routing key of the user's messages.
func (u UserID) String() string { return strconv.FormatInt(u.n, 10) }

// IsZero reports whether u is the zero value, which is no user.
func (u UserID) IsZero() bool { return u.n == 0 }
