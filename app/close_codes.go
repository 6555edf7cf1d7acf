package app

// CloseCode is a WebSocket close code (RFC 6455, section 7.4).
type CloseCode int

// The close codes that the service sends, or counts for a connection that ended
// without one. CloseCodes says when.
const (
	CloseNormal         CloseCode = 1000
	CloseGoingAway      CloseCode = 1001
	CloseNoStatus       CloseCode = 1005
	CloseAbnormal       CloseCode = 1006
	CloseMessageTooBig  CloseCode = 1009
	CloseServiceRestart CloseCode = 1012
	CloseTryAgainLater  CloseCode = 1013
	CloseUnauthorized   CloseCode = 4401
	CloseDisconnected   CloseCode = 4403
	CloseTooSlow        CloseCode = 4408
)

// CloseCodeInfo is a row of CloseCodes.
type CloseCodeInfo struct {
	Code CloseCode
	// Sent says whether the service sends the code itself; the others come from
	// clients, or stand for a connection that ended without a close frame.
	Sent bool
	// Reason is the close reason that goes with the code, where it is always the same.
	Reason string
	// When says for people when the code is seen.
	When string
	// Client says what a client should do about it.
	Client string
}

// CloseCodes is the one table of close codes that the code, the metrics, the
// documents and the tests read. Codes that are not in it are counted as "other".
var CloseCodes = []CloseCodeInfo{
	{CloseNormal, false, "", "the client closed the connection", "nothing"},
	{CloseGoingAway, false, "", "the client's page was left", "nothing"},
	{CloseNoStatus, false, "", "the client closed without a code", "nothing"},
	{CloseAbnormal, false, "", "the connection ended without a close frame, or the peer answered nothing for a ping interval", "reconnect with backoff"},
	{CloseMessageTooBig, true, "message too big", "a frame over WS_MAX_MESSAGE_BYTES", "send smaller messages"},
	{CloseServiceRestart, true, "service restart", "the service is shutting down or restarting", "reconnect after a random delay"},
	{CloseTryAgainLater, true, "connection limit reached", "the instance is at WS_MAX_CONNECTIONS, or the user at WS_MAX_CONNECTIONS_PER_USER", "close another connection, or try again later"},
	{CloseUnauthorized, true, "not authorized", "the pass is not good, or the token that it came from has just expired", "get a new token where needed, and a new pass"},
	{CloseDisconnected, true, "", "a backend asked for the user to be disconnected", "do not reconnect by yourself"},
	{CloseTooSlow, true, "too slow", "the client reads too slowly for WS_WRITE_TIMEOUT", "reconnect, and read faster"},
}
