package hub

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// unspendTimeout bounds giving a pass back; by port a store answers within a second.
const unspendTimeout = 2 * time.Second

// ServeHTTP answers an upgrade in the order of the wire contract: what does not depend
// on the pass is judged before the pass is spent, and 101 is sent only once every
// message that is published for the user from now on will be received.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if fault := checkHandshake(w, r); fault != nil {
		fault.answer(w)
		return
	}
	admission, err := h.connect.Admit(r.Context(), app.Attempt{
		Pass:          r.URL.Query().Get("connection_pass"),
		Client:        clientAddress(r.RemoteAddr),
		ForeignOrigin: h.foreignOrigin(r),
	})
	h.meters.redemption(err)
	switch {
	case err == nil:
	case errors.Is(err, app.ErrAtCapacity):
		h.turnAway(w, r, app.CloseTryAgainLater)
		return
	case errors.Is(err, app.ErrPassInvalid):
		h.turnAway(w, r, app.CloseUnauthorized)
		return
	default:
		h.refuse(w, r, err)
		return
	}

	s := newSession(h, admission, clientAddress(r.RemoteAddr), w.Header().Get("X-Request-Id"))
	if !h.register(s) {
		h.giveBack(r.Context(), admission)
		h.refuse(w, r, app.ErrShuttingDown)
		return
	}
	if err := h.join(r.Context(), s); err != nil {
		h.unregister(s)
		if errors.Is(err, app.ErrUserAtCapacity) {
			admission.Release()
			h.turnAway(w, r, app.CloseTryAgainLater)
			return
		}
		h.giveBack(r.Context(), admission)
		h.refuse(w, r, err)
		return
	}
	// The session is the user's already: what is published from here on waits in its
	// queue and is written once the upgrade has been answered.
	ws, wire, err := h.accept(w, r)
	if err != nil {
		h.log.Debug("upgrade not answered", zap.Error(err))
		s.abandon()
		return
	}
	s.open(ws, wire)
}

// giveBack undoes an admission for a reason that is not the client's: the pass is good
// again, also where the client has left meanwhile.
func (h *Hub) giveBack(ctx context.Context, admission *app.Admission) {
	admission.Release()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unspendTimeout)
	defer cancel()
	if err := admission.Unspend(ctx); err != nil {
		h.log.Warn("a pass is lost with a failed upgrade", zap.Error(err))
	}
}

// accept answers the upgrade with 101. The request and its writer are not kept.
func (h *Hub) accept(w http.ResponseWriter, r *http.Request) (*websocket.Conn, *wire, error) {
	upgrade := &upgradeWriter{ResponseWriter: w, writeTimeout: h.config.WriteTimeout}
	ws, err := websocket.Accept(upgrade, r, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // the origin has been judged, by the contract's rule
		CompressionMode:    websocket.CompressionDisabled,
		OnPingReceived: func(context.Context, []byte) bool {
			h.meters.pings.Inc()
			return true // answer it
		},
	})
	if err != nil {
		if upgrade.wire != nil {
			upgrade.wire.cut()
		}
		return nil, nil, fmt.Errorf("accept a websocket: %w", err)
	}
	// The session has a limit of its own: the library would close the connection
	// before the messages in flight have been answered.
	ws.SetReadLimit(-1)
	return ws, upgrade.wire, nil
}

// turnAway accepts the connection only to close it, since a browser can't tell a
// refused upgrade from a network failure.
func (h *Hub) turnAway(w http.ResponseWriter, r *http.Request, code app.CloseCode) {
	h.begin()
	defer h.end()
	client, requestID, began := clientAddress(r.RemoteAddr), w.Header().Get("X-Request-Id"), time.Now()
	ws, wire, err := h.accept(w, r)
	if err != nil {
		h.log.Debug("upgrade not answered", zap.Error(err))
		return
	}
	// A socket this new has room for a close frame.
	if err := wire.writeClose(closeFrame(code, closeReason(code)), time.Now().Add(closeWait)); err == nil {
		awaitClose(ws)
	}
	wire.cut()
	_ = ws.CloseNow()
	h.meters.closed(code)
	h.log.Info("connection turned away",
		zap.String("request_id", requestID),
		zap.Stringer("client", client),
		zap.Duration("duration", time.Since(began)),
		zap.String("code", h.meters.closeLabel(code)),
	)
}

// awaitClose reads until the peer has answered a close frame, or reading fails.
func awaitClose(ws *websocket.Conn) {
	for {
		_, message, err := ws.Reader(context.Background())
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, message)
	}
}

// handshakeFault is an upgrade that is none, and how it is answered.
type handshakeFault struct {
	status  int
	title   string
	details string
	header  http.Header
}

