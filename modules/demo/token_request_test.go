package demo

import (
	"encoding/json"
	"io"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// plainTokenRequest are requests that can't be misunderstood: JSON's white space (RFC
// 8259, section 2) and up to 18 digits.
var plainTokenRequest = regexp.MustCompile(`^[ \t\r\n]*\{[ \t\r\n]*"user_id"[ \t\r\n]*:[ \t\r\n]*([1-9][0-9]{0,17})[ \t\r\n]*\}[ \t\r\n]*$`)

// FuzzTokenRequest: a token is for exactly the user that the body names, in the contract's
// notation, and whatever else comes gets one and the same answer.
func FuzzTokenRequest(f *testing.F) {
	for _, body := range []string{
		`{"user_id":1}`, ` {"user_id": 9223372036854775807} `, `{"user_id":9223372036854775808}`, `{"a":[],"user_id":3}`,
		`{"user_id":1,"user_id":2}`, `{"user_\u0069d":4}`, `{"USER_ID":1}`, `{"user_id":01}`, `{"user_id":+1}`, `{"user_id":1.0}`,
		`{"user_id":"1"}`, `{"user_id":null}`, `{"user_id":1}{}`, `{"x":"\ud800","user_id":1}`, "{\"x\":\"\xff\",\"user_id\":1}",
		"", "null", "[]", "\ufeff{\"user_id\":1}", `{"user_id":1}` + strings.Repeat(" ", maxTokenRequest),
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		var signed []domain.UserID
		response := serve(t, func(user domain.UserID) (string, error) {
			signed = append(signed, user)
			return "token of " + user.String(), nil
		}, "POST", "/demo/token", body)
		answer, err := io.ReadAll(response.Body)
		if err != nil || !json.Valid(answer) || response.Header.Get("Content-Type") != "application/json" {
			t.Fatalf("%q, %v, %v", answer, err, response.Header)
		}
		if response.StatusCode != 200 {
			want := `{"detail":{"title":"Data consistency error.","details":{"non-field-error":"The body must be a JSON object like {\"user_id\": 1}, with an integer from 1 to 9223372036854775807."}}}`
			if response.StatusCode != 400 || len(signed) != 0 || strings.TrimSpace(string(answer)) != want {
				t.Errorf("%d %s, signed %v", response.StatusCode, answer, signed)
			}
			if found := plainTokenRequest.FindStringSubmatch(body); found != nil && len(body) <= maxTokenRequest {
				t.Errorf("%q gets no token", body)
			}
			return
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal([]byte(body), &members); err != nil || !utf8.ValidString(body) || len(body) > maxTokenRequest {
			t.Fatalf("a token for %q, %v", body, err)
		}
		user, err := domain.ParseUserID(string(members["user_id"]))
		if err != nil || len(signed) != 1 || signed[0] != user || strings.TrimSpace(string(answer)) != `{"access_token":"token of `+user.String()+`"}` {
			t.Errorf("%q got %s for %v, want one for %v, %v", body, answer, signed, user, err)
		}
	})
}
