package rabbittest_test

import (
	"slices"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(rabbittest.Suite{M: m}) }

func TestNodeStopsStartsAndDies(t *testing.T) {
	node := rabbittest.Start(t)
	declare := func() {
		conn, err := amqp.Dial(node.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		channel, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := channel.QueueDeclare("durable", true, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	declare()
	if queues := node.Queues(t); !slices.Equal(queues, []string{"durable"}) {
		t.Fatalf("the queues are %q", queues)
	}
	node.Restart(t)
	if queues := node.Queues(t); !slices.Equal(queues, []string{"durable"}) {
		t.Fatalf("after a restart the queues are %q", queues)
	}
	node.Kill(t)
	if conn, err := amqp.Dial(node.URL()); err == nil {
		_ = conn.Close()
		t.Fatal("a killed server takes connections")
	}
	node.Restart(t)
	declare()
}

func TestClusterSharesItsQueues(t *testing.T) {
	first, second := rabbittest.StartCluster(t)
	conn, err := amqp.Dial(first.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := channel.QueueDeclare("durable", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if queues := second.Queues(t); !slices.Equal(queues, []string{"durable"}) {
		t.Fatalf("the second server knows the queues %q", queues)
	}
}
