package app

import (
	"sync"
	"time"
)

// maxQuotaKeys bounds what a Quota remembers. Past it some of its knowledge is given
// up: a client may then do a little more, which beats running out of memory.
const maxQuotaKeys = 1 << 20

// Quota counts events per key in windows of a fixed length; a key's window begins
// with its first event. It is safe for concurrent use. A limit of 0 turns it off.
type Quota[K comparable] struct {
	limit  int
	window time.Duration

	mu     sync.Mutex
	counts map[K]quotaWindow
	swept  time.Time
}

type quotaWindow struct {
	began time.Time
	count int
}

// NewQuota returns a quota of limit events per window and key.
func NewQuota[K comparable](limit int, window time.Duration) *Quota[K] {
	return &Quota[K]{limit: limit, window: window, counts: make(map[K]quotaWindow)}
}

// Take counts an event unless the key is at the limit, and reports whether it
// did; if not, it returns how long until the window ends.
func (q *Quota[K]) Take(key K) (time.Duration, bool) {
	if q.limit <= 0 {
		return 0, true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	current, wait := q.look(key, now)
	if wait > 0 {
		return wait, false
	}
	current.count++
	q.counts[key] = current
	return 0, true
}

// Return takes back an event that Take counted and that came to nothing. It does
// nothing where the window of that event is over.
func (q *Quota[K]) Return(key K) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if current, known := q.counts[key]; known && current.count > 0 {
		current.count--
		q.counts[key] = current
	}
}

// Exceeded reports whether the key is at the limit, and for how long. It counts
// nothing.
func (q *Quota[K]) Exceeded(key K) (time.Duration, bool) {
	if q.limit <= 0 {
		return 0, false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	_, wait := q.look(key, time.Now())
	return wait, wait > 0
}

// look returns the key's window at now, and how long it lasts if it is full.
func (q *Quota[K]) look(key K, now time.Time) (quotaWindow, time.Duration) {
	if now.Sub(q.swept) >= q.window || len(q.counts) >= maxQuotaKeys {
		q.sweep(now)
	}
	current, known := q.counts[key]
	if !known || now.Sub(current.began) >= q.window {
		return quotaWindow{began: now}, 0
	}
	if current.count >= q.limit {
		return current, q.window - now.Sub(current.began)
	}
	return current, 0
}

// sweep forgets the windows that are over, and, where that is not enough, some others.
func (q *Quota[K]) sweep(now time.Time) {
	q.swept = now
	for key, w := range q.counts {
		if now.Sub(w.began) >= q.window {
			delete(q.counts, key)
		}
	}
	for key := range q.counts {
		if len(q.counts) < maxQuotaKeys*3/4 {
			break
		}
		delete(q.counts, key)
	}
}
