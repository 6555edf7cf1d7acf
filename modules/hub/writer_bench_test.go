package hub

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// benchFrame is the length of a delivery, that of a message of ordinary length.
const benchFrame = 330

// loopback returns both ends of a TCP connection; what is left of it ends with the test.
func loopback(tb testing.TB) (server, client net.Conn) {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	if client, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		tb.Fatal(err)
	}
	if server, err = listener.Accept(); err != nil {
		_ = client.Close()
		tb.Fatal(err)
	}
	return server, client
}

// drained returns a wire whose peer reads all and looks at nothing; read, where it is not
// nil, learns how many bytes came.
func drained(tb testing.TB, read func(n int)) *wire {
	tb.Helper()
	server, client := loopback(tb)
	var draining sync.WaitGroup
	draining.Go(func() {
		buffer := make([]byte, 64<<10)
		for {
			n, err := client.Read(buffer)
			if err != nil {
				return
			}
			if read != nil {
				read(n)
			}
		}
	})
	tb.Cleanup(func() {
		_ = server.Close()
		draining.Wait()
		_ = client.Close()
	})
	return newWire(server, patience)
}

// writeEach writes each frame by itself.
func writeEach(w *wire, items []outgoing) error {
	for i := range items {
		if err := writeShared(w, items[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// writeShared writes all frames as the session's writer does, which fit in a batch.
func writeShared(w *wire, items []outgoing) error {
	b, _ := batches.Get().(*batch)
	for _, item := range items {
		if !b.add(item) {
			return io.ErrShortBuffer
		}
	}
	for b.whole() < len(b.items) {
		if err := b.write(w, true); err != nil {
			return err
		}
	}
	b.release(w)
	b.free()
	return nil
}

// BenchmarkSharedWrite is writing frames that wait for one socket: a write(2) for
// each, or one for all.
func BenchmarkSharedWrite(b *testing.B) {
	for _, waiting := range []int{1, 4, 16} {
		items := make([]outgoing, waiting)
		for i := range items {
			items[i] = outgoing{errors: bytes.Repeat([]byte{'x'}, benchFrame)}
		}
		for _, way := range []struct {
			name  string
			write func(*wire, []outgoing) error
		}{{"way=before", writeEach}, {"way=after", writeShared}} {
			b.Run(fmt.Sprintf("waiting=%d/%s", waiting, way.name), func(b *testing.B) {
				w := drained(b, nil)
				b.SetBytes(int64(waiting * benchFrame))
				b.ReportAllocs()
				for b.Loop() {
					if err := way.write(w, items); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*waiting), "ns/frame")
				if got, want := w.bytesOut.Load(), int64(b.N*waiting*(4+benchFrame)); got != want {
					b.Errorf("%d bytes are out, want %d", got, want)
				}
			})
		}
	}
}

// offerAside is offer with a goroutine for each write.
func offerAside(s *session, p *parcel) offered {
	s.mu.Lock()
	defer s.mu.Unlock()
	result := s.offerLocked(p)
	s.startWriter()
	return result
}

// deliverer is a goroutine's part of BenchmarkInlineWrite: its sockets, and a token
// for each message that their clients have not read.
type deliverer struct {
	sessions []*session
	unread   chan struct{}
}

func newDeliverer(b *testing.B, hub *Hub, sockets, unread int) deliverer {
	d := deliverer{unread: make(chan struct{}, unread)}
	for range sockets {
		rest := 0 // of a message that has come in part
		d.sessions = append(d.sessions, &session{hub: hub, wire: drained(b, func(n int) {
			for rest += n; rest >= 4+benchFrame; rest -= 4 + benchFrame {
				<-d.unread
			}
		})})
	}
	return d
}

// BenchmarkInlineWrite is a delivery's way to a client: written by a goroutine that is
// started for it, or by who delivers it. All processors deliver, so that a way gains
// nothing by taking another one; and the clients keep up, since a socket that holds many
// small messages costs the system more than one that is read. One socket with many unread
// is a flood for one user: a goroutine that comes late shares a write among them.
func BenchmarkInlineWrite(b *testing.B) {
	body := bytes.Repeat([]byte{'x'}, benchFrame)
	for _, load := range []struct{ sockets, unread int }{{1, 1}, {1, 16}, {64, 16}} {
		for _, way := range []struct {
			name  string
			offer func(*session, *parcel) offered
		}{{"way=before", offerAside}, {"way=after", (*session).offer}} {
			b.Run(fmt.Sprintf("sockets=%d/unread=%d/%s", load.sockets, load.unread, way.name), func(b *testing.B) {
				hub := &Hub{config: Config{SendQueue: 64}, meters: newMeters(discard{})}
				deliverers := make(chan deliverer, runtime.GOMAXPROCS(0))
				var all []*session
				for range cap(deliverers) {
					d := newDeliverer(b, hub, load.sockets, load.unread)
					all = append(all, d.sessions...)
					deliverers <- d
				}
				var acks atomic.Int64
				b.SetBytes(benchFrame)
				b.ReportAllocs()
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					d := <-deliverers
					for next := 0; pb.Next(); next++ {
						d.unread <- struct{}{}
						p := &parcel{delivery: app.Delivery{Body: body, Acks: ackCount{&acks}}, unsettled: new(atomic.Int64)}
						if way.offer(d.sessions[next%len(d.sessions)], p) != offerTaken {
							b.Error("not taken")
							return
						}
					}
					for range cap(d.unread) {
						d.unread <- struct{}{}
					}
				})
				b.StopTimer()
				for _, s := range all { // a client may have read before the writer's end
					if !s.await(time.Now().Add(patience), func() bool { return !s.writing }) {
						b.Error("a writer has not ended")
					}
				}
				if acks.Load() != int64(b.N) {
					b.Errorf("%d of %d deliveries are acked", acks.Load(), b.N)
				}
			})
		}
	}
}

// ackCount counts acks.
type ackCount struct{ count *atomic.Int64 }

func (a ackCount) Ack(uint64)    { a.count.Add(1) }
func (a ackCount) Reject(uint64) {}
