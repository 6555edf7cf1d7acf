package hub

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// maxNesting is how deep a frame may nest; its outermost object has depth 1.
const maxNesting = 1000

// The titles of error frames, as the wire contract has them.
const (
	titleIntegrity   = "Data integrity error."
	titleConsistency = "Data consistency error."
	titleDelivery    = "Delivery error."
	titleRateLimit   = "Rate limit exceeded."
)

// detailsIntegrity is all that a client learns about text that is no JSON object.
const detailsIntegrity = "Invalid JSON was provided."

// errIntegrity: the frame is not a JSON object in the sense of the wire contract.
var errIntegrity = errors.New("the frame is not a JSON object")

// frame is what a client's text frame says.
type frame struct {
	// draft is valid where faults is empty.
	draft app.Draft
	// faults has an entry for each member that breaks a rule, in the contract's order.
	faults []domain.Fault
	// answerTo is the client_message_id as far as it could be read, good or not.
	answerTo reply
}

// reply names the frame that an error frame answers. The zero value names none.
type reply struct {
	id    string
	known bool
}

// The members that a frame is read for. Names are case-sensitive and unknown ones
// are ignored; of duplicates the last counts.
const (
	memberClientMessageID = iota
	memberChatID
	memberRecipientID
	memberBody
	memberCount
)

var memberNames = [memberCount]string{"client_message_id", "chat_id", "recipient_id", "body"}

// frameDecoder is the reusable part of decodeFrame.
type frameDecoder struct {
	source  bytes.Buffer
	decoder jsontext.Decoder
}

var frameDecoders = sync.Pool{New: func() any { return new(frameDecoder) }}

// duplicatesAllowed makes the last of duplicate members count, as version-1 clients
// are used to. The rest is the strict default: valid UTF-8 (RFC 8259, section 8.1),
// no lone surrogates, case-sensitive names.
var duplicatesAllowed = jsontext.AllowDuplicateNames(true)

// decodeFrame reads a client's text frame. The error is errIntegrity where data is
// not a JSON object; what is wrong with an object's members is in the faults. It
// keeps nothing of data.
func decodeFrame(data []byte) (frame, error) {
	members, err := readMembers(data)
	if err != nil {
		return frame{answerTo: salvageReply(data)}, err
	}
	var f frame
	if id, fault := readString(members[memberClientMessageID], "client_message_id"); fault != nil {
		f.faults = append(f.faults, *fault)
	} else {
		f.answerTo = reply{id, true}
		f.draft.ClientMessageID, fault = domain.NewClientMessageID(id)
		f.addFault(fault)
	}
	if id, fault := readString(members[memberChatID], "chat_id"); fault != nil {
		f.faults = append(f.faults, *fault)
	} else {
		f.draft.ChatID, fault = domain.NewChatID(id)
		f.addFault(fault)
	}
	var fault *domain.Fault
	f.draft.Recipient, fault = readUserID(members[memberRecipientID], "recipient_id")
	f.addFault(fault)
	f.draft.Body, fault = readString(members[memberBody], "body")
	f.addFault(fault)
	return f, nil
}

// salvageReply returns the client_message_id of a frame that is refused as a whole, where
// it can be read for certain: the frame is a JSON object by a milder reading, which takes
// lone surrogates and invalid UTF-8 elsewhere, deep nesting, and the text of a binary
// frame.
func salvageReply(data []byte) reply {
	var members map[string]json.RawMessage // a struct's names would match in any case
	if json.Unmarshal(data, &members) != nil {
		return reply{}
	}
	id, fault := readString(jsontext.Value(members["client_message_id"]), "client_message_id")
	if fault != nil || !utf8.ValidString(id) {
		return reply{}
	}
	return reply{id, true}
}

func (f *frame) addFault(fault *domain.Fault) {
	if fault != nil {
		f.faults = append(f.faults, *fault)
	}
}

// readMembers returns the raw values of the members that count, nil for an absent
// one. They are parts of data.
func readMembers(data []byte) (members [memberCount]jsontext.Value, err error) {
	if tooDeep(data) {
		return members, errIntegrity
	}
	d := frameDecoders.Get().(*frameDecoder)
	defer func() {
		d.source = bytes.Buffer{} // the pool must not keep the client's data alive
		d.decoder.Reset(&d.source, duplicatesAllowed)
		frameDecoders.Put(d)
	}()
	d.source = *bytes.NewBuffer(data)
	d.decoder.Reset(&d.source, duplicatesAllowed)

	if token, err := d.decoder.ReadToken(); err != nil || token.Kind() != jsontext.KindBeginObject {
		return members, errIntegrity
	}
	for d.decoder.PeekKind() != jsontext.KindEndObject {
		name, err := d.decoder.ReadValue()
		if err != nil {
			return members, errIntegrity
		}
		member := memberOf(name)
		value, err := d.decoder.ReadValue()
		if err != nil {
			return members, errIntegrity
		}
		if member >= 0 {
			// What ReadValue returns is good until the next read only; data stays.
			end := d.decoder.InputOffset()
			members[member] = data[end-int64(len(value)) : end]
		}
	}
	if _, err := d.decoder.ReadToken(); err != nil {
		return members, errIntegrity
	}
	if _, err := d.decoder.ReadToken(); !errors.Is(err, io.EOF) {
		return members, errIntegrity
	}
	return members, nil
}

