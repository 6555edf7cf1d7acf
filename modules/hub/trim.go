package hub

import (
	"runtime/debug"
	"sync"
	"time"
)

const (
	// crowdSize is how many connections must have come since the last time.
	crowdSize = 1000
	// calmAfter is how long none must have come.
	calmAfter = 5 * time.Second
)

// trimmer gives memory back to the system once a crowd of connections has come and is at
// rest. Connecting leaves two or three times as much garbage behind as a connection
// keeps; connections at rest allocate nothing that would make the runtime collect it, and
// it returns but slowly what it has. It costs one garbage collection for a crowd.
type trimmer struct {
	free func()

	mu     sync.Mutex
	opened int // since the last time
	last   time.Time
}

func newTrimmer() *trimmer {
	return &trimmer{free: func() { go debug.FreeOSMemory() }}
}

// opens notes a new connection.
func (t *trimmer) opens(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.opened++
	t.last = now
}

// look is called now and then while there are connections.
func (t *trimmer) look(now time.Time) {
	t.mu.Lock()
	crowd := t.opened >= crowdSize && now.Sub(t.last) >= calmAfter
	if crowd {
		t.opened = 0
	}
	t.mu.Unlock()
	if crowd {
		t.free()
	}
}
