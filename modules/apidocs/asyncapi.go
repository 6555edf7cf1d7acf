package apidocs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"gopkg.in/yaml.v3"
)

// asyncDocument is the AsyncAPI document as the page shows it.
type asyncDocument struct {
	Title       string
	Version     string
	Description string
	Channels    []asyncChannel
}

type asyncChannel struct {
	ID          string
	Title       string
	Protocol    string
	Address     string
	Description string
	Facts       []asyncFact
	Operations  []asyncOperation
	CloseCodes  []asyncCloseCode
	CloseNote   string // the extension x-close-codes-note
}

// asyncFact is a property of a channel or an operation, from its bindings.
type asyncFact struct{ Name, Value string }

type asyncOperation struct {
	Title    string
	Summary  string
	Sent     bool // by the gateway
	Facts    []asyncFact
	Messages []asyncMessage
}

type asyncMessage struct {
	ID          string
	Title       string
	Summary     string
	Description string
	Type        string // of a payload that is no object
	Members     []asyncMember
	Examples    []asyncExample
}

type asyncMember struct {
	Name        string
	Type        string
	Required    bool
	Description string
}

type asyncExample struct{ Summary, JSON string }

// asyncCloseCode is an entry of the extension x-close-codes.
type asyncCloseCode struct {
	Code   int    `yaml:"code"`
	Sent   bool   `yaml:"sent"`
	Reason string `yaml:"reason"`
	When   string `yaml:"when"`
	Client string `yaml:"client"`
}

// asyncReader walks the document. The first fault stays, and ends what follows.
type asyncReader struct {
	root *yaml.Node
	err  error
}

// readAsyncAPI takes the document apart, as far as the page shows it.
func readAsyncAPI(source []byte) (asyncDocument, error) {
	var file yaml.Node
	if err := yaml.Unmarshal(source, &file); err != nil {
		return asyncDocument{}, fmt.Errorf("parse the AsyncAPI document: %w", err)
	}
	if file.Kind != yaml.DocumentNode {
		return asyncDocument{}, errors.New("parse the AsyncAPI document: it is empty")
	}
	r := &asyncReader{root: file.Content[0]}
	info := member(r.root, "info")
	document := asyncDocument{Title: text(info, "title"), Version: text(info, "version"), Description: text(info, "description")}
	r.each(member(r.root, "channels"), func(id string, channel *yaml.Node) {
		document.Channels = append(document.Channels, r.channel(id, channel))
	})
	if r.err != nil {
		return asyncDocument{}, fmt.Errorf("read the AsyncAPI document: %w", r.err)
	}
	return document, nil
}

func (r *asyncReader) channel(id string, node *yaml.Node) asyncChannel {
	channel := asyncChannel{
		ID: id, Title: text(node, "title"), Address: text(node, "address"), Description: text(node, "description"),
		CloseNote: text(node, "x-close-codes-note"),
	}
	if servers := member(node, "servers"); servers != nil && len(servers.Content) > 0 {
		channel.Protocol = text(r.resolve(servers.Content[0]), "protocol")
	}
	bindings := member(node, "bindings")
	if query := member(member(member(bindings, "ws"), "query"), "properties"); query != nil {
		r.each(query, func(name string, parameter *yaml.Node) {
			channel.Facts = append(channel.Facts, asyncFact{"query " + name, text(parameter, "description")})
		})
	}
	if exchange := member(member(bindings, "amqp"), "exchange"); exchange != nil {
		durable := "not durable"
		if text(exchange, "durable") == "true" {
			durable = "durable"
		}
		channel.Facts = append(channel.Facts, asyncFact{"exchange", text(exchange, "name") + ", " + text(exchange, "type") + ", " + durable})
		routingKey := channel.Address
		if routingKey == "" {
			routingKey = "the empty string"
		}
		channel.Facts = append(channel.Facts, asyncFact{"routing key", routingKey})
	}
	r.each(member(node, "parameters"), func(name string, parameter *yaml.Node) {
		channel.Facts = append(channel.Facts, asyncFact{name, text(parameter, "description")})
	})
	if codes := member(node, "x-close-codes"); codes != nil {
		if err := codes.Decode(&channel.CloseCodes); err != nil {
			r.fail(fmt.Errorf("x-close-codes: %w", err))
		}
	}
	reference := "#/channels/" + id
	r.each(member(r.root, "operations"), func(_ string, operation *yaml.Node) {
		if text(member(operation, "channel"), "$ref") == reference {
			channel.Operations = append(channel.Operations, r.operation(operation))
		}
	})
	return channel
}

