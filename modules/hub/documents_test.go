package hub

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/docs"
)

// documentedExamples returns the examples of a message of the AsyncAPI document, as JSON.
func documentedExamples(t *testing.T, message string) map[string][]byte {
	t.Helper()
	var document struct {
		Components struct {
			Messages map[string]struct {
				Examples []struct {
					Name    string
					Payload any
				}
			}
		}
	}
	if err := yaml.Unmarshal(docs.AsyncAPI, &document); err != nil {
		t.Fatal(err)
	}
	examples := make(map[string][]byte)
	for _, example := range document.Components.Messages[message].Examples {
		text, err := json.Marshal(example.Payload)
		if err != nil {
			t.Fatal(err)
		}
		examples[example.Name] = text
	}
	if len(examples) == 0 {
		t.Fatalf("the message %s has no examples", message)
	}
	return examples
}

// sameJSON compares without regard to the order of members.
func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var values [2]any
	for i, text := range [][]byte{a, b} {
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		if err := decoder.Decode(&values[i]); err != nil {
			t.Fatal(err)
		}
	}
	left, _ := json.Marshal(values[0])
	right, _ := json.Marshal(values[1])
	return bytes.Equal(left, right)
}

func TestDocumentedFramesAreTheCodecs(t *testing.T) {
	for name, text := range documentedExamples(t, "clientMessage") {
		if f, err := decodeFrame(text); err != nil || len(f.faults) > 0 || !f.answerTo.known {
			t.Errorf("the example %s does not decode: %v, %+v", name, err, f.faults)
		}
	}
	const id = "0b6f1c52-7a07-4c0e-9d0f-1f6a8c1e2d3b"
	named := `"client_message_id":"` + id + `"`
	answer := func(text string) []byte {
		f, err := decodeFrame([]byte(text))
		if errors.Is(err, errIntegrity) {
			return errorFrame(titleIntegrity, detailsIntegrity, f.answerTo)
		}
		return faultsFrame(f.faults, f.answerTo)
	}
	to := reply{id, true}
	for _, c := range []struct {
		message, example string
		frame            []byte
	}{
		{"integrityError", "notJSON", answer("hello")},
		{"integrityError", "loneSurrogate", answer(`{` + named + `,"body":"\ud800"}`)},
		{"consistencyError", "missing", answer(`{` + named + `,"chat_id":"c","recipient_id":2}`)},
		{"consistencyError", "unnamed", answer(`{"client_message_id":1,"chat_id":"c","recipient_id":0,"body":""}`)},
		{"deliveryError", "outage", errorFrame(titleDelivery, deliveryDetails(app.ErrBrokerUnavailable), to)},
		{"rateLimitError", "tooMany", errorFrame(titleRateLimit, rateLimitDetails(20), to)},
	} {
		if example := documentedExamples(t, c.message)[c.example]; !sameJSON(t, example, c.frame) {
			t.Errorf("%s, %s: documented %s, sent %s", c.message, c.example, example, c.frame)
		}
	}
}

// TestDocumentedDeliveriesArePassedOn receives the documented messages of backends.
func TestDocumentedDeliveriesArePassedOn(t *testing.T) {
	for _, message := range []string{"delivery", "message", "disconnect"} {
		for name, text := range documentedExamples(t, message) {
			d := app.Delivery{Body: text, Acks: new(settlement)}
			if message == "disconnect" {
				d.Type = app.ControlDisconnect
			}
			if err := (app.Deliver{}).Receive(nowhere{}, d); err != nil {
				t.Errorf("%s, %s: %v", message, name, err)
			}
		}
	}
}

// nowhere is a recipient without connections.
type nowhere struct{}

func (nowhere) Deliver(d app.Delivery) { d.Ack() }
func (nowhere) Disconnect(string)      {}
