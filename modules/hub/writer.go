package hub

import (
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

const (
	// batchBytes is how much is gathered for one write. Frames that wait for a socket
	// are small, and a call of the system costs more than copying this much.
	batchBytes = 16 << 10
	// maxFrameHead is the length of a server's longest frame header: two bytes, and
	// eight for the length (RFC 6455, section 5.2).
	maxFrameHead = 10
)

// batch is what is on its way to the socket: small frames one after the other in data,
// or one great frame, whose header is in data and whose payload is tail.
type batch struct {
	data, tail []byte
	items      []outgoing
	ends       []int // where each item's frame ends
	// settled is how many items have been accounted for, written how many bytes are out.
	settled, written int
	// held says that who has the batch is the one who writes to the wire.
	held bool
	// frame is the item whose frame deadline is for, -1 for none.
	frame    int
	deadline time.Time
}

var batches = sync.Pool{New: func() any {
	return &batch{data: make([]byte, 0, 1<<10), frame: -1}
}}

// free gives the batch back, which holds nothing any more.
func (b *batch) free() {
	data, items, ends := b.data[:0], b.items[:0], b.ends[:0]
	clear(b.items)
	*b = batch{data: data, items: items, ends: ends, frame: -1}
	batches.Put(b)
}

// add appends a frame and reports whether it did. The first always fits.
func (b *batch) add(item outgoing) bool {
	payload := item.payload()
	if b.tail != nil || len(b.items) > 0 && len(b.data)+maxFrameHead+len(payload) > batchBytes {
		return false
	}
	b.data = appendFrameHead(b.data, len(payload))
	if maxFrameHead+len(payload) > batchBytes {
		b.tail = payload
	} else {
		b.data = append(b.data, payload...)
	}
	b.items = append(b.items, item)
	b.ends = append(b.ends, len(b.data)+len(b.tail))
	return true
}

// appendFrameHead appends the header of a text message in one frame, from a server, so
// without a mask (RFC 6455, section 5.2).
func appendFrameHead(dst []byte, length int) []byte {
	dst = append(dst, finalBit|opcodeText)
	switch {
	case length < 126:
		return append(dst, byte(length))
	case length < 1<<16:
		return binary.BigEndian.AppendUint16(append(dst, 126), uint16(length))
	default:
		return binary.BigEndian.AppendUint64(append(dst, 127), uint64(length))
	}
}

// rest returns bytes that are still to be written, but no further than to.
func (b *batch) rest(to int) []byte {
	if b.written < len(b.data) {
		return b.data[b.written:min(to, len(b.data))]
	}
	return b.tail[b.written-len(b.data) : to-len(b.data)]
}

// whole returns how many frames are out.
func (b *batch) whole() int {
	n := b.settled
	for n < len(b.ends) && b.ends[n] <= b.written {
		n++
	}
	return n
}

// write writes what the socket takes at once. Where that is not all, it returns
// errWouldBlock, or, where it may wait, goes on to the end of a frame: that has
// WriteTimeout from its beginning, so that a peer that takes a little now and then gains
// no time.
func (b *batch) write(w *wire, wait bool) error {
	if !b.held {
		if wait {
			w.take()
		} else if !w.tryTake() {
			return errWouldBlock
		}
		b.held = true
	}
	if w.closeSent {
		return errCloseSent
	}
	total := b.ends[len(b.ends)-1]
	for b.written < total {
		rest := b.rest(total)
		n, err := w.writeNow(rest)
		b.written += n
		if err != nil {
			return err
		}
		if n < len(rest) {
			break
		}
	}
	if b.written == total {
		return nil
	}
	if !wait {
		return errWouldBlock
	}
	frame := b.whole()
	if b.frame != frame {
		b.frame, b.deadline = frame, time.Now().Add(w.writeTimeout)
	}
	for b.written < b.ends[frame] {
		rest := b.rest(b.ends[frame])
		if err := w.writeWithin(rest, b.deadline); err != nil {
			return err
		}
		b.written += len(rest)
	}
	return nil
}

// release gives the wire back.
func (b *batch) release(w *wire) {
	if b.held {
		b.held = false
		w.release()
	}
}

func (o outgoing) payload() []byte {
	if o.parcel != nil {
		return o.parcel.delivery.Body
	}
	return o.errors
}

// claim makes the caller the one who writes, where there is something to write and
// nobody who does; the caller then calls write. The caller holds mu.
func (s *session) claim() bool {
	if s.writing || s.corked || s.phase >= phaseClosed || s.head == len(s.queue) {
		return false
	}
	s.writing = true
	return true
}

// startWriter has what waits written by a goroutine. The caller holds mu.
func (s *session) startWriter() {
	if s.claim() {
		go s.write(nil, true)
	}
}

// write writes b, where it is not nil, and then what waits, in order. It is called by
// who has claimed that. Where it must not wait and the socket takes no more, it leaves
// the rest to a goroutine.
func (s *session) write(b *batch, wait bool) {
	for first := true; ; first = false {
		if b == nil {
			if b = s.load(); b == nil {
				return
			}
			if !wait && !first {
				go s.write(b, true)
				return
			}
		}
		err := b.write(s.wire, false)
		if errors.Is(err, errWouldBlock) {
			if !wait {
				go s.write(b, true)
				return
			}
			err = s.writeStuck(b)
		}
		b = s.account(b, err)
	}
}

// writeStuck writes on where the socket has just taken no more, and waits for it.
func (s *session) writeStuck(b *batch) error {
	s.settleOut(b) // the frames before the one that is stuck
	defer s.hub.stuck.remove(s.hub.stuck.add(s))
	// The prefetch may have been used up by now, so that no delivery comes to look.
	s.hub.relieve()
	return b.write(s.wire, true)
}

// load returns what is to be written next, nil where that is nothing: then the caller
// writes no more.
func (s *session) load() *batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase >= phaseClosed || s.head == len(s.queue) {
		if s.head == len(s.queue) {
			if s.queue, s.head = s.queue[:0], 0; cap(s.queue) > keptQueue {
				s.queue = nil
			}
		}
		s.writing = false
		s.signal()
		return nil
	}
	b, _ := batches.Get().(*batch)
	for s.head < len(s.queue) && b.add(s.queue[s.head]) {
		s.queue[s.head] = outgoing{}
		s.head++
	}
	return b
}

