// Package apidocs serves the documents of the service: Swagger UI, the OpenAPI and
// AsyncAPI documents, and a readable page of the latter.
package apidocs

// Config says where the documents are served, and what is served beside them.
type Config struct {
	// RootPath is the prefix under which every route is served too, e.g.
	// "/transportation"; empty where there is none.
	RootPath string
	// Demo says that the routes of demo mode exist.
	Demo bool
	// Metrics says that /metrics is served beside the documents, not on ADMIN_ADDR.
	Metrics bool
}
