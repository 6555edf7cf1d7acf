package main

import (
	"encoding/json"
	"testing"
	"time"
)

func TestMessagesHaveTheSizeAndTheId(t *testing.T) {
	ids := []stamp{{0, 0, 0, 0}, {1<<32 - 1, 1<<32 - 1, 1<<32 - 2, 1<<63 - 1}, {7, 42, 3, time.Now().UnixNano()}}
	for _, size := range []int{minBytes, 400, 5000, maxBytes} {
		for _, id := range ids {
			for _, user := range []int64{1, 1<<63 - 1} {
				e := newEnvelope(size, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
				stored := e.appendStored(nil, id, user, user)
				// Ids of the greatest length do not fit into the least size.
				if len(stored) != size && (size > minBytes || len(stored) > 400) {
					t.Errorf("%d bytes, want %d", len(stored), size)
				}
				var message struct {
					ID              *int   `json:"id"`
					ClientMessageID string `json:"client_message_id"`
					ChatID          string `json:"chat_id"`
					SenderID        int64  `json:"sender_id"`
					RecipientID     int64  `json:"recipient_id"`
					SentAt          string `json:"sent_at"`
					Body            string `json:"body"`
				}
				if err := json.Unmarshal(stored, &message); err != nil {
					t.Fatalf("%s: %v", stored, err)
				}
				if message.SenderID != user || message.RecipientID != user || message.SentAt != "2026-01-02T03:04:05.000000Z" {
					t.Errorf("the message is %+v", message)
				}
				if got, ok := stampOf(stored, memberID); !ok || got != id {
					t.Errorf("the id of %s is %+v, want %+v", stored[:100], got, id)
				}
				frame, _ := e.appendFrame(nil, nil, id, user, user)
				var sent struct {
					ClientMessageID string `json:"client_message_id"`
					ChatID          string `json:"chat_id"`
					RecipientID     int64  `json:"recipient_id"`
					Body            string `json:"body"`
				}
				if err := json.Unmarshal(frame, &sent); err != nil {
					t.Fatalf("%s: %v", frame, err)
				}
				if sent.ClientMessageID != message.ClientMessageID || len(sent.ClientMessageID) > 128 || sent.ChatID == "" ||
					sent.RecipientID != user || sent.Body != message.Body {
					t.Errorf("the frame %+v is not that of the message %+v", sent, message)
				}
			}
		}
	}
}

func TestStampOf(t *testing.T) {
	want := stamp{1, 2, 3, 4}
	for text, ok := range map[string]bool{
		`{"client_message_id":"load.1.2.3.4","body":""}`:         true,
		`{"a":1,"client_message_id" : "load.1.2.3.4"}`:           true,
		`{"client_message_id":"load.1.2.3.4`:                     true,
		`{"client_message_id":"load.1.2.3"}`:                     false,
		`{"client_message_id":"load.1.2.3."}`:                    false,
		`{"client_message_id":"load.1.2.-3.4"}`:                  false,
		`{"client_message_id":"load.4294967296.2.3.4"}`:          false,
		`{"client_message_id":"load.1.2.4294967295.4"}`:          false,
		`{"client_message_id":"1.2.3.4"}`:                        false,
		`{"client_message_id":load.1.2.3.4}`:                     false,
		`{"client_message_id":"load.1.2.3.9999999999999999999"}`: false,
		`{"in_reply_to":"load.1.2.3.4"}`:                         false,
		`{}`:                                                     false,
		``:                                                       false,
	} {
		got, found := stampOf([]byte(text), memberID)
		if found != ok || ok && got != want {
			t.Errorf("stampOf(%s) = %+v, %v", text, got, found)
		}
	}
}

func TestTitleOf(t *testing.T) {
	for text, want := range map[string]string{
		`{"title":"Delivery error.","details":"x","in_reply_to":"y"}`: "Delivery error.",
		`{"details":"x","title" : "Rate limit exceeded."}`:            "Rate limit exceeded.",
		`{"title":5}`: "",
		`{}`:          "",
	} {
		if got := titleOf([]byte(text)); got != want {
			t.Errorf("titleOf(%s) = %q, want %q", text, got, want)
		}
	}
}

func FuzzStampOf(f *testing.F) {
	f.Add([]byte(`{"client_message_id":"load.1.2.3.4"}`))
	f.Add([]byte(`{"client_message_id": "load.4294967295.0.0.9223372036854775807"`))
	f.Fuzz(func(t *testing.T, text []byte) {
		_ = titleOf(text)
		s, ok := stampOf(text, memberID)
		if !ok {
			return
		}
		again, ok := parseStamp(s.append(nil))
		if !ok || again != s {
			t.Errorf("%+v is written as %s and read as %+v", s, s.append(nil), again)
		}
	})
}
