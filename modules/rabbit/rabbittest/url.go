package rabbittest

import (
	"os"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// localURL is that of a server as it is after installation.
const localURL = "amqp://guest:guest@localhost:5672/"

// shared is the server that the tests of one binary have in common.
var shared struct {
	mu   sync.Mutex
	node *Node
	url  string
}

// URL returns the URL of a broker that tests share: that of the environment variable
// RABBITMQ_URL, else that of a server at the usual place, else that of one that is
// started now and stopped by Suite. Tests use exchange names and user ids of their own.
func URL(tb testing.TB) string {
	tb.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.url != "" {
		return shared.url
	}
	if url := os.Getenv("RABBITMQ_URL"); url != "" {
		shared.url = url
		return url
	}
	if conn, err := amqp.DialConfig(localURL, amqp.Config{Dial: amqp.DefaultDial(time.Second)}); err == nil {
		_ = conn.Close()
		shared.url = localURL
		return localURL
	}
	node, err := newNode(nil)
	if err != nil {
		tb.Fatalf("These tests need a RabbitMQ server: run scripts/test, or name one in RABBITMQ_URL (%v).", err)
	}
	shared.node, shared.url = node, node.URL()
	return shared.url
}

// Suite runs the tests of a binary whose tests call URL, from its TestMain:
// os.Exit(rabbittest.Suite{M: m}.Run()), or goleak.VerifyTestMain(rabbittest.Suite{M: m}).
type Suite struct{ M *testing.M }

// Run runs the tests and stops the server that they share.
func (s Suite) Run() int {
	defer func() {
		shared.mu.Lock()
		defer shared.mu.Unlock()
		if shared.node != nil {
			shared.node.remove()
			shared.node, shared.url = nil, ""
		}
	}()
	return s.M.Run()
}
