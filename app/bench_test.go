package app

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// The benchmarks of this file show a step of the way of a message as the service does it,
// after the plain way to do it, for benchstat.

// BenchmarkValidate judges a delivery of 330 bytes: by building what it says, and as Deliver
// does.
func BenchmarkValidate(b *testing.B) {
	body, err := json.Marshal(map[string]any{
		"id": 17, "client_message_id": "7b1f6f0e-4b8e-4a58-9d7c-0a3c7f0a1b2c", "chat_id": "general", "sender_id": 1, "recipient_id": 2,
		"status": "sent", "sent_at": "2026-01-02T03:04:05.000000Z", "delivered_at": nil, "body": strings.Repeat("x", 94), "is_edited": false, "is_deleted": false,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("tree", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var tree any
			if err := json.Unmarshal(body, &tree); err != nil || !utf8.Valid(body) {
				b.Fatal(err)
			}
		}
	})
	b.Run("bytes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !validText(body) {
				b.Fatal("not valid")
			}
		}
	})
}

// BenchmarkEntity writes the entity of a client's message: with encoding/json, and as
// AppendEntity does.
func BenchmarkEntity(b *testing.B) {
	id, _ := domain.NewClientMessageID("7b1f6f0e-4b8e-4a58-9d7c-0a3c7f0a1b2c")
	chat, _ := domain.NewChatID("general")
	one, _ := domain.NewUserID(1)
	two, _ := domain.NewUserID(2)
	m := domain.NewMessage(one, id, chat, two, strings.Repeat("x", 120), time.Now())
	b.Run("marshal", func(b *testing.B) {
		type entity struct {
			ID              *int64  `json:"id"`
			ClientMessageID string  `json:"client_message_id"`
			ChatID          string  `json:"chat_id"`
			SenderID        int64   `json:"sender_id"`
			RecipientID     int64   `json:"recipient_id"`
			Status          string  `json:"status"`
			SentAt          string  `json:"sent_at"`
			DeliveredAt     *string `json:"delivered_at"`
			Body            string  `json:"body"`
			IsEdited        bool    `json:"is_edited"`
			IsDeleted       bool    `json:"is_deleted"`
		}
		b.ReportAllocs()
		for b.Loop() {
			_, err := json.Marshal(entity{
				ClientMessageID: m.ClientMessageID().String(), ChatID: m.ChatID().String(), SenderID: m.Sender().Int64(), RecipientID: m.Recipient().Int64(),
				Status: "sent", SentAt: FormatSentAt(m.SentAt()), Body: m.Body(),
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := AppendEntity(nil, m); err != nil { // as the publisher calls it
				b.Fatal(err)
			}
		}
	})
}
