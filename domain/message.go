package domain

import (
	"time"
	"unicode/utf8"
)

// MaxIdentifierLength is the greatest length of a client message id and of a
// chat id, in Unicode code points.
const MaxIdentifierLength = 128

// ClientMessageID is the name that a client gave its message: 1 to 128 code
// points of valid UTF-8. It is unique for one sender at best.
type ClientMessageID struct{ text string }

// NewClientMessageID returns the id, or the fault that makes text none.
func NewClientMessageID(text string) (ClientMessageID, *Fault) {
	if fault := checkIdentifier("client_message_id", text); fault != nil {
		return ClientMessageID{}, fault
	}
	return ClientMessageID{text}, nil
}

// String returns the id as the client wrote it.
func (id ClientMessageID) String() string { return id.text }

// ChatID names the chat that a message belongs to: 1 to 128 code points of
// valid UTF-8. The gateway passes it on and gives it no meaning.
type ChatID struct{ text string }

// NewChatID returns the id, or the fault that makes text none.
func NewChatID(text string) (ChatID, *Fault) {
	if fault := checkIdentifier("chat_id", text); fault != nil {
		return ChatID{}, fault
	}
	return ChatID{text}, nil
}

// String returns the id as the client wrote it.
func (id ChatID) String() string { return id.text }

func checkIdentifier(member, text string) *Fault {
	switch {
	case text == "":
		return &Fault{Type: FaultTooShort, Loc: []string{member}, Msg: "String should have at least 1 character"}
	case len(text) > MaxIdentifierLength && utf8.RuneCountInString(text) > MaxIdentifierLength:
		return &Fault{Type: FaultTooLong, Loc: []string{member}, Msg: "String should have at most 128 characters"}
	}
	return nil
}

// Message is what one user says to another. It is built of valid parts only, so
// it is valid itself; it does not change once made and may be shared.
type Message struct {
	clientMessageID ClientMessageID
	chatID          ChatID
	sender          UserID
	recipient       UserID
	body            string
	sentAt          time.Time
}

// NewMessage returns the message that sender sent at sentAt. The body may be
// empty and must be valid UTF-8.
func NewMessage(sender UserID, id ClientMessageID, chat ChatID, recipient UserID, body string, sentAt time.Time) Message {
	return Message{
		clientMessageID: id,
		chatID:          chat,
		sender:          sender,
		recipient:       recipient,
		body:            body,
		sentAt:          sentAt.UTC().Truncate(time.Microsecond),
	}
}

// ClientMessageID returns the name that the sender's client gave the message.
func (m Message) ClientMessageID() ClientMessageID { return m.clientMessageID }

// ChatID returns the chat that the message belongs to.
func (m Message) ChatID() ChatID { return m.chatID }

// Sender returns the user whose connection the message came from.
func (m Message) Sender() UserID { return m.sender }

// Recipient returns the user whom the message is for.
func (m Message) Recipient() UserID { return m.recipient }

// Body returns the text, which may be empty.
func (m Message) Body() string { return m.body }

// SentAt returns when the gateway read the message: UTC, in whole microseconds.
func (m Message) SentAt() time.Time { return m.sentAt }
