package apidocs

import (
	"bytes"
	"encoding/json"
	"fmt"

	"gopkg.in/yaml.v3"
)

// appendJSON appends a YAML node as JSON. Unlike a map in between, it keeps the
// order of the members, which is the order in which people read the documents.
func appendJSON(dst []byte, node *yaml.Node) ([]byte, error) {
	switch node.Kind {
	case yaml.DocumentNode:
		return appendJSON(dst, node.Content[0])
	case yaml.AliasNode:
		return appendJSON(dst, node.Alias)
	case yaml.SequenceNode:
		dst = append(dst, '[')
		for i, item := range node.Content {
			if i > 0 {
				dst = append(dst, ',')
			}
			var err error
			if dst, err = appendJSON(dst, item); err != nil {
				return nil, err
			}
		}
		return append(dst, ']'), nil
	case yaml.MappingNode:
		dst = append(dst, '{')
		for i := 0; i < len(node.Content); i += 2 {
			if i > 0 {
				dst = append(dst, ',')
			}
			var err error
			if dst, err = appendText(dst, node.Content[i].Value); err != nil {
				return nil, err
			}
			dst = append(dst, ':')
			if dst, err = appendJSON(dst, node.Content[i+1]); err != nil {
				return nil, err
			}
		}
		return append(dst, '}'), nil
	case yaml.ScalarNode:
		switch node.ShortTag() {
		case "!!null":
			return append(dst, "null"...), nil
		case "!!bool", "!!int", "!!float":
			// Written as in JSON, or refused: 0x1f and .inf are YAML only.
			if !json.Valid([]byte(node.Value)) {
				return nil, fmt.Errorf("line %d: %s is not JSON", node.Line, node.Value)
			}
			return append(dst, node.Value...), nil
		}
		return appendText(dst, node.Value)
	}
	return nil, fmt.Errorf("line %d: not a value", node.Line)
}

// appendText quotes text. json.Marshal alone would also escape <, > and &.
func appendText(dst []byte, text string) ([]byte, error) {
	var quoted bytes.Buffer
	encoder := json.NewEncoder(&quoted)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(text); err != nil {
		return nil, fmt.Errorf("quote a text: %w", err)
	}
	return append(dst, bytes.TrimSuffix(quoted.Bytes(), []byte("\n"))...), nil
}

// member returns the value of a mapping's member, through aliases, or nil.
func member(node *yaml.Node, name string) *yaml.Node {
	if node == nil || node.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i < len(node.Content); i += 2 {
		if node.Content[i].Value == name {
			value := node.Content[i+1]
			if value.Kind == yaml.AliasNode {
				return value.Alias
			}
			return value
		}
	}
	return nil
}
