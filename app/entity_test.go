package app

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// latestSentAt is the last moment that RFC 3339 can write.
var latestSentAt = time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC)

// FuzzAppendEntity: a message is written as exactly the contract's members, in its order,
// and read back as what it was; one that is not UTF-8 is not written at all.
func FuzzAppendEntity(f *testing.F) {
	f.Add([]byte("x"), "m\"1", "c\u2028", int64(1), int64(math.MaxInt64), "<b>\x00\n😀", int64(1767323045), int64(600000000))
	f.Add([]byte{}, "\\u0000", "\ufffd", int64(1<<53+1), int64(2), "", int64(0), int64(0))
	f.Add([]byte("{"), strings.Repeat("é", 128), "\x7f", int64(2), int64(2), "\xed\xa0\x80", int64(253402300799), int64(999999999))
	f.Add([]byte("{"), "\xff", "c", int64(2), int64(2), "</script>", int64(-62135596800), int64(999))
	f.Fuzz(func(t *testing.T, before []byte, idText, chatText string, from, to int64, body string, seconds, nanoseconds int64) {
		id, idFault := domain.NewClientMessageID(idText)
		chat, chatFault := domain.NewChatID(chatText)
		sender, senderErr := domain.NewUserID(from)
		recipient, recipientErr := domain.NewUserID(to)
		at := time.Unix(seconds, nanoseconds).In(time.FixedZone("", int(from%86400)))
		if idFault != nil || chatFault != nil || senderErr != nil || recipientErr != nil || at.Before(time.Time{}) || at.After(latestSentAt) {
			return // no message
		}
		got, err := AppendEntity(bytes.Clone(before), domain.NewMessage(sender, id, chat, recipient, body, at))
		if valid := utf8.ValidString(idText) && utf8.ValidString(chatText) && utf8.ValidString(body); !valid {
			if err == nil || got != nil {
				t.Fatalf("what is not UTF-8 became %q, %v", got, err)
			}
			return
		}
		if err != nil || !bytes.HasPrefix(got, before) {
			t.Fatalf("%q, %v", got, err)
		}
		entity := got[len(before):]
		type moment struct{}
		want := []any{
			json.Delim('{'), "id", nil, "client_message_id", idText, "chat_id", chatText, "sender_id", json.Number(sender.String()),
			"recipient_id", json.Number(recipient.String()), "status", "sent", "sent_at", moment{}, "delivered_at", nil,
			"body", body, "is_edited", false, "is_deleted", false, json.Delim('}'),
		}
		decoder := json.NewDecoder(bytes.NewReader(entity))
		decoder.UseNumber()
		for i, member := range want {
			token, err := decoder.Token()
			if err != nil {
				t.Fatalf("%s: %v", entity, err)
			}
			if member != (moment{}) {
				if token != member {
					t.Errorf("token %d is %v, want %v", i, token, member)
				}
				continue
			}
			text, _ := token.(string)
			sent, err := time.Parse(time.RFC3339Nano, text)
			if err != nil || len(text) != len("2006-01-02T15:04:05.678901Z") || text[len(text)-1] != 'Z' || text != FormatSentAt(at) ||
				sent.After(at) || at.Sub(sent) >= time.Microsecond {
				t.Errorf("sent_at is %q for %v", text, at)
			}
		}
		if _, err := decoder.Token(); err != io.EOF {
			t.Errorf("more than one value: %s", entity)
		}
	})
}
