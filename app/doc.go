// Package app holds the use cases of the gateway and the ports through which they
// meet the world. Modules implement the ports; nothing here knows HTTP,
// WebSocket, AMQP or Redis.
//
// One use case a file: IssuePass, Connect, Send, Deliver, Readiness.
package app
