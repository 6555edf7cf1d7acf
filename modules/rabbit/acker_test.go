package rabbit

import (
	"math/rand/v2"
	"testing"
)

func TestTagSpans(t *testing.T) {
	for _, test := range []struct {
		name    string
		tags    []uint64
		gapless uint64
		spans   int
	}{
		{"nothing", nil, 0, 0},
		{"in order", []uint64{1, 2, 3}, 3, 1},
		{"backwards", []uint64{3, 2, 1}, 3, 1},
		{"the first is missing", []uint64{2, 3}, 0, 1},
		{"a gap", []uint64{1, 3}, 1, 2},
		{"a gap that closes", []uint64{1, 3, 2}, 3, 1},
		{"twice", []uint64{1, 1, 2, 2, 1}, 2, 1},
		{"no tag", []uint64{0, 1}, 1, 1},
		{"in the middle of nowhere", []uint64{1, 9, 5}, 1, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			var spans tagSpans
			for _, tag := range test.tags {
				spans.add(tag)
			}
			if got := spans.gapless(); got != test.gapless || len(spans) != test.spans {
				t.Errorf("gapless up to %d in %d spans, not up to %d in %d", got, len(spans), test.gapless, test.spans)
			}
		})
	}
}

// FuzzTagSpans compares the spans with a plain set.
func FuzzTagSpans(f *testing.F) {
	f.Add([]byte{1, 2, 3, 5, 4})
	f.Add([]byte{255, 0, 254, 1, 1})
	random := make([]byte, 300)
	for i := range random {
		random[i] = byte(rand.N(64))
	}
	f.Add(random)
	f.Fuzz(func(t *testing.T, tags []byte) {
		var spans tagSpans
		set := make(map[uint64]bool)
		for _, b := range tags {
			tag := uint64(b)
			if added := spans.add(tag); added != (tag != 0 && !set[tag]) {
				t.Fatalf("add(%d) returned %v", tag, added)
			}
			set[tag] = true
		}
		gapless := uint64(0)
		for set[gapless+1] {
			gapless++
		}
		if got := spans.gapless(); got != gapless {
			t.Fatalf("gapless is %d, not %d", got, gapless)
		}
		for i, span := range spans {
			if span.first > span.last || i > 0 && spans[i-1].last+1 >= span.first {
				t.Fatalf("the spans are %v", spans)
			}
		}
	})
}