// account settles the frames that are out, and where err says that writing has failed, or
// the connection is past its close, all others. It returns the batch while something of
// it is to be written.
func (s *session) account(b *batch, err error) *batch {
	s.settleOut(b)
	out := b.settled
	s.mu.Lock()
	var given []outgoing
	if err != nil || s.phase >= phaseClosed {
		given = b.items[out:]
		s.forget(given)
	}
	reason := dropConnectionClosed
	if s.wire.stalled.Load() || s.code == app.CloseTooSlow {
		reason = dropSlowConsumer
	}
	if err != nil && !errors.Is(err, errCloseSent) {
		s.writeFailed()
	}
	s.signal()
	s.mu.Unlock()
	for _, item := range given {
		if item.parcel != nil {
			s.hub.meters.dropped[reason].Inc()
			item.parcel.done()
		}
	}
	if out+len(given) < len(b.items) {
		b.release(s.wire)
		return b
	}
	b.release(s.wire)
	b.free()
	if errors.Is(err, errCloseSent) {
		// Nothing is written any more; what waits is settled when the session ends.
		s.mu.Lock()
		s.phase = max(s.phase, phaseClosed)
		s.mu.Unlock()
	}
	return nil
}

// settleOut settles the frames of the batch that are out.
func (s *session) settleOut(b *batch) {
	out := b.whole()
	written := b.items[b.settled:out]
	if len(written) == 0 {
		return
	}
	for _, item := range written {
		if item.parcel != nil {
			s.hub.meters.delivered.Inc()
			item.parcel.done()
		}
	}
	b.settled = out
	s.mu.Lock()
	s.framesOut += len(written)
	s.forget(written)
	s.signal()
	s.mu.Unlock()
}

// forget takes items out of the counts. The caller holds mu.
func (s *session) forget(items []outgoing) {
	for _, item := range items {
		if item.parcel != nil {
			s.deliveries--
		} else {
			s.inFlight--
			s.errorBytes -= len(item.errors)
		}
	}
}

// writeFailed gives the connection up after a write that did not succeed: where the
// peer does not read, no close frame can be sent either. The caller holds mu.
func (s *session) writeFailed() {
	if s.wire.stalled.Load() {
		s.note(app.CloseTooSlow, closeReason(app.CloseTooSlow))
	}
	s.cutLocked()
}
