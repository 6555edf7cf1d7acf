package main

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// model is numbers as a plain set.
type model map[uint32]bool

func (m model) spans() numbers {
	var all []uint32
	for n := range m {
		all = append(all, n)
	}
	slices.Sort(all)
	var s numbers
	for _, n := range all {
		if len(s) > 0 && s[len(s)-1].To == n {
			s[len(s)-1].To++
		} else {
			s = append(s, span{n, n + 1})
		}
	}
	return s
}

func TestNumbersAreASet(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var s, other numbers
	m, om := model{}, model{}
	for range 5000 {
		n := random.Uint32N(60)
		switch random.IntN(3) {
		case 0:
			if s.remove(n) != m[n] {
				t.Fatalf("remove(%d) of %v", n, s)
			}
			delete(m, n)
		case 1:
			if s.add(n) == m[n] {
				t.Fatalf("add(%d) to %v", n, s)
			}
			m[n] = true
		default:
			other.add(n)
			om[n] = true
			if random.IntN(20) == 0 {
				other, om = nil, model{}
			}
		}
		if want := m.spans(); !slices.Equal(s, want) {
			t.Fatalf("%v, want %v", s, want)
		}
		if s.count() != uint64(len(m)) {
			t.Fatalf("count %d, want %d", s.count(), len(m))
		}
		var common uint64
		for n := range m {
			if om[n] {
				common++
			}
		}
		if s.common(other) != common || other.common(s) != common {
			t.Fatalf("%v and %v have %d in common, want %d", s, other, s.common(other), common)
		}
	}
}

func TestLedger(t *testing.T) {
	for _, c := range []struct {
		name    string
		arrived []uint32
		sent    uint32
		refused []uint32
		want    tally
	}{
		{"nothing", nil, 0, nil, tally{}},
		{"all in order", []uint32{0, 1, 2}, 3, nil, tally{Expected: 3, Received: 3}},
		{"the last lost", []uint32{0, 1}, 4, nil, tally{Expected: 4, Received: 2, Lost: 2}},
		{"the first lost", []uint32{2}, 3, nil, tally{Expected: 3, Received: 1, Lost: 2}},
		{"all lost", nil, 2, nil, tally{Expected: 2, Lost: 2}},
		{"one twice", []uint32{0, 1, 1, 2}, 3, nil, tally{Expected: 3, Received: 3, Duplicated: 1}},
		{"a late one", []uint32{0, 2, 1}, 3, nil, tally{Expected: 3, Received: 3, Reordered: 1}},
		{"a late one twice", []uint32{0, 2, 1, 1}, 3, nil, tally{Expected: 3, Received: 3, Reordered: 1, Duplicated: 1}},
		{"backwards", []uint32{3, 2, 1, 0}, 4, nil, tally{Expected: 4, Received: 4, Reordered: 3}},
		{"refused and not there", []uint32{0, 2}, 3, []uint32{1}, tally{Expected: 3, Received: 2, Refused: 1}},
		{"refused and there", []uint32{0, 1, 2}, 3, []uint32{1}, tally{Expected: 3, Received: 3, Refused: 1, RefusedStored: 1}},
		{"refused at the end", []uint32{0}, 4, []uint32{1, 2, 3}, tally{Expected: 4, Received: 1, Refused: 3}},
		{"some refused, some lost", []uint32{0, 5}, 7, []uint32{1, 2, 6}, tally{Expected: 7, Received: 2, Lost: 2, Refused: 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l ledger
			for _, n := range c.arrived {
				l.add(n)
			}
			var refused numbers
			for _, n := range c.refused {
				refused.add(n)
			}
			var got tally
			for range 2 { // closing the books changes nothing
				got = tally{}
				got.book(&l, c.sent, refused)
			}
			if got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
			var sum tally
			sum.merge(got)
			sum.merge(got)
			if sum.Expected != 2*got.Expected || sum.Lost != 2*got.Lost || sum.RefusedStored != 2*got.RefusedStored {
				t.Errorf("twice %+v is %+v", got, sum)
			}
		})
	}
}
