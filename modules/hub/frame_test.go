package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

const goodFrame = `{"client_message_id":"m-1","chat_id":"c-1","recipient_id":2,"body":"hello"}`

// frameCase is a row of the matrix of frames, which is run on the codec alone and over
// real sockets.
type frameCase struct {
	name string
	text string
	// integrity: the frame is no JSON object. Otherwise faults lists "type member".
	integrity bool
	faults    []string
	// answerTo is the in_reply_to of the error; "-", or with integrity nothing, where
	// there must be none.
	answerTo string
	// body is the body of an accepted frame.
	body string
}

func frameMatrix() []frameCase {
	with := func(member, value string) string {
		members := map[string]string{"client_message_id": `"m-1"`, "chat_id": `"c-1"`, "recipient_id": "2", "body": `"hello"`}
		members[member] = value
		var b strings.Builder
		for i, name := range memberNames {
			if members[name] == "" {
				continue
			}
			if i > 0 && b.Len() > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, "%q:%s", name, members[name])
		}
		return "{" + b.String() + "}"
	}
	extra := func(value string) string { return strings.TrimSuffix(goodFrame, "}") + `,"x":` + value + `}` }
	nested := func(depth int) string { return strings.Repeat("[", depth) + strings.Repeat("]", depth) }
	wide := strings.Repeat("ä", 128)
	return []frameCase{
		{name: "good", text: goodFrame, body: "hello"},
		{name: "white space around", text: " \t\r\n" + goodFrame + "\n", body: "hello"},
		{name: "empty body", text: with("body", `""`), body: ""},
		{name: "escapes", text: with("body", `"\u0041\n\ud83d\ude00\u0000"`), body: "A\n😀\x00"},
		{name: "escaped member name", text: strings.Replace(goodFrame, "body", `b\u006fdy`, 1), body: "hello"},
		{name: "sender_id ignored", text: extra("1") + "", body: "hello"},
		{name: "duplicate, last counts", text: strings.Replace(goodFrame, "{", `{"body":1,`, 1), body: "hello"},
		{name: "duplicate, last is wrong", text: extra(`1,"body":7`), faults: []string{"string_type body"}, answerTo: "m-1"},
		{name: "duplicate id, last is no string", text: extra(`1,"client_message_id":7`), faults: []string{"string_type client_message_id"}, answerTo: "-"},
		{name: "names are case-sensitive", text: strings.Replace(goodFrame, `"body"`, `"Body"`, 1), faults: []string{"missing body"}, answerTo: "m-1"},
		{name: "greatest recipient", text: with("recipient_id", "9223372036854775807"), body: "hello"},
		{name: "id of 128 code points", text: with("client_message_id", `"`+wide+`"`), body: "hello"},
		{name: "depth of 1000", text: extra(nested(maxNesting - 1)), body: "hello"},
		{name: "brackets in strings don't nest", text: with("body", `"`+strings.Repeat(`[{\"`, 2000)+`"`), body: strings.Repeat(`[{"`, 2000)},

		{name: "depth of 1001", text: extra(nested(maxNesting)), integrity: true, answerTo: "m-1"},
		{name: "depth of 100000", text: strings.Repeat("[", 100000), integrity: true},
		{name: "empty", text: "", integrity: true},
		{name: "not JSON", text: "hello", integrity: true},
		{name: "cut", text: goodFrame[:len(goodFrame)-1], integrity: true},
		{name: "array", text: "[" + goodFrame + "]", integrity: true},
		{name: "string", text: `"hello"`, integrity: true},
		{name: "null", text: "null", integrity: true},
		{name: "number", text: "1", integrity: true},
		{name: "two objects", text: goodFrame + goodFrame, integrity: true},
		{name: "trailing garbage", text: goodFrame + "x", integrity: true},
		{name: "trailing comma", text: strings.TrimSuffix(goodFrame, "}") + ",}", integrity: true},
		{name: "comment", text: "/**/" + goodFrame, integrity: true},
		{name: "byte order mark", text: "\ufeff" + goodFrame, integrity: true},
		{name: "single quotes", text: strings.ReplaceAll(goodFrame, `"`, `'`), integrity: true},
		{name: "NaN", text: with("recipient_id", "NaN"), integrity: true},
		{name: "leading zero", text: with("recipient_id", "02"), integrity: true},
		{name: "plus sign", text: with("recipient_id", "+2"), integrity: true},
		{name: "invalid UTF-8", text: with("body", "\"\xff\""), integrity: true, answerTo: "m-1"},
		{name: "invalid UTF-8 in an unknown member", text: extra("\"\xc3\""), integrity: true, answerTo: "m-1"},
		{name: "invalid UTF-8 in a name", text: strings.Replace(goodFrame, "{", "{\"\xff\":1,", 1), integrity: true, answerTo: "m-1"},
		{name: "overlong UTF-8", text: with("body", "\"\xc0\xaf\""), integrity: true, answerTo: "m-1"},
		{name: "surrogate in UTF-8", text: with("body", "\"\xed\xa0\x80\""), integrity: true, answerTo: "m-1"},
		{name: "lone high surrogate", text: with("body", `"\ud800"`), integrity: true, answerTo: "m-1"},
		{name: "lone low surrogate", text: with("body", `"\udc00"`), integrity: true, answerTo: "m-1"},
		{name: "lone surrogate in an unknown member", text: extra(`["\ud83dx"]`), integrity: true, answerTo: "m-1"},
		{name: "lone surrogate in a name", text: strings.Replace(goodFrame, "{", `{"\ud800":1,`, 1), integrity: true, answerTo: "m-1"},
		{name: "lone surrogate in the id", text: with("client_message_id", `"\ud800"`), integrity: true},
		{name: "invalid UTF-8 in the id", text: with("client_message_id", "\"\xff\""), integrity: true},
		{name: "lone surrogate, id in another case", text: `{"CLIENT_MESSAGE_ID":"m-1","x":"\ud800"}`, integrity: true},
		{name: "control character", text: with("body", "\"\x01\""), integrity: true},
		{name: "wrong escape", text: with("body", `"\x"`), integrity: true},

		{name: "empty object", text: "{}", faults: []string{"missing client_message_id", "missing chat_id", "missing recipient_id", "missing body"}, answerTo: "-"},
		{name: "all wrong types", text: `{"client_message_id":1,"chat_id":[],"recipient_id":"2","body":{}}`,
			faults: []string{"string_type client_message_id", "string_type chat_id", "int_type recipient_id", "string_type body"}, answerTo: "-"},
		{name: "all null", text: `{"client_message_id":null,"chat_id":null,"recipient_id":null,"body":null}`,
			faults: []string{"string_type client_message_id", "string_type chat_id", "int_type recipient_id", "string_type body"}, answerTo: "-"},
		{name: "no body", text: with("body", ""), faults: []string{"missing body"}, answerTo: "m-1"},
		{name: "no id", text: with("client_message_id", ""), faults: []string{"missing client_message_id"}, answerTo: "-"},
		{name: "empty id", text: with("client_message_id", `""`), faults: []string{"string_too_short client_message_id"}, answerTo: ""},
		{name: "id too long", text: with("client_message_id", `"`+wide+`x"`), faults: []string{"string_too_long client_message_id"}, answerTo: wide + "x"},
		{name: "empty chat", text: with("chat_id", `""`), faults: []string{"string_too_short chat_id"}, answerTo: "m-1"},
		{name: "chat too long", text: with("chat_id", `"`+wide+`x"`), faults: []string{"string_too_long chat_id"}, answerTo: "m-1"},
		{name: "recipient 0", text: with("recipient_id", "0"), faults: []string{"greater_than_equal recipient_id"}, answerTo: "m-1"},
		{name: "recipient -0", text: with("recipient_id", "-0"), faults: []string{"greater_than_equal recipient_id"}, answerTo: "m-1"},
		{name: "recipient -1", text: with("recipient_id", "-1"), faults: []string{"greater_than_equal recipient_id"}, answerTo: "m-1"},
		{name: "recipient 1.0", text: with("recipient_id", "1.0"), faults: []string{"int_from_float recipient_id"}, answerTo: "m-1"},
		{name: "recipient 1e3", text: with("recipient_id", "1e3"), faults: []string{"int_from_float recipient_id"}, answerTo: "m-1"},
		{name: "recipient 1E3", text: with("recipient_id", "1E3"), faults: []string{"int_from_float recipient_id"}, answerTo: "m-1"},
		{name: "recipient 2^63", text: with("recipient_id", "9223372036854775808"), faults: []string{"less_than_equal recipient_id"}, answerTo: "m-1"},
		{name: "recipient of 400 digits", text: with("recipient_id", strings.Repeat("9", 400)), faults: []string{"less_than_equal recipient_id"}, answerTo: "m-1"},
		{name: "recipient true", text: with("recipient_id", "true"), faults: []string{"int_type recipient_id"}, answerTo: "m-1"},
	}
}

