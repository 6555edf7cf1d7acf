package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
)

// stomp is the dialect of RabbitMQ's Web STOMP plugin: STOMP 1.2 over WebSocket. Each
// user subscribes to the websockets exchange under its id, as the gateway does for it,
// and sends to the database exchange with a receipt, which the plugin answers when the
// broker has confirmed.
type stomp struct {
	dialer *dialer
	places []place
	config CrewConfig
}

const (
	stompProtocol  = "v12.stomp"
	stompGreeting  = "greeting" // receipt of the subscription
	stompReceiptID = "receipt-id:"
	// The server is asked for a heart-beat each 25 s, which is what the gateway's pings
	// are; each is answered, which is more often than the 50 s that are promised.
	stompHeartbeat = "50000,25000"
)

func (s *stomp) open(ctx context.Context, c *client) (net.Conn, []byte, error) {
	return s.dialer.upgrade(ctx, s.places[c.index%len(s.places)], "", "", stompProtocol)
}

// stompEscape escapes a header's value, STOMP 1.2, "Value Encoding".
var stompEscape = strings.NewReplacer("\\", `\\`, "\r", `\r`, "\n", `\n`, ":", `\c`)

func (s *stomp) greeting(c *client) [][]byte {
	// The CONNECT frame is the one whose values are not escaped.
	login := s.config.AMQP.login()
	return [][]byte{
		[]byte("CONNECT\naccept-version:1.2\nhost:" + login.vhost + "\nlogin:" + login.user + "\npasscode:" + login.password +
			"\nheart-beat:" + stompHeartbeat + "\n\n\x00"),
		[]byte("SUBSCRIBE\nid:0\nack:auto\nreceipt:" + stompGreeting + "\ndestination:/exchange/" +
			stompEscape.Replace(s.config.AMQP.Websockets) + "/" + strconv.FormatInt(s.config.user(c.user), 10) + "\n\n\x00"),
	}
}

func (s *stomp) appendText(dst, scratch []byte, c *client, id stamp) (text, reuse []byte) {
	user := s.config.user(c.user)
	scratch = c.crew.envelope.appendStored(scratch[:0], id, user, user)
	dst = append(dst, "SEND\ndestination:/exchange/"...)
	dst = append(dst, stompEscape.Replace(s.config.AMQP.Database)...)
	dst = append(dst, "\ncontent-type:application/json\npersistent:true\nreceipt:"...)
	dst = strconv.AppendUint(dst, uint64(id.number), 10)
	dst = append(dst, "\ncontent-length:"...)
	dst = strconv.AppendInt(dst, int64(len(scratch)), 10)
	dst = append(dst, "\n\n"...)
	dst = append(dst, scratch...)
	return append(dst, 0), scratch
}

// errSTOMP is what an ERROR frame becomes; the server closes after it.
var errSTOMP = errors.New("the server sent a STOMP ERROR")

func (s *stomp) received(c *client, text []byte) error {
	text = bytes.TrimLeft(text, "\r\n")
	command, rest, _ := bytes.Cut(text, []byte("\n"))
	switch string(bytes.TrimRight(command, "\r")) {
	case "": // a heart-beat
		return c.write(appendFrame(nil, opText, []byte("\n")))
	case "CONNECTED":
	case "RECEIPT":
		if bytes.Contains(rest, []byte(stompReceiptID+stompGreeting)) {
			c.greeted()
		}
	case "MESSAGE":
		if id, ok := stampOf(rest, memberID); ok {
			c.arrived(id)
			return nil
		}
		c.crew.foreign.Add(1)
	case "ERROR":
		c.crew.refusals.add("STOMP ERROR")
		return errSTOMP
	default:
		c.crew.foreign.Add(1)
	}
	return nil
}
