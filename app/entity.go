package app

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// sentAtLayout always has six digits: RFC 3339 with fractions, as time.RFC3339Nano
// writes it, would drop trailing zeros.
const sentAtLayout = "2006-01-02T15:04:05.000000Z"

// FormatSentAt writes a moment as the wire contract has it: UTC, microseconds, Z.
func FormatSentAt(t time.Time) string { return t.UTC().Format(sentAtLayout) }

// AppendEntity appends the message as the JSON object that the messaging service
// reads from the database exchange: exactly the contract's members, in its order.
func AppendEntity(dst []byte, m domain.Message) ([]byte, error) {
	var err error
	quote := func(text string) {
		if err == nil {
			dst, err = jsontext.AppendQuote(dst, text)
		}
	}
	// What is not the texts takes 237 bytes at most; what must be escaped in them makes the
	// buffer grow.
	dst = slices.Grow(dst, 240+len(m.ClientMessageID().String())+len(m.ChatID().String())+len(m.Body()))
	dst = append(dst, `{"id":null,"client_message_id":`...)
	quote(m.ClientMessageID().String())
	dst = append(dst, `,"chat_id":`...)
	quote(m.ChatID().String())
	dst = append(dst, `,"sender_id":`...)
	dst = strconv.AppendInt(dst, m.Sender().Int64(), 10)
	dst = append(dst, `,"recipient_id":`...)
	dst = strconv.AppendInt(dst, m.Recipient().Int64(), 10)
	dst = append(dst, `,"status":"sent","sent_at":"`...)
	dst = m.SentAt().AppendFormat(dst, sentAtLayout)
	dst = append(dst, `","delivered_at":null,"body":`...)
	quote(m.Body())
	dst = append(dst, `,"is_edited":false,"is_deleted":false}`...)
	if err != nil {
		return nil, fmt.Errorf("encode a message: %w", err)
	}
	return dst, nil
}
