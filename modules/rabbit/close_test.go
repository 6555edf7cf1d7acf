package rabbit

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

// What the broker has handed over is received before Close returns, however far behind
// the one who hands out is: see app.Inbox.
func TestCloseReceivesWhatWasHandedOver(t *testing.T) {
	for _, scope := range []Scope{ScopeUser, ScopeInstance} {
		t.Run(string(scope), func(t *testing.T) {
			config := testConfig(rabbittest.URL(t), scope)
			config.Prefetch, config.InstancePrefetch = 1024, 1024
			backend := dialPeer(t, config.URLs[0])
			x := startInboxes(t, config)
			eventually(t, "connected", func() bool { return x.Available() == nil })
			var got atomic.Int64
			begun, goOn := make(chan struct{}), make(chan struct{})
			b := openInbox(t, x, 1, func(d app.Delivery) {
				if got.Add(1) == 1 {
					close(begun)
					<-goOn
				}
				d.Ack()
			})
			const count = 500
			for range count {
				if !backend.publish(t, config.WebsocketsExchange, "1", "", []byte("1")) {
					t.Fatal("not routed")
				}
			}
			<-begun
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			closed := make(chan error, 1)
			go func() { closed <- b.Close(ctx) }()
			eventually(t, "closing", func() bool {
				x.mu.Lock()
				defer x.mu.Unlock()
				return len(x.open) == 0
			})
			close(goOn)
			if err := <-closed; err != nil {
				t.Fatal(err)
			}
			if n := got.Load(); n != count {
				t.Errorf("%d of %d deliveries were received", n, count)
			}
		})
	}
}
