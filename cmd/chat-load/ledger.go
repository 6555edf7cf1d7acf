package main

import "sort"

// span is the numbers from From up to, not including, To.
type span struct{ From, To uint32 }

// numbers is a set of message numbers, kept as sorted spans that neither overlap nor
// touch: what is lost or refused in one go costs one span, however much it is.
type numbers []span

// find returns the index of the first span that ends after n.
func (s numbers) find(n uint32) int {
	return sort.Search(len(s), func(i int) bool { return s[i].To > n })
}

// add puts n into the set and reports whether it was not there.
func (s *numbers) add(n uint32) bool {
	i := s.find(n)
	spans := *s
	if i < len(spans) && spans[i].From <= n {
		return false
	}
	left := i > 0 && spans[i-1].To == n
	right := i < len(spans) && spans[i].From == n+1
	switch {
	case left && right:
		spans[i-1].To = spans[i].To
		*s = append(spans[:i], spans[i+1:]...)
	case left:
		spans[i-1].To = n + 1
	case right:
		spans[i].From = n
	default:
		spans = append(spans, span{})
		copy(spans[i+1:], spans[i:])
		spans[i] = span{n, n + 1}
		*s = spans
	}
	return true
}

// remove takes n out of the set and reports whether it was there.
func (s *numbers) remove(n uint32) bool {
	i := s.find(n)
	spans := *s
	if i == len(spans) || spans[i].From > n {
		return false
	}
	switch it := spans[i]; {
	case it.From == n && it.To == n+1:
		*s = append(spans[:i], spans[i+1:]...)
	case it.From == n:
		spans[i].From++
	case it.To == n+1:
		spans[i].To--
	default:
		spans = append(spans, span{})
		copy(spans[i+1:], spans[i:])
		spans[i].To, spans[i+1].From = n, n+1
		*s = spans
	}
	return true
}

// count returns how many numbers are in the set.
func (s numbers) count() (n uint64) {
	for _, it := range s {
		n += uint64(it.To - it.From)
	}
	return n
}

// common returns how many numbers are in both sets.
func (s numbers) common(other numbers) (n uint64) {
	for i, j := 0, 0; i < len(s) && j < len(other); {
		from, to := max(s[i].From, other[j].From), min(s[i].To, other[j].To)
		if from < to {
			n += uint64(to - from)
		}
		if s[i].To < other[j].To {
			i++
		} else {
			j++
		}
	}
	return n
}

// ledger reconciles one stream of messages, numbered from 0, at its receiving end. The
// zero value expects number 0. It is not safe for concurrent use.
type ledger struct {
	next       uint32  // one more than the greatest number that has come
	missing    numbers // numbers below next that have not come
	received   uint32  // different numbers that have come
	duplicated uint32
	reordered  uint32
}

// add books the arrival of n and reports whether it had not come before.
func (l *ledger) add(n uint32) bool {
	switch {
	case n == l.next:
		l.next++
	case n > l.next:
		// Only the greatest numbers go missing here, so the span goes to the end.
		l.missing = append(l.missing, span{l.next, n})
		l.next = n + 1
	case l.missing.remove(n):
		l.reordered++
	default:
		l.duplicated++
		return false
	}
	l.received++
	return true
}

// tally is what came of messages, summed up over streams.
type tally struct {
	Expected   uint64 // sent, once for each place that each should have reached
	Received   uint64 // of those, each counted once
	Lost       uint64 // sent, not received, and the sender was not told
	Duplicated uint64 // arrivals beyond the first
	Reordered  uint64 // came after a message that was sent later
	Refused    uint64 // the sender was told that it was not taken
	// RefusedStored messages were refused and came all the same, which a lost confirm
	// can bring about.
	RefusedStored uint64
}

// book closes the ledger of a stream of which sent messages were sent and the given
// ones refused.
func (t *tally) book(l *ledger, sent uint32, refused numbers) {
	missing := l.missing
	if l.next < sent {
		missing = append(missing[:len(missing):len(missing)], span{l.next, sent})
	}
	toldLost := missing.common(refused)
	t.Expected += uint64(sent)
	t.Received += uint64(l.received)
	t.Lost += missing.count() - toldLost
	t.Duplicated += uint64(l.duplicated)
	t.Reordered += uint64(l.reordered)
	t.Refused += refused.count()
	t.RefusedStored += refused.count() - toldLost
}

// merge adds what other holds.
func (t *tally) merge(other tally) {
	t.Expected += other.Expected
	t.Received += other.Received
	t.Lost += other.Lost
	t.Duplicated += other.Duplicated
	t.Reordered += other.Reordered
	t.Refused += other.Refused
	t.RefusedStored += other.RefusedStored
}