func (f *handshakeFault) answer(w http.ResponseWriter) {
	for name, values := range f.header {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	body := append([]byte(nil), `{"detail":{"title":`...)
	body = appendQuoted(body, f.title)
	body = append(body, `,"details":{"non-field-error":`...)
	body = appendQuoted(body, f.details)
	_, _ = w.Write(append(body, `}}}`...))
}

// checkHandshake judges the request as RFC 6455, section 4.2.1, has it and as the
// library would, but before anything has been spent on it.
func checkHandshake(w http.ResponseWriter, r *http.Request) *handshakeFault {
	upgradeRequired := func(details string) *handshakeFault {
		return &handshakeFault{http.StatusUpgradeRequired, "Upgrade required.", details,
			http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}}
	}
	malformed := func(details string) *handshakeFault {
		return &handshakeFault{http.StatusBadRequest, "Bad request.", details,
			http.Header{"Sec-Websocket-Version": {"13"}}}
	}
	keys := r.Header.Values("Sec-WebSocket-Key")
	switch {
	case !r.ProtoAtLeast(1, 1):
		return upgradeRequired("A WebSocket needs HTTP/1.1.")
	case !hasToken(r.Header, "Connection", "upgrade"), !hasToken(r.Header, "Upgrade", "websocket"):
		return upgradeRequired("This is a WebSocket endpoint.")
	case r.Method != http.MethodGet:
		return &handshakeFault{http.StatusMethodNotAllowed, "Method not allowed.", "A WebSocket is opened with GET.",
			http.Header{"Allow": {http.MethodGet}}}
	case !isVersion13(r.Header):
		return malformed("Sec-WebSocket-Version must be 13.")
	case len(keys) != 1:
		return malformed("There must be one Sec-WebSocket-Key.")
	}
	if key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(keys[0])); err != nil || len(key) != 16 {
		return malformed("Sec-WebSocket-Key must be 16 bytes in base64.")
	}
	if !hijackable(w) {
		return &handshakeFault{http.StatusNotImplemented, "Not implemented.", "A WebSocket can't be opened over this connection.", nil}
	}
	return nil
}

// isVersion13 asks for what the library asks for: the first header says 13.
func isVersion13(header http.Header) bool { return header.Get("Sec-WebSocket-Version") == "13" }

// hasToken reports whether a header that lists tokens has this one, in any case.
func hasToken(header http.Header, name, token string) bool {
	for _, line := range header.Values(name) {
		for candidate := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(candidate), token) {
				return true
			}
		}
	}
	return false
}

// origin is a web origin (RFC 6454, section 4) with its port filled in.
type origin struct{ scheme, host, port string }

func parseOrigin(text string) (origin, bool) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" || u.Hostname() == "" || u.User != nil ||
		(u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
		return origin{}, false
	}
	o := origin{strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()}
	if o.port == "" {
		o.port = defaultPort(o.scheme)
	}
	return o, true
}

func defaultPort(scheme string) string {
	switch scheme {
	case "http":
		return "80"
	case "https":
		return "443"
	}
	return ""
}

// parseOrigins returns the allowed origins; what can't be parsed allows nobody.
func parseOrigins(texts []string) map[origin]struct{} {
	allowed := make(map[origin]struct{}, len(texts))
	for _, text := range texts {
		if o, ok := parseOrigin(strings.TrimSpace(text)); ok {
			allowed[o] = struct{}{}
		}
	}
	return allowed
}

// foreignOrigin reports whether the upgrade comes from a page that may not connect:
// its origin is neither that of the Host header nor an allowed one. A browser names
// "null" for a page without an origin, which is foreign; other clients name none.
func (h *Hub) foreignOrigin(r *http.Request) bool {
	values := r.Header.Values("Origin")
	if len(values) == 0 {
		return false
	}
	o, ok := parseOrigin(values[0])
	if !ok || len(values) > 1 {
		return true
	}
	if _, allowed := h.origins[o]; allowed {
		return false
	}
	// The service does not know whether a proxy before it speaks TLS, so a Host
	// without a port has the port that the origin's scheme would imply.
	host := url.URL{Host: r.Host}
	port := host.Port()
	if port == "" {
		port = defaultPort(o.scheme)
	}
	return !strings.EqualFold(host.Hostname(), o.host) || port != o.port
}

// clientAddress reads http.Request.RemoteAddr; the zero address where it is none.
func clientAddress(remote string) netip.Addr {
	if pair, err := netip.ParseAddrPort(remote); err == nil {
		return pair.Addr().Unmap()
	}
	address, _ := netip.ParseAddr(remote)
	return address.Unmap()
}
