package hub

import (
	"testing"
	"time"
)

// TestTrim: memory is given back once for each crowd, when it has been at rest for a while.
func TestTrim(t *testing.T) {
	freed := 0
	trim := &trimmer{free: func() { freed++ }}
	now := time.Now()
	come := func(count int) {
		for range count {
			now = now.Add(time.Millisecond)
			trim.opens(now)
			trim.look(now)
		}
	}
	rest := func(want int) {
		t.Helper()
		for range 20 {
			now = now.Add(time.Second)
			trim.look(now)
		}
		if freed != want {
			t.Errorf("freed %d times, want %d", freed, want)
		}
	}
	come(crowdSize - 1)
	rest(0)
	come(1)
	if freed != 0 {
		t.Error("freed while they come")
	}
	rest(1)
	come(3 * crowdSize)
	rest(2)
	come(10)
	rest(2)
}
