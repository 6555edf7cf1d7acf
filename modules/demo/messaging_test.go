package demo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/app/apptest"
)

func decode(t testing.TB, body []byte) map[string]any {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal(body, &members); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	return members
}

func TestAnswer(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.FixedZone("", 7200))
	entity, err := app.AppendEntity(nil, apptest.NewMessage(t, 1, "mé <&>\u2028", 42, "hi \U0001F600 </script>"))
	if err != nil {
		t.Fatal(err)
	}
	m := NewMessaging()

	replies, err := m.Answer(entity, now)
	if err != nil || len(replies) != 1 || replies[0].RoutingKey != "42" {
		t.Fatalf("first: %+v, %v", replies, err)
	}
	id, _ := decode(t, replies[0].Body)["id"].(string)
	if len(id) < 20 {
		t.Errorf("the id %q is not a random text", id)
	}
	want := strings.Replace(string(entity), `"id":null`, `"id":"`+id+`"`, 1)
	want = strings.Replace(want, `"status":"sent"`, `"status":"delivered"`, 1)
	want = strings.Replace(want, `"delivered_at":null`, `"delivered_at":"2026-01-02T01:04:05.600000Z"`, 1)
	if got := string(replies[0].Body); got != want {
		t.Errorf("first answer\n got %s\nwant %s", got, want)
	}

	replies, err = m.Answer(entity, now)
	if err != nil || len(replies) != 1 || replies[0].RoutingKey != "1" {
		t.Fatalf("again: %+v, %v", replies, err)
	}
	want = strings.Replace(string(entity), `"status":"sent"`, `"status":"rejected"`, 1)
	want = strings.TrimSuffix(want, "}") + `,"reject_reason":"` + duplicateReason + `"}`
	if got := string(replies[0].Body); got != want {
		t.Errorf("second answer\n got %s\nwant %s", got, want)
	}

	// Another user's message of the same name is another message.
	entity, _ = app.AppendEntity(nil, apptest.NewMessage(t, 2, "mé <&>\u2028", 42, ""))
	if replies, err = m.Answer(entity, now); err != nil || replies[0].RoutingKey != "42" {
		t.Errorf("another sender: %+v, %v", replies, err)
	}
}

func TestAnswerKeepsUnknownMembers(t *testing.T) {
	entity := `{ "x" : {"b":1.50,"a":[ ]}, "sender_id":1, "recipient_id":2, "client_message_id":"\u0061", "status":0, "id":7, "delivered_at":"", "n":1e400 }`
	replies, err := NewMessaging().Answer([]byte(entity), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	got := string(replies[0].Body)
	for _, kept := range []string{`{"x":{"b":1.50,"a":[ ]},"sender_id":1,"recipient_id":2,"client_message_id":"\u0061","status":"delivered","id":"`, `,"n":1e400}`} {
		if !strings.Contains(got, kept) {
			t.Errorf("%s\nlacks %s", got, kept)
		}
	}
}

func TestAnswerMalformed(t *testing.T) {
	const good = `{"id":null,"client_message_id":"m","sender_id":1,"recipient_id":2,"status":"sent","delivered_at":null}`
	if _, err := NewMessaging().Answer([]byte(good), time.Now()); err != nil {
		t.Fatal(err)
	}
	cases := []string{
		``, ` `, `null`, `[]`, `"x"`, `{`, `{"id"`, `{"id":`, `{"id":null,`, good + `x`, good + good, good[:len(good)-1],
		strings.Replace(good, `"m"`, `5`, 1),
		strings.Replace(good, `"m"`, `"\ud800"`, 1),
		strings.Replace(good, `"m"`, "\"\xff\"", 1),
		strings.Replace(good, `"sender_id":1`, `"sender_id":"1"`, 1),
		strings.Replace(good, `"sender_id":1`, `"sender_id":1.0`, 1),
		strings.Replace(good, `"sender_id":1`, `"sender_id":0`, 1),
		strings.Replace(good, `"recipient_id":2`, `"recipient_id":9223372036854775808`, 1),
		strings.Replace(good, `"recipient_id":2`, `"recipient_id":2,"recipient_id":3`, 1),
	}
	for _, name := range answeredMembers {
		cases = append(cases, strings.Replace(good, `"`+name+`"`, `"other"`, 1))
	}
	for _, body := range cases {
		if replies, err := NewMessaging().Answer([]byte(body), time.Now()); !errors.Is(err, ErrEntity) || replies != nil {
			t.Errorf("%q: %v, %v", body, replies, err)
		}
	}
}

func TestMessagingForgetsTheOldest(t *testing.T) {
	m := NewMessaging()
	entity := func(i int) []byte {
		return fmt.Appendf(nil, `{"id":null,"client_message_id":"%d","sender_id":1,"recipient_id":2,"status":"sent","delivered_at":null}`, i)
	}
	status := func(i int) any {
		replies, err := m.Answer(entity(i), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return decode(t, replies[0].Body)["status"]
	}
	for i := range rememberedMessages + 1 {
		if _, err := m.Answer(entity(i), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.seen) != rememberedMessages || len(m.ring) != rememberedMessages {
		t.Errorf("%d messages are remembered", len(m.seen))
	}
	if got := status(1); got != "rejected" {
		t.Errorf("the oldest that is remembered is %v", got)
	}
	if got := status(0); got != "delivered" {
		t.Errorf("the one that is forgotten is %v", got)
	}
}

// FuzzAnswer: whatever comes, Answer answers with an entity that differs only in
// what it may change, or with an error.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"id":null,"client_message_id":"m","chat_id":"c","sender_id":1,"recipient_id":2,"status":"sent","sent_at":"2026-01-02T03:04:05.678901Z","delivered_at":null,"body":"hi","is_edited":false,"is_deleted":false}`))
	f.Add([]byte(`{"id":1,"client_message_id":"","sender_id":1,"recipient_id":9223372036854775807,"status":[],"delivered_at":{},"reject_reason":null}`))
	f.Add([]byte(`{"id":null,"client_message_id":"\ud83d\ude00","sender_id":01,"recipient_id":-2}`))
	f.Add([]byte("[{\"a\":\xff}]"))
	changed := []string{"id", "status", "delivered_at", "reject_reason"}
	f.Fuzz(func(t *testing.T, body []byte) {
		m := NewMessaging()
		before := bytes.Clone(body)
		for round, status := range []string{"delivered", "rejected"} {
			replies, err := m.Answer(body, time.Now())
			if !bytes.Equal(body, before) {
				t.Fatal("the entity was changed")
			}
			if err != nil {
				if !errors.Is(err, ErrEntity) || replies != nil || round > 0 {
					t.Fatalf("round %d: %v with %v", round, err, replies)
				}
				return
			}
			var was, is map[string]json.RawMessage
			if err := json.Unmarshal(body, &was); err != nil {
				t.Fatalf("answered what is not JSON: %v", err)
			}
			if err := json.Unmarshal(replies[0].Body, &is); err != nil {
				t.Fatalf("%q: %v", replies[0].Body, err)
			}
			if string(is["status"]) != `"`+status+`"` {
				t.Fatalf("status %s, want %s", is["status"], status)
			}
			if key := map[string]string{"delivered": "recipient_id", "rejected": "sender_id"}[status]; string(was[key]) != replies[0].RoutingKey {
				t.Fatalf("routed to %s, want %s", replies[0].RoutingKey, was[key])
			}
			for name, value := range was {
				if !slices.Contains(changed, name) && !bytes.Equal(is[name], value) {
					t.Fatalf("%q: was %s, is %s", name, value, is[name])
				}
			}
		}
	})
}
