package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// The benchmarks of this file show a step of the way of a message, or what a connection
// keeps, as the hub does it, after the plain way to do it, for benchstat.

// body330 has the length of the messages of scripts/bench.
var body330 = []byte(`{"body":"` + strings.Repeat("x", 330-len(`{"body":""}`)) + `"}`)

// BenchmarkDecode reads a client's frame: with encoding/json, which takes what the contract
// refuses, and as decodeFrame does.
func BenchmarkDecode(b *testing.B) {
	data := []byte(goodFrame)
	b.Run("tree", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var members map[string]any
			if err := json.Unmarshal(data, &members); err != nil || members["body"] != "hello" {
				b.Fatal(err)
			}
		}
	})
	b.Run("members", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if f, err := decodeFrame(data); err != nil || len(f.faults) > 0 {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkErrorFrame writes an error frame.
func BenchmarkErrorFrame(b *testing.B) {
	b.Run("marshal", func(b *testing.B) {
		type frame struct {
			Title     string `json:"title"`
			Details   string `json:"details"`
			InReplyTo string `json:"in_reply_to"`
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := json.Marshal(frame{titleIntegrity, detailsIntegrity, "m-1"}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if len(errorFrame(titleIntegrity, detailsIntegrity, reply{"m-1", true})) == 0 {
				b.Fatal("empty")
			}
		}
	})
}

// drainedPair returns a loopback connection whose other end is read and forgotten.
func drainedPair(b *testing.B) net.Conn {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		b.Fatal(err)
	}
	var draining sync.WaitGroup
	draining.Go(func() { _, _ = io.Copy(io.Discard, client) })
	b.Cleanup(func() {
		_ = server.Close()
		draining.Wait()
		_ = client.Close()
	})
	return server
}

// BenchmarkSharedWrite writes frames that wait for one socket: each by itself, and all that
// wait in one write. An operation is all of the frames.
func BenchmarkSharedWrite(b *testing.B) {
	item := outgoing{errors: body330}
	for _, frames := range []int{4, 16} {
		for _, together := range []int{1, frames} {
			name := "each"
			if together > 1 {
				name = "shared"
			}
			b.Run(fmt.Sprintf("frames=%d/%s", frames, name), func(b *testing.B) {
				w := newWire(drainedPair(b), 10*time.Second)
				b.ReportAllocs()
				for b.Loop() {
					for left := frames; left > 0; left -= together {
						batch, _ := batches.Get().(*batch)
						for range together {
							batch.add(item)
						}
						for batch.whole() < together {
							if err := batch.write(w, true); err != nil {
								b.Fatal(err)
							}
						}
						batch.release(w)
						batch.free()
					}
				}
			})
		}
	}
}

// BenchmarkWriter has a delivery written by a goroutine of its own, and by the one that
// brings it: to many connections in turn, as a hub has them, and to one, whose goroutine
// finds several that wait.
func BenchmarkWriter(b *testing.B) {
	way := map[string]func(s *session, p *parcel){
		"goroutine": func(s *session, p *parcel) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.offerLocked(p)
			s.startWriter()
		},
		"inline": func(s *session, p *parcel) { s.offer(p) },
	}
	for _, connections := range []int{1, 256} {
		for _, name := range []string{"goroutine", "inline"} {
			b.Run(fmt.Sprintf("connections=%d/%s", connections, name), func(b *testing.B) {
				h := &Hub{config: Config{SendQueue: 64}, meters: newMeters(discard{})}
				sessions := make([]*session, connections)
				for i := range sessions {
					sessions[i] = &session{hub: h, wire: newWire(drainedPair(b), 10*time.Second)}
				}
				acks := make(ackChannel, 16) // as many unsettled as the prefetch allows
				next := 0
				b.ReportAllocs()
				for b.Loop() {
					acks <- struct{}{}
					p := &parcel{delivery: app.Delivery{Body: body330, Acks: acks}, unsettled: new(atomic.Int64)}
					way[name](sessions[next%connections], p)
					next++
				}
				for range cap(acks) {
					acks <- struct{}{}
				}
				for _, s := range sessions {
					s.await(time.Time{}, func() bool { return !s.writing })
				}
			})
		}
	}
}

// BenchmarkRead reads messages of 330 bytes: with the library's Read, and into pooled
// buffers.
func BenchmarkRead(b *testing.B) {
	way := map[string]func(ws *websocket.Conn, s *session) error{
		"library": func(ws *websocket.Conn, _ *session) error {
			_, _, err := ws.Read(context.Background())
			return err
		},
		"pooled": func(ws *websocket.Conn, s *session) error {
			_, message, err := ws.Reader(context.Background())
			if err != nil {
				return err
			}
			pooled := readBuffers.Get().(*[]byte)
			*pooled, err = readUpTo(message, (*pooled)[:0], s.hub.config.MaxMessageBytes)
			readBuffers.Put(pooled)
			return err
		},
	}
	for _, name := range []string{"library", "pooled"} {
		b.Run(name, func(b *testing.B) {
			h := &Hub{config: usualConfig(), meters: newMeters(discard{})}
			accepted := make(chan *websocket.Conn, 1)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ws, _, err := h.accept(w, r)
				if err != nil {
					b.Error(err)
				}
				accepted <- ws
			}))
			defer server.Close()
			client, _, err := websocket.Dial(context.Background(), server.URL, nil)
			if err != nil {
				b.Fatal(err)
			}
			ws := <-accepted
			var writing sync.WaitGroup
			writing.Go(func() {
				for client.Write(context.Background(), websocket.MessageText, body330) == nil {
				}
			})
			s := &session{hub: h}
			b.ReportAllocs()
			for b.Loop() {
				if err := way[name](ws, s); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			_ = ws.CloseNow()
			_ = client.CloseNow()
			writing.Wait()
		})
	}
}

