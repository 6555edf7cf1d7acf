package hub

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
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
	report := func(b *testing.B, connect func(b *testing.B, n int)) {
		connect(b, 1)
		memoryBefore, goroutinesBefore := memoryInUse(), runtime.NumGoroutine()
		n := 1
		for b.Loop() {
			n++
			connect(b, n)
		}
		// Few operations say nothing about one connection among many.
		for ; n < crowd; n++ {
			connect(b, n+1)
		}
		b.ReportMetric((memoryInUse()-memoryBefore)/float64(n-1), "B/conn")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutinesBefore)/float64(n-1), "goroutines/conn")
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
