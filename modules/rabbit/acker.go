package rabbit

import (
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// acker sends the acks and rejects of one channel. It implements app.Acknowledger: its
// callers only note a tag, and the channel's goroutine writes to the socket.
//
// Delivery tags count up from 1 on each channel (AMQP 0-9-1, section 1.6, rule
// "delivery-tag"), across the users who share it. What lies gapless at the beginning
// goes out as one ack with the multiple bit; what lies behind a gap goes out by itself
// and waits for nobody.
//
// A write to the socket costs more than all the rest of a delivery but its own, so tags
// are gathered for ackDelay, unless so many have come that the prefetch might run dry.
type acker struct {
	channel *amqp.Channel
	// first is signalled by the tag that begins a batch, full by the one that fills it.
	first, full chan struct{}
	batch       int

	mu      sync.Mutex
	dead    bool
	acks    []uint64
	rejects []uint64

	// spans is only touched by the goroutine that sends.
	spans tagSpans
}

// ackDelay is how long a settled delivery may wait for others to be acked with it. Half
// of a user's prefetch goes out at once, so it delays nobody's next delivery; and what is
// unacked when the connection is lost is gone with its exclusive queue, acked or not.
const ackDelay = 10 * time.Millisecond

// newAcker returns an acker for a channel whose consumers have the prefetch.
func newAcker(channel *amqp.Channel, prefetch int) *acker {
	return &acker{
		channel: channel,
		first:   make(chan struct{}, 1),
		full:    make(chan struct{}, 1),
		batch:   max(1, prefetch/2),
	}
}

// Ack implements app.Acknowledger.
func (a *acker) Ack(tag uint64) { a.note(&a.acks, tag) }

// Reject implements app.Acknowledger.
func (a *acker) Reject(tag uint64) { a.note(&a.rejects, tag) }

func (a *acker) note(tags *[]uint64, tag uint64) {
	a.mu.Lock()
	if a.dead {
		a.mu.Unlock()
		return
	}
	*tags = append(*tags, tag)
	count := len(a.acks) + len(a.rejects)
	a.mu.Unlock()
	// A full channel says the same already.
	if count == 1 {
		select {
		case a.first <- struct{}{}:
		default:
		}
	}
	if count == a.batch {
		select {
		case a.full <- struct{}{}:
		default:
		}
	}
}

// send writes what has been noted; the library's error says that the channel is gone,
// and everything unsettled with it.
func (a *acker) send() error {
	a.mu.Lock()
	acks, rejects := a.acks, a.rejects
	a.acks, a.rejects = nil, nil
	a.mu.Unlock()
	for _, tag := range rejects {
		if !a.spans.add(tag) {
			continue
		}
		if err := a.channel.Reject(tag, false); err != nil {
			return err
		}
	}
	acks = slices.DeleteFunc(acks, func(tag uint64) bool { return !a.spans.add(tag) })
	// RabbitMQ refuses a tag that is not unacked at the moment with 406, also under the
	// multiple bit: it must be the greatest of these, not of all.
	gapless, last := a.spans.gapless(), uint64(0)
	for _, tag := range acks {
		if tag <= gapless {
			last = max(last, tag)
		}
	}
	if last > 0 {
		if err := a.channel.Ack(last, true); err != nil {
			return err
		}
	}
	for _, tag := range acks {
		if tag > gapless {
			if err := a.channel.Ack(tag, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// end makes the acker ignore what is settled from now on.
func (a *acker) end() {
	a.mu.Lock()
	a.dead = true
	a.acks, a.rejects = nil, nil
	a.mu.Unlock()
}

// tagSpans is a set of delivery tags, kept as spans without gaps between them: it
// takes as much room as there are tags missing, which the prefetch bounds, however many
// it holds.
type tagSpans []tagSpan

type tagSpan struct{ first, last uint64 }

// add puts tag into the set and reports whether it was not in it. 0 is no tag.
func (s *tagSpans) add(tag uint64) bool {
	if tag == 0 {
		return false
	}
	spans := *s
	// i is the first span that ends at or after the tag's left neighbour.
	i, _ := slices.BinarySearchFunc(spans, tag, func(span tagSpan, tag uint64) int {
		if span.last+1 < tag {
			return -1
		}
		return 1
	})
	switch {
	case i == len(spans) || tag+1 < spans[i].first:
		*s = slices.Insert(spans, i, tagSpan{tag, tag})
	case tag+1 == spans[i].first:
		spans[i].first = tag
	case tag == spans[i].last+1:
		spans[i].last = tag
		if i+1 < len(spans) && spans[i+1].first == tag+1 {
			spans[i].last = spans[i+1].last
			*s = slices.Delete(spans, i+1, i+2)
		}
	default:
		return false
	}
	return true
}

// gapless returns the greatest tag up to which none is missing, 0 for none.
func (s tagSpans) gapless() uint64 {
	if len(s) == 0 || s[0].first != 1 {
		return 0
	}
	return s[0].last
}
