package hub

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// webOrigin is what browsers name as a page's origin (RFC 6454, section 6.2).
var webOrigin = regexp.MustCompile(`^https?://([a-z0-9.-]+|\[::[0-9a-f]{1,4}\])(:[0-9]{1,5})?$`)

// hostHeader is what net/http lets through as a Host header, but for percent signs, which
// mean something in a URL only.
var hostHeader = regexp.MustCompile(`^[][A-Za-z0-9!$&'()*+,.:;=_~-]*$`)

// written writes an origin as a URL.
func (o origin) written() string {
	host := o.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if o.port != "" {
		host += ":" + o.port
	}
	return o.scheme + "://" + host
}

// FuzzOrigin: an origin is read as net/url reads it, however it is written, and is
// foreign unless it is that of the Host header or an allowed one.
func FuzzOrigin(f *testing.F) {
	for _, text := range []string{
		"http://localhost", "HTTPS://Chat.Example:8443/", "https://chat.example:443", "http://[::1]:80", "http://[fe80::1%25lo]",
		"null", "", "file://", "http://", "http://a@b", "http://a/b", "http://a?b", "http://a#b", "http://a:", "http://a:b",
		"//a", "a:80", "data:x", "http://\xff", "http://%ff", "http://xn--e1afmkfd.example", "http://\u212a.example", "chrome-extension://abc",
	} {
		for _, host := range []string{"localhost", "chat.example:8443", "[::1]", "a:", ""} {
			f.Add(text, host)
		}
	}
	h := &Hub{origins: parseOrigins(usualConfig().AllowedOrigins)}
	foreign := func(host string, origins ...string) bool {
		return h.foreignOrigin(&http.Request{Host: host, Header: http.Header{"Origin": origins}})
	}
	f.Fuzz(func(t *testing.T, text, host string) {
		o, ok := parseOrigin(text)
		if !ok {
			if webOrigin.MatchString(text) {
				t.Errorf("%q is an origin", text)
			}
			if !foreign(host, text) {
				t.Errorf("%q is none, and is not foreign to %q", text, host)
			}
			return
		}
		u, err := url.Parse(text)
		if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" ||
			o.scheme != strings.ToLower(u.Scheme) || o.host != strings.ToLower(u.Hostname()) ||
			u.Port() != "" && o.port != u.Port() || u.Port() == "" && o.port != defaultPort(o.scheme) {
			t.Fatalf("%q is read as %+v, by net/url as %+v, %v", text, o, u, err)
		}
		if !foreign(host, text, text) {
			t.Errorf("two origins %q are not foreign", text)
		}
		if foreign(host) {
			t.Error("a client that names no origin is foreign")
		}
		if _, allowed := h.origins[o]; allowed {
			if foreign(host, text) {
				t.Errorf("%q is allowed, and is foreign to %q", text, host)
			}
			return
		}
		if address, err := netip.ParseAddr(o.host); !hostHeader.MatchString(o.host) || strings.ContainsAny(o.host, "[]:") && (err != nil || address.Zone() != "") {
			return // net/url reads more hosts than it can write, and a Host header can be
		}
		if again, ok := parseOrigin(o.written()); !ok || again != o {
			t.Fatalf("%q is read as %+v, and that as %+v, %t", text, o, again, ok)
		}
		if port := defaultPort(o.scheme); port != "" {
			bare, full := origin{o.scheme, o.host, ""}, origin{o.scheme, o.host, port}
			if got, ok := parseOrigin(bare.written()); !ok || got != full {
				t.Errorf("without its port %+v is read as %+v, %t", full, got, ok)
			}
		}
		own := strings.TrimPrefix(o.written(), o.scheme+"://")
		bare := strings.TrimSuffix(own, ":"+o.port)
		for target, want := range map[string]bool{
			own: false, strings.ToUpper(own): false, bare: o.port != defaultPort(o.scheme), "x" + own: true, bare + ":1" + o.port: true,
		} {
			if foreign(target, text) != want {
				t.Errorf("%q is foreign to Host %q: %t", text, target, !want)
			}
		}
		if !hostHeader.MatchString(host) {
			return
		}
		// A name in brackets is no host, and no browser sends it.
		if same, ok := parseOrigin(o.scheme + "://" + host); ok || !strings.ContainsAny(host, "[]") {
			if got, want := foreign(host, text), !ok || same != o; got != want {
				t.Errorf("%q is foreign to Host %q: %t, want %t", text, host, got, want)
			}
		}
	})
}

// plainWriter is a ResponseWriter that can't be hijacked, as those of HTTP/2.
type plainWriter struct{ *httptest.ResponseRecorder }

// pipeWriter is a ResponseWriter whose connection is one end of a pipe.
type pipeWriter struct {
	*httptest.ResponseRecorder
	conn     net.Conn
	hijacked bool
}

// Hijack implements http.Hijacker.
func (w *pipeWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.hijacked = true
	return w.conn, bufio.NewReadWriter(bufio.NewReader(w.conn), bufio.NewWriter(w.conn)), nil
}