func TestDecodeFrame(t *testing.T) {
	for _, c := range frameMatrix() {
		t.Run(c.name, func(t *testing.T) {
			data := []byte(c.text)
			f, err := decodeFrame(data)
			clear(data) // nothing of the input may be kept
			if c.integrity {
				if !errors.Is(err, errIntegrity) {
					t.Fatalf("decoded to %+v, %v; want an integrity error", f, err)
				}
				if want := (reply{c.answerTo, c.answerTo != ""}); f.answerTo != want {
					t.Errorf("answers %+v, want %+v", f.answerTo, want)
				}
				return
			}
			if err != nil {
				t.Fatalf("error %v; want none", err)
			}
			var faults []string
			for _, fault := range f.faults {
				faults = append(faults, fault.Type+" "+strings.Join(fault.Loc, "."))
			}
			if fmt.Sprint(faults) != fmt.Sprint(c.faults) {
				t.Fatalf("faults %q, want %q", faults, c.faults)
			}
			if len(c.faults) == 0 {
				if f.draft.Body != c.body {
					t.Errorf("body %q, want %q", f.draft.Body, c.body)
				}
				return
			}
			if want := (reply{c.answerTo, c.answerTo != "-"}); want.known && f.answerTo != want || f.answerTo.known != want.known {
				t.Errorf("answers %+v, want %+v", f.answerTo, want)
			}
		})
	}
}

