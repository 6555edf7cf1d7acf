// Package docs holds the documents of the service, so that the program can serve
// them: go:embed can't reach up from a module's directory.
package docs

import _ "embed"

// OpenAPI is the OpenAPI 3.1 document of the HTTP routes, as YAML.
//
//go:embed openapi.yaml
var OpenAPI []byte

// AsyncAPI is the AsyncAPI 3.0 document of the WebSocket frames and the AMQP
// messages, as YAML.
//
//go:embed asyncapi.yaml
var AsyncAPI []byte
