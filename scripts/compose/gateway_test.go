package compose

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/rabbitmq/amqp091-go"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass"
)

// gateway is a running service, with the key of .env.example.
type gateway struct {
	*process
	address string // host:port
	admin   string // host:port, or empty
}

// serve starts the service on an address with more variables, and waits until it is
// ready.
func serve(t *testing.T, address string, more map[string]string) *gateway {
	t.Helper()
	env := map[string]string{"HTTP_ADDR": address, "KEY": exampleEnvironment(t)["KEY"]}
	for name, value := range more {
		env[name] = value
	}
	g := &gateway{process: launch(t, t.TempDir(), env, binary), address: address, admin: env["ADMIN_ADDR"]}
	health := address
	if g.admin != "" {
		health = g.admin
	}
	eventually(t, "the service is ready", func() bool { return status("http://"+health+"/readyz") == http.StatusOK })
	return g
}

// status returns the status of a GET, 0 where there is no answer.
func status(url string) int {
	response, err := http.Get(url)
	if err != nil {
		return 0
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

// token returns a token for the user, as the authentication service would sign it.
func token(t testing.TB, user int64) string {
	t.Helper()
	id, err := domain.NewUserID(user)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := authpass.SignToken(authpass.TokenConfig{Algorithm: "HS256", Key: exampleEnvironment(t)["KEY"]}, id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// site is where clients go: the service itself or a proxy before it.
type site struct {
	base   string // http://host:port or https://…, without a path
	client *http.Client
	header http.Header // sent with every request
}

func siteOf(g *gateway) site { return site{base: "http://" + g.address, client: http.DefaultClient} }

// pass asks for a pass and returns it, or "" and the status.
func (s site) pass(t testing.TB, token string) (string, int) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.base+"/transportation/messages/get-connection-pass", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range s.header {
		request.Header[name] = values
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return "", 0
	}
	defer func() { _ = response.Body.Close() }()
	var answer struct {
		Pass string `json:"connection_pass"`
	}
	_ = json.NewDecoder(response.Body).Decode(&answer)
	return answer.Pass, response.StatusCode
}

// dial upgrades with the pass; status is that of the answer.
func (s site) dial(t testing.TB, pass string) (conn *websocket.Conn, status int, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	conn, response, err := websocket.Dial(ctx, strings.Replace(s.base, "http", "ws", 1)+"/transportation/messages/?connection_pass="+pass,
		&websocket.DialOptions{HTTPClient: s.client, HTTPHeader: s.header})
	if response != nil {
		status = response.StatusCode
	}
	return conn, status, err
}

// connect opens a connection of a user, and ends it with the test.
func (s site) connect(t testing.TB, user int64) *websocket.Conn {
	t.Helper()
	pass, code := s.pass(t, token(t, user))
	if pass == "" {
		t.Fatalf("no pass: status %d", code)
	}
	conn, code, err := s.dial(t, pass)
	if err != nil {
		t.Fatalf("no connection: status %d: %v", code, err)
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

// send sends a message to a recipient.
func send(t testing.TB, conn *websocket.Conn, id string, recipient int64) {
	t.Helper()
	if err := trySend(t, conn, id, recipient); err != nil {
		t.Fatal(err)
	}
}

func trySend(t testing.TB, conn *websocket.Conn, id string, recipient int64) error {
	frame := fmt.Sprintf(`{"client_message_id":%q,"chat_id":"test","recipient_id":%d,"body":"hello"}`, id, recipient)
	return conn.Write(t.Context(), websocket.MessageText, []byte(frame))
}

// receive returns the next frame.
func receive(t testing.TB, conn *websocket.Conn) string {
	t.Helper()
	frame, err := tryReceive(t, conn)
	if err != nil {
		t.Fatalf("no frame came: %v", err)
	}
	return frame
}

func tryReceive(t testing.TB, conn *websocket.Conn) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	_, data, err := conn.Read(ctx)
	return string(data), err
}

// channel opens an AMQP channel; it ends with the test.
func channel(t testing.TB, url string) *amqp091.Channel {
	t.Helper()
	conn, err := amqp091.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	opened, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

// publish publishes for a user, as a backend does.
func publish(t testing.TB, backend *amqp091.Channel, user int64, body string) {
	t.Helper()
	err := backend.PublishWithContext(t.Context(), "websockets", fmt.Sprint(user), false, false,
		amqp091.Publishing{ContentType: "application/json", Body: []byte(body)})
	if err != nil {
		t.Fatal(err)
	}
}