func (r *asyncReader) operation(node *yaml.Node) asyncOperation {
	operation := asyncOperation{
		Title: text(node, "title"), Summary: text(node, "summary"), Sent: text(node, "action") == "send",
	}
	if amqp := member(member(node, "bindings"), "amqp"); amqp != nil {
		r.each(amqp, func(name string, value *yaml.Node) {
			if name != "bindingVersion" {
				operation.Facts = append(operation.Facts, asyncFact{name, value.Value})
			}
		})
	}
	if messages := member(node, "messages"); messages != nil {
		for _, message := range messages.Content {
			operation.Messages = append(operation.Messages, r.message(r.resolve(message)))
		}
	}
	return operation
}

func (r *asyncReader) message(node *yaml.Node) asyncMessage {
	payload := r.resolve(member(node, "payload"))
	message := asyncMessage{
		ID: text(node, "name"), Title: text(node, "title"),
		Summary: text(node, "summary"), Description: text(node, "description"),
	}
	required := make(map[string]bool)
	if names := member(payload, "required"); names != nil {
		for _, name := range names.Content {
			required[name.Value] = true
		}
	}
	r.each(member(payload, "properties"), func(name string, schema *yaml.Node) {
		schema = r.resolve(schema)
		message.Members = append(message.Members, asyncMember{
			Name: name, Type: r.schemaType(schema), Required: required[name], Description: text(schema, "description"),
		})
	})
	if len(message.Members) == 0 {
		message.Type = text(payload, "description")
	}
	if examples := member(node, "examples"); examples != nil {
		for _, example := range examples.Content {
			compact, err := appendJSON(nil, member(example, "payload"))
			if err != nil {
				r.fail(fmt.Errorf("example of %s: %w", message.ID, err))
				continue
			}
			var indented bytes.Buffer
			if err := json.Indent(&indented, compact, "", "  "); err != nil {
				r.fail(fmt.Errorf("example of %s: %w", message.ID, err))
			}
			message.Examples = append(message.Examples, asyncExample{text(example, "summary"), indented.String()})
		}
	}
	return message
}

// schemaType says in a few words what a JSON Schema asks for.
func (r *asyncReader) schemaType(schema *yaml.Node) string {
	if constant := member(schema, "const"); constant != nil {
		literal, err := appendJSON(nil, constant)
		if err != nil {
			r.fail(err)
		}
		return string(literal)
	}
	if values := member(schema, "enum"); values != nil {
		var names []string
		for _, value := range values.Content {
			names = append(names, value.Value)
		}
		return strings.Join(names, " | ")
	}
	kind := text(schema, "type")
	switch kind {
	case "array":
		item := r.resolve(member(schema, "items"))
		var names []string
		r.each(member(item, "properties"), func(name string, _ *yaml.Node) { names = append(names, name) })
		if len(names) > 0 {
			return "array of {" + strings.Join(names, ", ") + "}"
		}
		return "array of " + text(item, "type")
	case "integer":
		return kind + ", " + text(schema, "minimum") + " to " + text(schema, "maximum")
	}
	return kind
}

// resolve follows references within the document.
func (r *asyncReader) resolve(node *yaml.Node) *yaml.Node {
	for range 8 {
		reference := text(node, "$ref")
		if reference == "" {
			return node
		}
		node = r.root
		for name := range strings.SplitSeq(strings.TrimPrefix(reference, "#/"), "/") {
			if node = member(node, name); node == nil {
				r.fail(fmt.Errorf("%s leads nowhere", reference))
				return nil
			}
		}
	}
	r.fail(errors.New("references go in circles"))
	return nil
}

// each calls visit for the members of a mapping, in their order.
func (r *asyncReader) each(node *yaml.Node, visit func(name string, value *yaml.Node)) {
	if node == nil {
		return
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		visit(node.Content[i].Value, node.Content[i+1])
	}
}

func (r *asyncReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// text returns a scalar member of a mapping, or the empty string.
func text(node *yaml.Node, name string) string {
	if value := member(node, name); value != nil && value.Kind == yaml.ScalarNode {
		return strings.TrimSpace(value.Value)
	}
	return ""
}
