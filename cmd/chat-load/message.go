package main

import (
	"bytes"
	"strconv"
	"time"
)

// stamp is what the id of each message says, so that whoever receives it can reconcile
// it and knows how long it was under way.
type stamp struct {
	run    uint32 // messages of other runs are not counted
	stream uint32 // messages of one stream are numbered, and kept in order
	number uint32
	at     int64 // when it was due to be sent, ns since 1970
}

// idPrefix marks an id as one of this program's.
const idPrefix = "load."

// append writes the id: load.<run>.<stream>.<number>.<at>, at most 56 characters.
func (s stamp) append(dst []byte) []byte {
	dst = append(dst, idPrefix...)
	dst = strconv.AppendUint(dst, uint64(s.run), 10)
	dst = append(dst, '.')
	dst = strconv.AppendUint(dst, uint64(s.stream), 10)
	dst = append(dst, '.')
	dst = strconv.AppendUint(dst, uint64(s.number), 10)
	dst = append(dst, '.')
	return strconv.AppendInt(dst, s.at, 10)
}

// parseStamp reads an id, which ends at the first byte that can't belong to it.
func parseStamp(text []byte) (s stamp, ok bool) {
	rest, ok := bytes.CutPrefix(text, []byte(idPrefix))
	if !ok {
		return stamp{}, false
	}
	var parts [4]uint64
	for i := range parts {
		digits := 0
		for digits < len(rest) && digits < 19 && rest[digits] >= '0' && rest[digits] <= '9' {
			parts[i] = parts[i]*10 + uint64(rest[digits]-'0')
			digits++
		}
		if digits == 0 || i < 3 && (parts[i] > 1<<32-1 || digits == len(rest) || rest[digits] != '.') {
			return stamp{}, false
		}
		if i < 3 {
			digits++
		}
		rest = rest[digits:]
	}
	// A ledger counts up to one more than the greatest number.
	if parts[2] == 1<<32-1 || parts[3] > 1<<63-1 {
		return stamp{}, false
	}
	return stamp{uint32(parts[0]), uint32(parts[1]), uint32(parts[2]), int64(parts[3])}, true
}

// stampOf finds the id that a member of a JSON text holds. The text is one that this
// program or the gateway wrote, so a search does, and costs a tenth of a decoder.
func stampOf(text []byte, member string) (stamp, bool) {
	at := bytes.Index(text, []byte(member))
	if at < 0 {
		return stamp{}, false
	}
	rest := bytes.TrimLeft(text[at+len(member):], ": \t\r\n")
	if len(rest) == 0 || rest[0] != '"' {
		return stamp{}, false
	}
	return parseStamp(rest[1:])
}

// Members that carry an id.
const (
	memberID      = `"client_message_id"`
	memberReplyTo = `"in_reply_to"`
)

// padding fills message bodies.
var padding = bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog; "), 1+maxBytes/45)

// Bounds of -bytes: below the least there is no room for the members, the greatest is
// the gateway's default limit of a frame.
const (
	minBytes = 300
	maxBytes = 65536
)

// envelope writes messages of one size.
type envelope struct {
	size   int // of a message as it stands at the broker, in bytes
	sentAt string
}

func newEnvelope(size int, now time.Time) envelope {
	return envelope{size, now.UTC().Format("2006-01-02T15:04:05.000000Z")}
}

// appendStored appends the message as it stands at the broker, in the members of the
// wire contract's section 3.
func (e envelope) appendStored(dst []byte, s stamp, sender, recipient int64) []byte {
	start := len(dst)
	dst = append(dst, `{"id":null,"client_message_id":"`...)
	dst = s.append(dst)
	dst = append(dst, `","chat_id":"load","sender_id":`...)
	dst = strconv.AppendInt(dst, sender, 10)
	dst = append(dst, `,"recipient_id":`...)
	dst = strconv.AppendInt(dst, recipient, 10)
	dst = append(dst, `,"status":"sent","sent_at":"`...)
	dst = append(dst, e.sentAt...)
	dst = append(dst, `","delivered_at":null,"body":"`...)
	const end = `","is_edited":false,"is_deleted":false}`
	dst = append(dst, padding[:max(0, e.size-(len(dst)-start)-len(end))]...)
	return append(dst, end...)
}

// appendFrame appends what a client sends so that the message stands at the broker with
// the envelope's size. scratch is overwritten; the second result is to be passed as the
// next call's.
func (e envelope) appendFrame(dst, scratch []byte, s stamp, sender, recipient int64) (frame, reuse []byte) {
	bare := envelope{0, e.sentAt}
	scratch = bare.appendStored(scratch[:0], s, sender, recipient)
	dst = append(dst, `{"client_message_id":"`...)
	dst = s.append(dst)
	dst = append(dst, `","chat_id":"load","recipient_id":`...)
	dst = strconv.AppendInt(dst, recipient, 10)
	dst = append(dst, `,"body":"`...)
	dst = append(dst, padding[:max(0, e.size-len(scratch))]...)
	return append(dst, `"}`...), scratch
}

// titleOf returns the title of an error frame, or "" where there is none.
func titleOf(text []byte) string {
	const member = `"title"`
	at := bytes.Index(text, []byte(member))
	if at < 0 {
		return ""
	}
	rest := bytes.TrimLeft(text[at+len(member):], ": \t\r\n")
	rest, ok := bytes.CutPrefix(rest, []byte(`"`))
	if !ok {
		return ""
	}
	title, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(title[:min(len(title), 64)])
}
