package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestPaceKeepsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := newPace(100, time.Second)
		count := 0
		for at, ok := p.next(t.Context()); ok; at, ok = p.next(t.Context()) {
			if want := began.Add(time.Duration(count) * 10 * time.Millisecond).UnixNano(); at != want {
				t.Fatalf("message %d counts from %d, want %d", count, at, want)
			}
			count++
		}
		if count != 100 || time.Since(began) != 990*time.Millisecond {
			t.Errorf("%d messages in %v", count, time.Since(began))
		}
	})
}

// A message that the one before held up counts from when it was due, not from when it
// could be sent.
func TestPaceDoesNotHideAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := newPace(100, 0)
		p.next(t.Context())
		time.Sleep(95 * time.Millisecond) // the server takes nothing
		for i := 1; i <= 9; i++ {
			at, ok := p.next(t.Context())
			if want := began.Add(time.Duration(i) * 10 * time.Millisecond).UnixNano(); !ok || at != want {
				t.Errorf("message %d counts from %v, want %v", i, at-began.UnixNano(), want-began.UnixNano())
			}
		}
		if time.Since(began) != 95*time.Millisecond {
			t.Errorf("the pace is still behind after %v", time.Since(began))
		}
	})
}

func TestPaceWithoutARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPace(0, time.Second)
		for range 10 {
			if at, ok := p.next(t.Context()); !ok || at != time.Now().UnixNano() {
				t.Fatalf("next = %d, %v", at, ok)
			}
		}
		time.Sleep(time.Second + 1)
		if _, ok := p.next(t.Context()); ok {
			t.Error("the pace does not end")
		}
	})
}

func TestPaceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		p := newPace(1, 0)
		count := 0
		for _, ok := p.next(ctx); ok; _, ok = p.next(ctx) {
			count++
		}
		if count != 2 {
			t.Errorf("%d messages, want those at 0 and 1 s", count)
		}
	})
}

func TestPacesAreShifted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := newPace(10, 0)
		p.shift(0.5)
		if at, _ := p.next(t.Context()); at != began.Add(50*time.Millisecond).UnixNano() {
			t.Errorf("the first comes after %v", time.Duration(at-began.UnixNano()))
		}
	})
}

func TestWindowWaitsForRoomAndGivesUpWhatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var settled uint64
		w := newWindow(3, func() uint64 { return settled })
		began := time.Now()
		for range 3 {
			if !w.enter(t.Context(), 1) {
				t.Fatal("no room")
			}
		}
		if time.Since(began) != 0 {
			t.Error("a window with room makes wait")
		}
		settled = 1
		if !w.enter(t.Context(), 1) || time.Since(began) != 0 {
			t.Error("no room where one has settled")
		}
		// The three that are under way never settle.
		if !w.enter(t.Context(), 2) {
			t.Fatal("no room")
		}
		if waited := time.Since(began); waited < writeOff || waited > writeOff+time.Second {
			t.Errorf("gave them up after %v", waited)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if w.enter(ctx, 2) {
			t.Error("there is room where there is none")
		}
		unbounded := newWindow(0, func() uint64 { return 0 })
		if !unbounded.enter(t.Context(), 1<<40) || unbounded.enter(ctx, 1) {
			t.Error("a window of size 0 is not without bound, or does not end with its context")
		}
	})
}
