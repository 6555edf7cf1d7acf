package domain

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestParseUserID(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "42": 42, "9223372036854775807": 1<<63 - 1, "10": 10,
		"": 0, "0": 0, "-1": 0, "+1": 0, "01": 0, "1.0": 0, "1e3": 0, " 1": 0, "1 ": 0,
		"9223372036854775808": 0, "99999999999999999999": 0, "١": 0, "0x1": 0, "1_0": 0,
	} {
		got, err := ParseUserID(text)
		if got.Int64() != want || (err == nil) != (want > 0) {
			t.Errorf("ParseUserID(%q) = %d, %v; want %d", text, got.Int64(), err, want)
		}
		if want > 0 && got.String() != text {
			t.Errorf("ParseUserID(%q).String() = %q", text, got.String())
		}
	}
}

func TestNewUserID(t *testing.T) {
	for _, n := range []int64{0, -1, -1 << 63} {
		if id, err := NewUserID(n); err == nil || !id.IsZero() {
			t.Errorf("NewUserID(%d) = %v, %v; want an error", n, id, err)
		}
	}
	if id, err := NewUserID(7); err != nil || id.Int64() != 7 || id.IsZero() {
		t.Errorf("NewUserID(7) = %v, %v", id, err)
	}
}

func TestIdentifiersCountCodePoints(t *testing.T) {
	for _, c := range []struct {
		text string
		want string
	}{
		{"", FaultTooShort},
		{"a", ""},
		{strings.Repeat("a", 128), ""},
		{strings.Repeat("a", 129), FaultTooLong},
		{strings.Repeat("😀", 128), ""}, // 512 bytes
		{strings.Repeat("😀", 129), FaultTooLong},
		{strings.Repeat("e\u0301", 64), ""}, // a combining mark is a code point of its own
		{strings.Repeat("e\u0301", 65), FaultTooLong},
	} {
		id, fault := NewClientMessageID(c.text)
		checkFault(t, "client_message_id", c.text, fault, c.want)
		if fault == nil && id.String() != c.text {
			t.Errorf("id %q became %q", c.text, id)
		}
		chat, fault := NewChatID(c.text)
		checkFault(t, "chat_id", c.text, fault, c.want)
		if fault == nil && chat.String() != c.text {
			t.Errorf("chat id %q became %q", c.text, chat)
		}
	}
}

func checkFault(t *testing.T, member, text string, got *Fault, want string) {
	t.Helper()
	switch {
	case got == nil && want == "":
	case got == nil || got.Type != want || len(got.Loc) != 1 || got.Loc[0] != member:
		t.Errorf("%s %q: fault %+v, want %q", member, text, got, want)
	case got.Error() == "" || len(text) > 0 && strings.Contains(got.Msg, text):
		t.Errorf("%s: the message %q is empty or quotes the client", member, got.Msg)
	}
}

func TestMessageIsInWholeMicrosecondsUTC(t *testing.T) {
	zone := time.FixedZone("", 2*60*60)
	id, _ := NewClientMessageID("m")
	chat, _ := NewChatID("c")
	one, _ := NewUserID(1)
	two, _ := NewUserID(2)
	m := NewMessage(one, id, chat, two, "hi", time.Date(2026, 1, 2, 5, 4, 5, 678901999, zone))
	if want := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC); m.SentAt() != want {
		t.Errorf("sent at %v, want %v", m.SentAt(), want)
	}
	if m.Sender() != one || m.Recipient() != two || m.Body() != "hi" || m.ChatID() != chat || m.ClientMessageID() != id {
		t.Errorf("the message lost a part: %+v", m)
	}
}

func TestNewConnectionPass(t *testing.T) {
	counts := make(map[rune]int)
	seen := make(map[string]bool)
	const passes, length = 2000, 62
	for range passes {
		pass, err := NewConnectionPass(length)
		if err != nil {
			t.Fatal(err)
		}
		secret := pass.Reveal()
		if len(secret) != length || seen[secret] {
			t.Fatalf("pass %q: wrong length or drawn twice", secret)
		}
		seen[secret] = true
		if parsed, err := ParseConnectionPass(secret); err != nil || parsed != pass {
			t.Fatalf("a drawn pass does not parse: %v", err)
		}
		for _, c := range secret {
			counts[c]++
		}
	}
	if len(counts) != len(passAlphabet) {
		t.Errorf("%d different characters, want %d", len(counts), len(passAlphabet))
	}
	// Each character is expected 2,000 times with a deviation of 44; a biased draw by
	// byte%62 would give the first eight 2,418.
	for c, n := range counts {
		if n < 1750 || n > 2250 {
			t.Errorf("character %q was drawn %d times of 2000 expected", c, n)
		}
	}
	for _, length := range []int{-1, 0, MinPassLength - 1, MaxPassLength + 1} {
		if _, err := NewConnectionPass(length); err == nil {
			t.Errorf("a pass of %d characters was drawn", length)
		}
	}
}

func TestParseConnectionPass(t *testing.T) {
	for _, text := range []string{
		"", "short", strings.Repeat("a", MinPassLength-1), strings.Repeat("a", MaxPassLength+1),
		strings.Repeat("a", 31) + "-", strings.Repeat("a", 31) + "\x00", strings.Repeat("é", 16),
	} {
		if _, err := ParseConnectionPass(text); err == nil {
			t.Errorf("ParseConnectionPass(%q) has no error", text)
		}
	}
}

func TestPassDoesNotPrint(t *testing.T) {
	pass, err := NewConnectionPass(32)
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, value := range []any{pass, &pass, []ConnectionPass{pass}, struct{ Pass ConnectionPass }{pass}} {
			printed := fmt.Sprintf(format, value)
			if strings.Contains(printed, pass.Reveal()) || strings.Contains(printed, hex.EncodeToString([]byte(pass.Reveal()))) {
				t.Errorf("%s of %T shows the pass", format, value)
			}
		}
	}
	if pass.Digest() == (ConnectionPass{}).Digest() {
		t.Error("the digest does not depend on the pass")
	}
}
