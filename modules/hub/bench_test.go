package hub

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// discard is a registry that keeps nothing.
type discard struct{}

func (discard) Register(prometheus.Collector) error  { return nil }
func (discard) MustRegister(...prometheus.Collector) {}
func (discard) Unregister(prometheus.Collector) bool { return true }

// BenchmarkDeliver is a delivery's way to one connection's socket and the ack.
func BenchmarkDeliver(b *testing.B) {
	h := newHouse(b, false, nil)
	c := h.open(1)
	go func() { // reads all and looks at nothing
		buffer := make([]byte, 64<<10)
		_ = c.conn.SetReadDeadline(time.Time{})
		for {
			if _, err := c.conn.Read(buffer); err != nil {
				return
			}
		}
	}()
	h.inboxes.mu.Lock()
	in := h.inboxes.open[userID(b, 1)]
	h.inboxes.mu.Unlock()
	body := []byte(goodFrame)
	acks := make(ackChannel, 16) // as many unsettled as the prefetch allows
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		acks <- struct{}{}
		in.receive(app.Delivery{Body: body, Acks: acks})
	}
	for range cap(acks) {
		acks <- struct{}{}
	}
	b.StopTimer()
	_ = c.conn.Close()
}

type ackChannel chan struct{}

func (a ackChannel) Ack(uint64)    { <-a }
func (a ackChannel) Reject(uint64) { <-a }

// BenchmarkOffer is the hub's own part of a delivery, without a socket.
func BenchmarkOffer(b *testing.B) {
	s := &session{hub: &Hub{config: Config{SendQueue: 1}, meters: newMeters(discard{})}, corked: true}
	acks := make(ackChannel, 1)
	b.ReportAllocs()
	for b.Loop() {
		acks <- struct{}{}
		p := &parcel{delivery: app.Delivery{Acks: acks}, unsettled: new(atomic.Int64)}
		if s.offer(p) != offerTaken {
			b.Fatal("not taken")
		}
		s.dropAll(dropConnectionClosed)
	}
}
