package rabbit

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

func benchMessage(b *testing.B) domain.Message {
	b.Helper()
	id, _ := domain.NewClientMessageID("client-message-id")
	chat, _ := domain.NewChatID("chat")
	return domain.NewMessage(userID(1), id, chat, userID(2), "a message of ordinary length, as people write them", time.Now())
}

// BenchmarkReconnect measures how long the inboxes of 2,000 users, or 5,000 bindings,
// take to come back after the connection was lost, the back-off included.
func BenchmarkReconnect(b *testing.B) {
	for scope, users := range map[Scope]int{ScopeUser: 2000, ScopeInstance: 5000} {
		b.Run(fmt.Sprintf("%s/%d", scope, users), func(b *testing.B) {
			config := testConfig(rabbittest.URL(b), scope)
			x := startInboxes(b, config)
			eventually(b, "inboxes are connected", func() bool { return x.Available() == nil })
			began := time.Now()
			openMany(b, x, 1, users)
			opens := float64(users) / time.Since(began).Seconds()
			runtime.GC()
			var memory runtime.MemStats
			runtime.ReadMemStats(&memory)
			bytes := float64(memory.HeapInuse+memory.StackInuse) / float64(users)
			goroutines := float64(runtime.NumGoroutine()) / float64(users)
			for b.Loop() {
				s := x.link.session.Load()
				_ = s.wire.Close()
				<-s.ended
				eventually(b, "all inboxes are back", func() bool {
					next := x.link.session.Load()
					return next != nil && next != s && x.Check(b.Context()) == nil
				})
			}
			b.StopTimer()
			// The loop resets what is reported before it.
			b.ReportMetric(opens, "opens/s")
			b.ReportMetric(bytes, "B/user")
			b.ReportMetric(goroutines, "goroutines/user")
			began = time.Now()
			if err := x.Stop(context.Background()); err != nil {
				b.Error(err)
			}
			b.ReportMetric(time.Since(began).Seconds(), "stop-s")
		})
	}
}

// BenchmarkDeliveries measures messages to 1,000 users, acked at once.
func BenchmarkDeliveries(b *testing.B) {
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		b.Run(string(scope), func(b *testing.B) { deliverAll(b, scope, app.Delivery.Ack) })
	}
}

// deliverAll publishes messages of 330 bytes to 1,000 users in turn and has them settled.
func deliverAll(b *testing.B, scope Scope, settle func(app.Delivery)) {
	b.Helper()
	const users = 1000
	config := testConfig(rabbittest.URL(b), scope)
	config.Prefetch, config.InstancePrefetch = 16, 1024
	x := startInboxes(b, config)
	eventually(b, "inboxes are connected", func() bool { return x.Available() == nil })
	slots := make(chan struct{}, 1024) // a token for each message under way
	var received sync.WaitGroup
	keys := make([]string, users)
	for i := range keys {
		keys[i] = fmt.Sprint(i + 1)
		openInbox(b, x, int64(i+1), func(d app.Delivery) {
			settle(d)
			<-slots
			received.Done()
		})
	}
	channel, err := dialPeer(b, config.URLs[0]).conn.Channel() // without confirms
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 330)
	next := 0
	b.ReportAllocs()
	for b.Loop() {
		slots <- struct{}{}
		received.Add(1)
		if err := channel.Publish(config.WebsocketsExchange, keys[next%users], false, false, amqp.Publishing{Body: body}); err != nil {
			b.Fatal(err)
		}
		next++
	}
	received.Wait()
}
