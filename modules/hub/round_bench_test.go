package hub

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// benchCrowd is how many connections the benchmarks of pings have.
const benchCrowd = 10_000

// pinger visits sessions until it is stopped.
type pinger interface {
	// visitAll visits each session once, and returns when that is done.
	visitAll()
	stop()
}

// restingSessions returns sessions that can be visited. The ping itself, a write(2) in
// each way, is left out: nothing follows a close frame.
func restingSessions() []*session {
	hub := &Hub{config: usualConfig()}
	sessions := make([]*session, benchCrowd)
	for i := range sessions {
		w := &wire{began: time.Now(), closeSent: true}
		w.free.L = &w.mu
		w.owe(pingFrame, true)
		sessions[i] = &session{hub: hub, wire: w}
	}
	return sessions
}

// timers has a time.AfterFunc for each session.
type timers struct {
	set []*time.Timer
	due sync.WaitGroup
}

func startTimers(sessions []*session) pinger {
	p := &timers{}
	for _, s := range sessions {
		p.set = append(p.set, time.AfterFunc(time.Hour, func() {
			s.tick(time.Now())
			p.due.Done()
		}))
	}
	return p
}

// visitAll sets each timer once, which is what it costs to set it for the next visit.
func (p *timers) visitAll() {
	p.due.Add(len(p.set))
	for _, t := range p.set {
		t.Reset(0)
	}
	p.due.Wait()
}

func (p *timers) stop() {
	for _, t := range p.set {
		t.Stop()
	}
}

// tickers has a goroutine with a timer for each session.
type tickers struct {
	timers
	done    chan struct{}
	running sync.WaitGroup
}

func startTickers(sessions []*session) pinger {
	p := &tickers{done: make(chan struct{})}
	for _, s := range sessions {
		timer := time.NewTimer(time.Hour)
		p.set = append(p.set, timer)
		p.running.Go(func() {
			for {
				select {
				case now := <-timer.C:
					s.tick(now)
					p.due.Done()
				case <-p.done:
					return
				}
			}
		})
	}
	return p
}

func (p *tickers) stop() {
	close(p.done)
	p.running.Wait()
	p.timers.stop()
}

// sharedRound is the hub's round, whose slots are visited when the benchmark says so.
type sharedRound struct {
	round    *round
	sessions []*session
}

func startRound(sessions []*session) pinger {
	p := &sharedRound{newRound(time.Hour, func(time.Time) {}), sessions}
	for _, s := range sessions {
		p.round.add(s)
		p.round.hand = (p.round.hand + 1) % roundSlots // they come one after the other
	}
	return p
}

func (p *sharedRound) visitAll() {
	for range roundSlots {
		p.round.mu.Lock()
		p.round.next = time.Now()
		p.round.mu.Unlock()
		p.round.visit()
	}
}

func (p *sharedRound) stop() {
	for _, s := range p.sessions {
		p.round.remove(s)
	}
}

var pingWays = []struct {
	name  string
	start func([]*session) pinger
}{
	{"against=timer/way=before", startTimers},
	{"against=timer/way=after", startRound},
	{"against=goroutine/way=before", startTickers},
	{"against=goroutine/way=after", startRound},
}

// BenchmarkPingVisit is a visit of one connection: by a timer of its own, by a
// goroutine of its own, or by the hub's round.
func BenchmarkPingVisit(b *testing.B) {
	for _, way := range pingWays {
		b.Run(way.name, func(b *testing.B) {
			p := way.start(restingSessions())
			defer p.stop()
			p.visitAll() // what grows once is there
			b.ReportAllocs()
			for b.Loop() {
				p.visitAll()
			}
			b.StopTimer()
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*benchCrowd), "ns/visit")
		})
	}
}

// memoryInUse is what the heap and the stacks take after two collections: the second
// empties the pools.
func memoryInUse() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

// BenchmarkPingRest is what being visited costs a connection between two visits.
func BenchmarkPingRest(b *testing.B) {
	for _, way := range pingWays {
		b.Run(way.name, func(b *testing.B) {
			sessions := restingSessions()
			var memory, goroutines float64
			for b.Loop() {
				b.StopTimer()
				before, running := memoryInUse(), runtime.NumGoroutine()
				b.StartTimer()
				p := way.start(sessions)
				b.StopTimer()
				p.visitAll()
				memory += memoryInUse() - before
				goroutines += float64(runtime.NumGoroutine() - running)
				p.stop()
				b.StartTimer()
			}
			b.StopTimer()
			runtime.KeepAlive(sessions)
			b.ReportMetric(memory/float64(b.N*benchCrowd), "B/conn")
			b.ReportMetric(goroutines/float64(b.N*benchCrowd), "goroutines/conn")
		})
	}
}