// BenchmarkConnectionAtRest tells what a connection at rest keeps: where its handler reads
// from it, a goroutine pings it and net/http's buffers stay, and in the hub. An operation
// is one connection, upgrade included.
func BenchmarkConnectionAtRest(b *testing.B) {
	const crowd = 500
	atRest := func() (bytes, goroutines int) {
		runtime.GC()
		runtime.GC() // what has finalizers takes two
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		return int(memory.HeapAlloc + memory.StackInuse), runtime.NumGoroutine()
	}
	report := func(b *testing.B, connect func(b *testing.B, n int)) {
		connect(b, 1)
		bytesBefore, goroutinesBefore := atRest()
		n := 1
		for b.Loop() {
			n++
			connect(b, n)
		}
		// Few operations say nothing about one connection among many.
		for ; n < crowd; n++ {
			connect(b, n+1)
		}
		bytes, goroutines := atRest()
		b.ReportMetric(float64(bytes-bytesBefore)/float64(n-1), "B/conn")
		b.ReportMetric(float64(goroutines-goroutinesBefore)/float64(n-1), "goroutines/conn")
	}
	b.Run("plain", func(b *testing.B) {
		ended := make(chan struct{})
		var handlers, pinging sync.WaitGroup
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handlers.Add(1)
			defer handlers.Done()
			ws, err := websocket.Accept(w, r, nil)
			if err != nil {
				b.Error(err)
				return
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			pinging.Go(func() {
				tick := time.NewTicker(25 * time.Second)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
						_ = ws.Ping(ctx)
					case <-ctx.Done():
						return
					case <-ended:
						_ = ws.CloseNow()
						return
					}
				}
			})
			for {
				if _, _, err := ws.Read(ctx); err != nil {
					return
				}
			}
		}))
		var conns []net.Conn
		report(b, func(b *testing.B, _ int) {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			conns = append(conns, conn)
			if _, err := io.WriteString(conn, upgradeRequest("none")); err != nil {
				b.Fatal(err)
			}
			answer := make([]byte, 512)
			if _, err := conn.Read(answer); err != nil {
				b.Fatal(err)
			}
		})
		close(ended)
		pinging.Wait()
		handlers.Wait()
		for _, conn := range conns {
			_ = conn.Close()
		}
		server.Close()
	})
	b.Run("hub", func(b *testing.B) {
		h := newHouse(b, false, func(h *house) { h.config.DrainWindow = time.Millisecond })
		var conns []net.Conn
		report(b, func(b *testing.B, n int) {
			conn, err := h.dial()
			if err != nil {
				b.Fatal(err)
			}
			conns = append(conns, conn)
			if _, err := io.WriteString(conn, upgradeRequest(h.pass(int64(n), time.Hour))); err != nil {
				b.Fatal(err)
			}
			answer := make([]byte, 512)
			if _, err := conn.Read(answer); err != nil {
				b.Fatal(err)
			}
		})
		for _, conn := range conns {
			_ = conn.Close()
		}
	})
}
