package app

import (
	"context"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// Draft is what a client wants to say, read from its frame: each part is valid.
type Draft struct {
	ClientMessageID domain.ClientMessageID
	ChatID          domain.ChatID
	Recipient       domain.UserID
	Body            string
}

// Send publishes what clients say. It is safe for concurrent use.
type Send struct {
	publisher      Publisher
	confirmTimeout time.Duration
}

// NewSend returns the use case; a message is confirmed within confirmTimeout of
// being read or its sender is told.
func NewSend(publisher Publisher, confirmTimeout time.Duration) *Send {
	return &Send{publisher: publisher, confirmTimeout: confirmTimeout}
}

// Send publishes the draft as a message of sender, read at readAt, and returns
// without waiting. settled is called as Publisher.Publish says.
func (u *Send) Send(ctx context.Context, sender domain.UserID, draft Draft, readAt time.Time, settled func(error)) {
	message := domain.NewMessage(sender, draft.ClientMessageID, draft.ChatID, draft.Recipient, draft.Body, readAt)
	u.publisher.Publish(ctx, message, readAt.Add(u.confirmTimeout), settled)
}
