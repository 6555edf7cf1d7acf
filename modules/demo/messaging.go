package demo

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// rememberedMessages is how many messages Messaging knows again; the oldest are
// forgotten first.
const rememberedMessages = 100_000

// duplicateReason is the "reject_reason" of a message that came twice.
const duplicateReason = "a message with this client_message_id was accepted before"

// ErrEntity is returned for a body that is not an entity as the gateway publishes it.
var ErrEntity = errors.New("not a message entity")

// Reply is a message for one user: what to publish to the websockets exchange, and
// under which routing key.
type Reply struct {
	RoutingKey string
	Body       []byte
}

// Messaging stands in for the messaging service: it accepts what the gateway
// publishes to the database exchange and answers as that service does, but stores
// nothing. It does no I/O and is safe for concurrent use.
type Messaging struct {
	mu   sync.Mutex
	seen map[messageKey]struct{}
	ring []messageKey // in the order of arrival, from oldest on once it is full
	next int          // where the ring is written next
}

// messageKey stands for a sender and its client_message_id. A digest, so that long
// ids don't cost memory.
type messageKey [sha256.Size]byte

// NewMessaging returns a messaging service that has seen nothing.
func NewMessaging() *Messaging {
	return &Messaging{seen: make(map[messageKey]struct{})}
}

// Answer returns what the messaging service says to an entity of the wire
// contract's section 3 at the moment now. A message that is new goes to its
// recipient with an "id", the status "delivered" and "delivered_at"; one whose
// sender used its client_message_id before goes back to the sender with the status
// "rejected" and a "reject_reason". All other members stay as they are, in their
// order, byte for byte. The error wraps ErrEntity, and its text quotes nothing.
func (m *Messaging) Answer(entity []byte, now time.Time) ([]Reply, error) {
	members, err := readEntity(entity)
	if err != nil {
		return nil, err
	}
	if m.remember(members) {
		return []Reply{{RoutingKey: members.recipient.String(), Body: members.rewrite(map[string]string{
			"id":           rand.Text(),
			"status":       "delivered",
			"delivered_at": app.FormatSentAt(now),
		})}}, nil
	}
	return []Reply{{RoutingKey: members.sender.String(), Body: members.rewrite(map[string]string{
		"status":        "rejected",
		"reject_reason": duplicateReason,
	})}}, nil
}

// remember reports whether the message is new, and knows it from then on.
func (m *Messaging) remember(e entityMembers) bool {
	key := messageKey(sha256.Sum256([]byte(e.sender.String() + " " + e.clientMessageID)))
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.seen[key]; known {
		return false
	}
	if len(m.ring) < rememberedMessages {
		m.ring = append(m.ring, key)
	} else {
		delete(m.seen, m.ring[m.next])
		m.ring[m.next] = key
		m.next = (m.next + 1) % rememberedMessages
	}
	m.seen[key] = struct{}{}
	return true
}

// entityMembers is an entity taken apart, its members in their order.
type entityMembers struct {
	names           []string
	values          []jsontext.Value
	clientMessageID string
	sender          domain.UserID
	recipient       domain.UserID
}

// answeredMembers are the members that an entity must have to be answered.
var answeredMembers = []string{"id", "client_message_id", "sender_id", "recipient_id", "status", "delivered_at"}

// readEntity takes the JSON object apart. The decoder refuses invalid UTF-8, lone
// surrogates and duplicate names.
func readEntity(body []byte) (entityMembers, error) {
	var e entityMembers
	decoder := jsontext.NewDecoder(bytes.NewReader(body))
	if start, err := decoder.ReadToken(); err != nil || start.Kind() != jsontext.KindBeginObject {
		return e, fmt.Errorf("%w: not a JSON object", ErrEntity)
	}
	position := make(map[string]int)
	for decoder.PeekKind() != jsontext.KindEndObject {
		name, err := decoder.ReadToken()
		if err != nil {
			return e, fmt.Errorf("%w: not valid JSON", ErrEntity)
		}
		text := name.String()
		value, err := decoder.ReadValue()
		if err != nil {
			return e, fmt.Errorf("%w: not valid JSON", ErrEntity)
		}
		position[text] = len(e.names)
		e.names = append(e.names, text)
		e.values = append(e.values, value.Clone())
	}
	if _, err := decoder.ReadToken(); err != nil {
		return e, fmt.Errorf("%w: not valid JSON", ErrEntity)
	}
	if len(bytes.Trim(body[decoder.InputOffset():], " \t\r\n")) > 0 {
		return e, fmt.Errorf("%w: more than one JSON value", ErrEntity)
	}
	for _, name := range answeredMembers {
		if _, ok := position[name]; !ok {
			return e, fmt.Errorf("%w: %s is missing", ErrEntity, name)
		}
	}
	var err error
	if e.sender, err = domain.ParseUserID(string(e.values[position["sender_id"]])); err != nil {
		return e, fmt.Errorf("%w: sender_id: %w", ErrEntity, err)
	}
	if e.recipient, err = domain.ParseUserID(string(e.values[position["recipient_id"]])); err != nil {
		return e, fmt.Errorf("%w: recipient_id: %w", ErrEntity, err)
	}
	id := e.values[position["client_message_id"]]
	if id.Kind() != jsontext.KindString {
		return e, fmt.Errorf("%w: client_message_id is not a string", ErrEntity)
	}
	unquoted, err := jsontext.AppendUnquote(nil, id)
	if err != nil {
		return e, fmt.Errorf("%w: client_message_id is not a string", ErrEntity)
	}
	e.clientMessageID = string(unquoted)
	return e, nil
}

// rewrite puts the entity together again with other strings for the named members.
// A member that the entity does not have is appended.
func (e entityMembers) rewrite(texts map[string]string) []byte {
	out := []byte{'{'}
	write := func(name string, value []byte) {
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(appendQuoted(out, name), ':'), value...)
	}
	for i, name := range e.names {
		value := []byte(e.values[i])
		if text, ok := texts[name]; ok {
			value = appendQuoted(nil, text)
			delete(texts, name)
		}
		write(name, value)
	}
	// At most "reject_reason" is left, so the order of the map does not matter.
	for name, text := range texts {
		write(name, appendQuoted(nil, text))
	}
	return append(out, '}')
}

// appendQuoted quotes a text that is known to be valid UTF-8, so it can't fail.
func appendQuoted(dst []byte, text string) []byte {
	quoted, _ := jsontext.AppendQuote(dst, text)
	return quoted
}