// upgraded answers a request over a pipe. It returns the answer, whether the connection
// was taken over, and what the client read from it until it was told to close, or the
// connection ended; the client hangs up then.
func upgraded(answer func(http.ResponseWriter)) (*pipeWriter, []byte) {
	client, server := net.Pipe()
	w := &pipeWriter{ResponseRecorder: httptest.NewRecorder(), conn: server}
	var reading sync.WaitGroup
	var head [4]byte
	n := 0
	reading.Go(func() {
		n, _ = io.ReadFull(client, head[:])
		_ = client.Close()
	})
	answer(w)
	_ = server.Close()
	reading.Wait()
	return w, head[:n]
}

// FuzzHandshake: a request that passes is one that the library upgrades, one that does
// not is refused as the library would, with the contract's body; and no query is a good
// pass unless it is one that was issued.
func FuzzHandshake(f *testing.F) {
	const key = "dGhlIHNhbXBsZSBub25jZQ=="
	add := func(method, connection, upgrade, keys, version, query string) {
		f.Add(method, byte(1), connection, upgrade, keys, version, query)
	}
	add("GET", "Upgrade", "websocket", key, "13", "connection_pass=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	add("GET", "keep-alive, upgrade", "h2c\nWebSocket", " "+key+"\t", "13\n8", "")
	add("POST", "upgrade", "websocket", key, "13", "%")
	add("GET", "upgrade", "websocket", key+"\n"+key, "13", "connection_pass=a;b")
	add("GET", "upgrade", "websocket", "", "13", "connection_pass=%ff&connection_pass=x")
	add("GET", "upgrade", "websocket", "c2hvcnQ=", "13", "")
	add("GET", "upgrade", "websocket", key, "013", "")
	add("GET", "upgrade", "websocket,", key, " 13", "connection_pass")
	add("GET", "close", "websocket", key, "13", "")
	add("GET", ",\u212aeep,upgrade ,", "web\u017focket", key, "13", "")
	f.Add("GET", byte(0), "upgrade", "websocket", key, "13", "")
	h := newHouse(f, false, nil)
	f.Fuzz(func(t *testing.T, method string, minor byte, connection, upgrade, keys, version, query string) {
		request := func() *http.Request {
			return (&http.Request{
				Method: method, ProtoMajor: 1, ProtoMinor: int(minor), URL: &url.URL{Path: "/messages/", RawQuery: query},
				Header: http.Header{
					"Connection": strings.Split(connection, "\n"), "Upgrade": strings.Split(upgrade, "\n"),
					"Sec-Websocket-Key": strings.Split(keys, "\n"), "Sec-Websocket-Version": strings.Split(version, "\n"),
				},
				Host: "gateway.example", RemoteAddr: "192.0.2.1:1", Body: http.NoBody,
			}).WithContext(t.Context())
		}
		var fault *handshakeFault
		library, _ := upgraded(func(w http.ResponseWriter) {
			fault = checkHandshake(w, request())
			ws, _, err := h.hub.accept(w, request())
			if (err == nil) != (fault == nil) {
				t.Errorf("the fault is %+v, the library says %v", fault, err)
			}
			if err == nil {
				_ = ws.CloseNow()
			}
		})
		over2 := plainWriter{httptest.NewRecorder()}
		h.hub.ServeHTTP(over2, request())
		answer, frame := upgraded(func(w http.ResponseWriter) { h.hub.ServeHTTP(w, request()) })
		if fault == nil {
			if !answer.hijacked || answer.Code != http.StatusSwitchingProtocols || len(frame) != 4 || frame[0] != finalBit|opcodeClose ||
				app.CloseCode(binary.BigEndian.Uint16(frame[2:])) != app.CloseUnauthorized {
				t.Errorf("a pass that nobody was given: HTTP %d, then %x", answer.Code, frame)
			}
			fault = &handshakeFault{status: http.StatusNotImplemented}
		} else {
			if answer.hijacked || answer.Code != library.Code || !bytes.Equal(answer.Body.Bytes(), over2.Body.Bytes()) {
				t.Errorf("HTTP %d with %q, without hijacking %q; the library's is %d", answer.Code, answer.Body, over2.Body, library.Code)
			}
			for _, name := range []string{"Connection", "Upgrade", "Sec-Websocket-Version"} {
				if want := library.Header().Get(name); want != "" && answer.Header().Get(name) != want {
					t.Errorf("%s is %q, the library's %q", name, answer.Header().Get(name), want)
				}
			}
		}
		checkFaultAnswer(t, over2.ResponseRecorder, fault.status)
	})
}

// checkFaultAnswer demands the error body of the wire contract, section 1.
func checkFaultAnswer(t *testing.T, answer *httptest.ResponseRecorder, status int) {
	t.Helper()
	if answer.Code != status || (status < 400 || status > 499) && status != http.StatusNotImplemented ||
		answer.Header().Get("Content-Type") != "application/json" {
		t.Errorf("HTTP %d %v, want %d", answer.Code, answer.Header(), status)
	}
	var body struct {
		Detail struct {
			Title   string
			Details map[string]string
		}
	}
	decoder := json.NewDecoder(answer.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&body); err != nil || decoder.More() || body.Detail.Title == "" ||
		len(body.Detail.Details) != 1 || body.Detail.Details["non-field-error"] == "" {
		t.Errorf("the body is %+v, %v", body, err)
	}
}
