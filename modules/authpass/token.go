package authpass

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/golang-jwt/jwt/v5"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// Verifier is an app.TokenVerifier for JSON Web Tokens (RFC 7519) in compact
// serialisation. It is safe for concurrent use.
type Verifier struct {
	parser *jwt.Parser
	key    any
}

// NewVerifier returns a verifier, or an error that says for people what is wrong with
// the configuration and holds nothing of the key.
func NewVerifier(cfg TokenConfig) (*Verifier, error) {
	method, key, err := cfg.verificationKey()
	if err != nil {
		return nil, err
	}
	return &Verifier{
		key: key,
		parser: jwt.NewParser(
			// The token must not choose how it is checked: "none", or an RSA public
			// key taken for an HMAC secret (RFC 8725, section 3.1).
			jwt.WithValidMethods([]string{method.Alg()}),
			jwt.WithExpirationRequired(),
			jwt.WithStrictDecoding(),
		),
	}, nil
}

// Verify implements app.TokenVerifier. The token must be signed with the configured
// algorithm and key, carry exp and user_id, and be within exp and nbf without leeway;
// iat, aud and iss are not looked at.
func (v *Verifier) Verify(token string) (app.Grant, error) {
	var c claims
	parsed, err := v.parser.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return v.key, nil })
	if err != nil {
		return app.Grant{}, unauthenticated(whyRefused(err))
	}
	// RFC 7515, section 4.1.11: who does not know an extension that is marked as
	// critical must refuse the token. None is known here.
	if _, critical := parsed.Header["crit"]; critical {
		return app.Grant{}, unauthenticated("the token has a critical extension")
	}
	if c.user.IsZero() {
		return app.Grant{}, unauthenticated("the token has no valid user_id")
	}
	return app.Grant{User: c.user, TokenExpiresAt: c.expires.Time}, nil
}

func unauthenticated(reason string) error {
	return fmt.Errorf("%w: %s", app.ErrUnauthenticated, reason)
}

// whyRefused describes an error of the parser without its text, which may quote the
// token.
func whyRefused(err error) string {
	for _, known := range []struct {
		err    error
		reason string
	}{
		{jwt.ErrTokenMalformed, "the token is malformed"},
		{jwt.ErrTokenUnverifiable, "the token is signed in an unknown way"},
		{jwt.ErrTokenSignatureInvalid, "the signature is not valid, or of another algorithm"},
		{jwt.ErrTokenExpired, "the token has expired"},
		{jwt.ErrTokenNotValidYet, "the token is not valid yet"},
		{jwt.ErrTokenRequiredClaimMissing, "the token has no exp"},
	} {
		if errors.Is(err, known.err) {
			return known.reason
		}
	}
	return "the token is not valid"
}

// claims are the members of a claims set that matter here. They are read by hand:
// encoding/json would match USER_ID too and read numbers as float64, which can't tell
// 2^53 from 2^53+1.
type claims struct {
	user      domain.UserID // zero where user_id is missing or malformed
	expires   *jwt.NumericDate
	notBefore *jwt.NumericDate
}

// UnmarshalJSON implements json.Unmarshaler. It is called before the signature is
// checked.
func (c *claims) UnmarshalJSON(data []byte) error {
	var raw struct {
		UserID    jsontext.Value `json:"user_id"`
		Expires   jsontext.Value `json:"exp"`
		NotBefore jsontext.Value `json:"nbf"`
	}
	if !utf8.Valid(data) || jsontext.Value(data).Kind() != jsontext.KindBeginObject {
		return errors.New("the claims set is not a JSON object in UTF-8")
	}
	// Of duplicate members the last counts (RFC 7519, section 4). Lone surrogate
	// escapes are let through: they can only be in members that are not looked at.
	err := jsonv2.Unmarshal(data, &raw, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		return errors.New("the claims set is not valid JSON")
	}
	if user, err := domain.ParseUserID(string(raw.UserID)); err == nil {
		c.user = user
	}
	if c.expires, err = numericDate(raw.Expires); err != nil {
		return fmt.Errorf("read exp: %w", err)
	}
	if c.notBefore, err = numericDate(raw.NotBefore); err != nil {
		return fmt.Errorf("read nbf: %w", err)
	}
	return nil
}

// latestDate is the last second of the year 9999: the latest that other systems can
// write down. No clock will get there, so a later date means the same.
const latestDate = 253402300799

// numericDate reads seconds since 1970, possibly with a fraction (RFC 7519, section
// 2). It returns nil for a member that is missing. What does not fit a time.Time is
// taken for the nearest moment from 1970 to 9999.
func numericDate(raw jsontext.Value) (*jwt.NumericDate, error) {
	if raw == nil {
		return nil, nil
	}
	if raw.Kind() != jsontext.KindNumber {
		return nil, errors.New("not a number")
	}
	// Beyond the range of float64, ParseFloat returns an infinity and an error.
	seconds, err := strconv.ParseFloat(string(raw), 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return nil, errors.New("not a number")
	}
	whole, fraction := math.Modf(min(max(seconds, 0), latestDate))
	return &jwt.NumericDate{Time: time.Unix(int64(whole), int64(fraction*1e9))}, nil
}

// GetExpirationTime implements jwt.Claims.
func (c *claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.expires, nil }

// GetNotBefore implements jwt.Claims.
func (c *claims) GetNotBefore() (*jwt.NumericDate, error) { return c.notBefore, nil }

// GetIssuedAt implements jwt.Claims; iat is ignored.
func (c *claims) GetIssuedAt() (*jwt.NumericDate, error) { return nil, nil }

// GetIssuer implements jwt.Claims; iss is ignored.
func (c *claims) GetIssuer() (string, error) { return "", nil }

// GetSubject implements jwt.Claims; sub is ignored.
func (c *claims) GetSubject() (string, error) { return "", nil }

// GetAudience implements jwt.Claims; aud is ignored.
func (c *claims) GetAudience() (jwt.ClaimStrings, error) { return nil, nil }

// SignToken returns a token for user that a Verifier of the same configuration takes
// for ttl, rounded up to a whole second. It is for trying the service out: in
// production the authentication service issues the tokens. Only HS256, HS384 and HS512
// can be signed, since for the others Key is the public half of a key.
func SignToken(cfg TokenConfig, user domain.UserID, ttl time.Duration) (string, error) {
	method, key, err := cfg.verificationKey()
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	if _, symmetric := method.(*jwt.SigningMethodHMAC); !symmetric {
		return "", fmt.Errorf("sign a token: %s needs the private key, which only the authentication service has", cfg.Algorithm)
	}
	if user.IsZero() {
		return "", fmt.Errorf("sign a token: %w", domain.ErrUserID)
	}
	now := time.Now()
	token, err := jwt.NewWithClaims(method, struct {
		UserID int64 `json:"user_id"`
		jwt.RegisteredClaims
	}{user.Int64(), jwt.RegisteredClaims{
		IssuedAt:  jwt.NewNumericDate(now),
		ExpiresAt: jwt.NewNumericDate(now.Add(ttl + time.Second - time.Nanosecond)),
	}}).SignedString(key)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	return token, nil
}
