package apidocs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"gopkg.in/yaml.v3"
)

// openAPI is the OpenAPI document as one prefix of the service serves it.
type openAPI struct{ yaml, json file }

// demoOnly marks the paths that exist in demo mode only.
const demoOnly = "x-demo-only"

// renderOpenAPI returns the document with the prefix as its first server, so that
// "Try it out" asks where the document came from, and without the paths that this
// service does not have.
func renderOpenAPI(source []byte, config Config, prefix string) (openAPI, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(source, &document); err != nil {
		return openAPI{}, fmt.Errorf("parse the OpenAPI document: %w", err)
	}
	root := document.Content[0]
	servers, paths := member(root, "servers"), member(root, "paths")
	if servers == nil || paths == nil {
		return openAPI{}, errors.New("the OpenAPI document has no servers or no paths")
	}
	prefixes := []string{prefix}
	for _, other := range []string{"", config.RootPath} {
		if !slices.Contains(prefixes, other) {
			prefixes = append(prefixes, other)
		}
	}
	servers.Content = nil
	for _, prefix := range prefixes {
		url, description := "/", "The root"
		if prefix != "" {
			url, description = prefix, "Under ROOT_PATH"
		}
		servers.Content = append(servers.Content, mapping("url", url, "description", description))
	}
	if !config.Demo {
		removeDemo(root, paths)
	}

	var text bytes.Buffer
	encoder := yaml.NewEncoder(&text)
	encoder.SetIndent(2)
	if err := encoder.Encode(&document); err != nil {
		return openAPI{}, fmt.Errorf("encode the OpenAPI document: %w", err)
	}
	compact, err := appendJSON(nil, &document)
	if err != nil {
		return openAPI{}, fmt.Errorf("turn the OpenAPI document into JSON: %w", err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, compact, "", "  "); err != nil {
		return openAPI{}, fmt.Errorf("indent the OpenAPI document: %w", err)
	}
	return openAPI{
		yaml: newFile("application/yaml", text.Bytes()),
		json: newFile("application/json", indented.Bytes()),
	}, nil
}

// removeDemo removes the paths of demo mode, and the tag that groups them.
func removeDemo(root, paths *yaml.Node) {
	kept := paths.Content[:0]
	for i := 0; i < len(paths.Content); i += 2 {
		if member(paths.Content[i+1], demoOnly) == nil {
			kept = append(kept, paths.Content[i], paths.Content[i+1])
		}
	}
	paths.Content = kept
	if tags := member(root, "tags"); tags != nil {
		tags.Content = slices.DeleteFunc(tags.Content, func(tag *yaml.Node) bool {
			name := member(tag, "name")
			return name != nil && name.Value == "Demo"
		})
	}
}

// mapping returns a YAML mapping of strings.
func mapping(pairs ...string) *yaml.Node {
	node := &yaml.Node{Kind: yaml.MappingNode}
	for _, text := range pairs {
		node.Content = append(node.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text})
	}
	return node
}