// tooDeep reports whether objects and arrays nest deeper than maxNesting. It is
// right for valid JSON; other text fails later anyway.
func tooDeep(data []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxNesting {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// memberOf returns which member a quoted name stands for, or -1. A name may be
// written with escapes (RFC 8259, section 8.3).
func memberOf(quoted jsontext.Value) int {
	name := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(name, '\\') >= 0 {
		plain, err := jsontext.AppendUnquote(nil, quoted)
		if err != nil {
			return -1
		}
		name = plain
	}
	for member, known := range memberNames {
		if string(name) == known {
			return member
		}
	}
	return -1
}

func readString(value jsontext.Value, member string) (string, *domain.Fault) {
	switch {
	case value == nil:
		return "", missing(member)
	case value.Kind() != jsontext.KindString:
		return "", &domain.Fault{Type: domain.FaultStringType, Loc: []string{member}, Msg: "Input should be a valid string"}
	}
	if inner := value[1 : len(value)-1]; bytes.IndexByte(inner, '\\') < 0 {
		return string(inner), nil
	}
	plain, err := jsontext.AppendUnquote(make([]byte, 0, len(value)), value)
	if err != nil {
		// A lone surrogate: out of reach for what the decoder has accepted.
		return "", &domain.Fault{Type: domain.FaultStringType, Loc: []string{member}, Msg: "Input should be a valid string"}
	}
	return string(plain), nil
}

// readUserID reads a number in the only notation that the contract allows. The raw
// text decides: a float64 holds no more than 53 bits.
func readUserID(value jsontext.Value, member string) (domain.UserID, *domain.Fault) {
	fault := func(kind, msg string) (domain.UserID, *domain.Fault) {
		return domain.UserID{}, &domain.Fault{Type: kind, Loc: []string{member}, Msg: msg}
	}
	switch {
	case value == nil:
		return domain.UserID{}, missing(member)
	case value.Kind() != jsontext.KindNumber:
		return fault(domain.FaultIntType, "Input should be a valid integer")
	case bytes.ContainsAny(value, ".eE"):
		return fault(domain.FaultIntFromFloat, "Input should be a valid integer, without fraction or exponent")
	case value[0] == '-' || value[0] == '0':
		return fault(domain.FaultNotPositive, "Input should be greater than or equal to 1")
	}
	user, err := domain.ParseUserID(string(value))
	if err != nil {
		return fault(domain.FaultIntOutOfRange, "Input should be less than or equal to 9223372036854775807")
	}
	return user, nil
}

func missing(member string) *domain.Fault {
	return &domain.Fault{Type: domain.FaultMissing, Loc: []string{member}, Msg: "Field required"}
}

// errorFrame encodes an error that carries a sentence.
func errorFrame(title, details string, to reply) []byte {
	b := make([]byte, 0, len(`{"title":"","details":"","in_reply_to":""}`)+len(title)+len(details)+len(to.id)+8)
	b = append(b, `{"title":`...)
	b = appendQuoted(b, title)
	b = append(b, `,"details":`...)
	b = appendQuoted(b, details)
	return appendReply(b, to)
}

// faultsFrame encodes the error that lists what is wrong with a frame.
func faultsFrame(faults []domain.Fault, to reply) []byte {
	b := make([]byte, 0, 64+112*len(faults)+len(to.id))
	b = append(b, `{"title":`...)
	b = appendQuoted(b, titleConsistency)
	b = append(b, `,"details":[`...)
	for i, fault := range faults {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"type":`...)
		b = appendQuoted(b, fault.Type)
		b = append(b, `,"loc":[`...)
		for j, part := range fault.Loc {
			if j > 0 {
				b = append(b, ',')
			}
			b = appendQuoted(b, part)
		}
		b = append(b, `],"msg":`...)
		b = appendQuoted(b, fault.Msg)
		b = append(b, '}')
	}
	b = append(b, ']')
	return appendReply(b, to)
}

func appendReply(b []byte, to reply) []byte {
	if to.known {
		b = append(b, `,"in_reply_to":`...)
		b = appendQuoted(b, to.id)
	}
	return append(b, '}')
}

// appendQuoted appends text as a JSON string. The text is valid UTF-8: it is ours, or
// has passed the decoder; of anything else AppendQuote would make U+FFFD.
func appendQuoted(b []byte, text string) []byte {
	b, _ = jsontext.AppendQuote(b, text)
	return b
}

// deliveryDetails says for people why a message was not taken. The causes that it
// does not name are told alike.
func deliveryDetails(err error) string {
	const again = " Send it again under the same client_message_id."
	switch {
	case errors.Is(err, errClosing):
		return "The connection is being closed; the message was not accepted." + again
	case errors.Is(err, app.ErrBrokerBlocked):
		return "The message broker takes no messages at the moment." + again
	case errors.Is(err, app.ErrBrokerBusy):
		return "Too many messages wait for the message broker." + again
	case errors.Is(err, app.ErrUnroutable):
		return "Nothing takes messages at the moment." + again
	case errors.Is(err, app.ErrNotAcknowledged):
		return "The message broker did not take the message." + again
	case errors.Is(err, app.ErrConfirmTimeout):
		return "The message was not confirmed in time, so it may or may not be stored." + again
	case errors.Is(err, app.ErrBrokerUnavailable):
		return "The message broker is unavailable." + again
	}
	return "The message is not known to be stored." + again
}

func rateLimitDetails(perSecond float64) string {
	return "No more than " + strconv.FormatFloat(perSecond, 'g', 6, 64) + " messages a second are accepted on one connection; this one was not."
}
