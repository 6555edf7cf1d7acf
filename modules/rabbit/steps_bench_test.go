package rabbit

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// The benchmarks of this file show a step of the way of a message as the service does it,
// after the plain way to do it, for benchstat.

// BenchmarkAcks settles deliveries to 1,000 users who share a queue: with a method for each,
// and gathered.
func BenchmarkAcks(b *testing.B) {
	way := map[string]func(d app.Delivery){
		"each":     func(d app.Delivery) { _ = d.Acks.(*acker).channel.Ack(d.Tag, false) },
		"gathered": func(d app.Delivery) { d.Ack() },
	}
	for _, name := range []string{"each", "gathered"} {
		b.Run(name, func(b *testing.B) { deliverAll(b, ScopeInstance, way[name]) })
	}
}

// BenchmarkConfirms publishes clients' messages: each after the confirm of the one before,
// and without waiting.
func BenchmarkConfirms(b *testing.B) {
	for _, way := range []struct {
		name   string
		window int
	}{{"awaited", 1}, {"pipelined", 1024}} {
		b.Run(way.name, func(b *testing.B) {
			config := testConfig(rabbittest.URL(b), ScopeUser)
			p := startPublisher(b, config)
			eventually(b, "the publisher is connected", func() bool { return p.Available() == nil })
			bindDatabase(b, dialPeer(b, config.URLs[0]).conn, config.DatabaseExchange)
			message := benchMessage(b)
			var settled sync.WaitGroup
			slots := make(chan struct{}, way.window)
			b.ReportAllocs()
			for b.Loop() {
				slots <- struct{}{}
				settled.Add(1)
				p.Publish(context.Background(), message, time.Now().Add(time.Minute), func(err error) {
					if err != nil {
						b.Error(err)
					}
					<-slots
					settled.Done()
				})
			}
			settled.Wait()
		})
	}
}
