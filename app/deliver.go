package app

import (
	"encoding/json"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// ControlDisconnect is the AMQP property "type" of a message that closes the
// connections of its user instead of being delivered.
const ControlDisconnect = "control.disconnect"

// MaxDisconnectReason is the greatest length of a close reason that a backend can
// give, in bytes; RFC 6455, section 5.5, leaves room for 123.
const MaxDisconnectReason = 120

// defaultDisconnectReason stands in where the backend gave none.
const defaultDisconnectReason = "disconnected"

// Deliver passes what backends publish on to the recipient. The zero value is ready
// and safe for concurrent use.
type Deliver struct{}

// Receive passes the delivery on, or rejects it and returns why: ErrDeliveryBody or
// ErrControlBody. It settles the delivery, or has the recipient settle it.
func (Deliver) Receive(to Recipient, d Delivery) error {
	if d.Type == ControlDisconnect {
		reason, err := disconnectReason(d.Body)
		if err != nil {
			d.Reject()
			return err
		}
		to.Disconnect(reason)
		d.Ack()
		return nil
	}
	if !validText(d.Body) {
		d.Reject()
		return ErrDeliveryBody
	}
	to.Deliver(d)
	return nil
}

func disconnectReason(body []byte) (string, error) {
	var control struct {
		Reason jsontext.Value `json:"reason"`
	}
	if !validText(body) || jsontext.Value(body).Kind() != jsontext.KindBeginObject {
		return "", ErrControlBody
	}
	// Lone surrogate escapes are JSON too (RFC 8259, section 8.2); they become U+FFFD.
	lenient := jsonv2.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if err := jsonv2.Unmarshal(body, &control, lenient); err != nil {
		return "", ErrControlBody
	}
	reason := defaultDisconnectReason
	if control.Reason.Kind() == jsontext.KindString {
		var given string
		if err := jsonv2.Unmarshal(control.Reason, &given, lenient); err == nil && given != "" {
			reason = given
		}
	}
	return cutText(reason, MaxDisconnectReason), nil
}

// validText reports whether the body can be sent in a text frame as JSON. json.Valid
// takes invalid UTF-8 for valid, but a text frame must not hold any (RFC 6455, section
// 8.1): the client would fail the connection.
func validText(body []byte) bool { return json.Valid(body) && utf8.Valid(body) }

// cutText cuts text to at most limit bytes without cutting a character in two.
func cutText(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}
