package demo

import (
	"sync"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// overflow says what a queue does with a message that it has no room for.
type overflow int

const (
	// dropOldest makes room at the head; the publisher sees nothing of it.
	dropOldest overflow = iota
	// refuseNewest leaves the queue as it is; the publisher gets a basic.nack.
	refuseNewest
)

// offerResult is what became of a message that a queue was offered.
type offerResult int

const (
	offerTaken     offerResult = iota
	offerDisplaced             // taken, and the oldest message was dropped for it
	offerRefused
)

// queue holds messages for one consumer: at most limit that wait, at most prefetch
// that the consumer has and has not settled. It is the app.Acknowledger of its
// deliveries.
type queue struct {
	name     string
	limit    int
	overflow overflow
	prefetch int
	idle     chan struct{} // closed by the consumer's goroutine when it ends

	mu        sync.Mutex
	changed   sync.Cond // signals the consumer; L is mu
	waiting   []app.Delivery
	unsettled map[uint64]struct{}
	lastTag   uint64
	closed    bool
}

func newQueue(name string, limit int, overflow overflow, prefetch int) *queue {
	q := &queue{
		name:      name,
		limit:     limit,
		overflow:  overflow,
		prefetch:  max(prefetch, 1),
		idle:      make(chan struct{}),
		unsettled: make(map[uint64]struct{}),
	}
	q.changed.L = &q.mu
	return q
}

// offer appends a message. The body is shared and must not change any more.
func (q *queue) offer(messageType string, body []byte) offerResult {
	q.mu.Lock()
	defer q.mu.Unlock()
	result := offerTaken
	if len(q.waiting) >= q.limit {
		if q.overflow == refuseNewest {
			return offerRefused
		}
		q.waiting[0] = app.Delivery{} // lets go of the body
		q.waiting = q.waiting[1:]
		result = offerDisplaced
	}
	q.lastTag++
	q.waiting = append(q.waiting, app.Delivery{Body: body, Type: messageType, Tag: q.lastTag, Acks: q})
	q.changed.Signal()
	return result
}

// next waits for a message that the consumer may have; false means that the queue
// is closed.
func (q *queue) next() (app.Delivery, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed && (len(q.waiting) == 0 || len(q.unsettled) >= q.prefetch) {
		q.changed.Wait()
	}
	if q.closed {
		return app.Delivery{}, false
	}
	d := q.waiting[0]
	q.waiting[0] = app.Delivery{}
	q.waiting = q.waiting[1:]
	q.unsettled[d.Tag] = struct{}{}
	return d, true
}

// close ends the queue with all that is in it. A second call does nothing.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.waiting = true, nil
	q.changed.Broadcast()
}

// Ack implements app.Acknowledger.
func (q *queue) Ack(tag uint64) { q.settle(tag) }

// Reject implements app.Acknowledger. Nothing is requeued and there is no
// dead-letter exchange, so it makes the same difference as Ack.
func (q *queue) Reject(tag uint64) { q.settle(tag) }

func (q *queue) settle(tag uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.unsettled, tag)
	q.changed.Signal()
}