func TestErrorFrames(t *testing.T) {
	tests := []struct {
		name string
		got  []byte
		want string
	}{
		{"no reply", errorFrame(titleIntegrity, detailsIntegrity, reply{}),
			`{"title":"Data integrity error.","details":"Invalid JSON was provided."}`},
		{"a reply to anything", errorFrame(titleDelivery, "x", reply{"\"\\\n\u2028<😀", true}),
			"{\"title\":\"Delivery error.\",\"details\":\"x\",\"in_reply_to\":\"\\\"\\\\\\n\u2028<😀\"}"},
		{"a reply to the empty id", errorFrame(titleDelivery, "x", reply{"", true}),
			`{"title":"Delivery error.","details":"x","in_reply_to":""}`},
		{"faults", faultsFrame([]domain.Fault{*missing("body"), {Type: "t", Loc: []string{"a", "b"}, Msg: "m"}}, reply{"7", true}),
			`{"title":"Data consistency error.","details":[{"type":"missing","loc":["body"],"msg":"Field required"},{"type":"t","loc":["a","b"],"msg":"m"}],"in_reply_to":"7"}`},
	}
	for _, test := range tests {
		if string(test.got) != test.want {
			t.Errorf("%s:\n got %s\nwant %s", test.name, test.got, test.want)
		}
		if !json.Valid(test.got) {
			t.Errorf("%s is not JSON", test.name)
		}
	}
}

func TestDeliveryDetailsAreSentences(t *testing.T) {
	causes := []error{errClosing, app.ErrBrokerUnavailable, app.ErrBrokerBlocked, app.ErrBrokerBusy, app.ErrUnroutable,
		app.ErrNotAcknowledged, app.ErrConfirmTimeout, errors.New("amqp://user:password@host")}
	seen := map[string]bool{}
	for _, cause := range causes {
		details := deliveryDetails(fmt.Errorf("publish: %w", cause))
		if seen[details] || !strings.HasSuffix(details, ".") || strings.Contains(details, "password") {
			t.Errorf("%v: %q", cause, details)
		}
		seen[details] = true
	}
}

func FuzzDecodeFrame(f *testing.F) {
	for _, c := range frameMatrix() {
		if len(c.text) < 4096 {
			f.Add([]byte(c.text))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		decoded, err := decodeFrame(data)
		if err != nil && !errors.Is(err, errIntegrity) {
			t.Fatalf("error %v", err)
		}
		// encoding/json agrees but for lone surrogates, invalid UTF-8 and depth, where
		// the contract is stricter, and for member names, where it ignores case.
		var object map[string]json.RawMessage
		oracle := json.Unmarshal(data, &object)
		switch {
		case err == nil && (oracle != nil || object == nil):
			t.Fatalf("accepted what is no object: %v", oracle)
		case err == nil && !utf8.Valid(data):
			t.Fatal("accepted invalid UTF-8")
		case err != nil && oracle == nil && object != nil && utf8.Valid(data) && !strings.Contains(string(data), `\u`) && !tooDeep(data):
			t.Fatal("refused a JSON object")
		case err != nil:
			return
		}
		if id, ok := object["client_message_id"]; ok != (len(decoded.faults) == 0 || decoded.faults[0].Type != domain.FaultMissing || decoded.faults[0].Loc[0] != "client_message_id") {
			t.Fatalf("client_message_id is there: %v (%s); faults %v", ok, id, decoded.faults)
		}
		if len(decoded.faults) > 0 {
			if frame := faultsFrame(decoded.faults, decoded.answerTo); !json.Valid(frame) {
				t.Fatalf("answers with %s", frame)
			}
			return
		}
		var want struct {
			ID     string `json:"client_message_id"`
			Chat   string `json:"chat_id"`
			Number int64  `json:"recipient_id"`
			Body   string `json:"body"`
		}
		exact := map[string]json.RawMessage{}
		for _, name := range memberNames {
			exact[name] = object[name]
		}
		again, err := json.Marshal(exact)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(again, &want); err != nil {
			t.Fatalf("accepted what encoding/json does not: %v", err)
		}
		got := decoded.draft
		if got.ClientMessageID.String() != want.ID || got.ChatID.String() != want.Chat || got.Recipient.Int64() != want.Number || got.Body != want.Body {
			t.Fatalf("read %+v, want %+v", got, want)
		}
	})
}
