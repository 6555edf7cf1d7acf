package main

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBucketsCoverEveryValueOnce(t *testing.T) {
	last := int64(-1)
	for bucket := range bucketCount {
		from, to := last+1, upperEdge(bucket)
		if to < from {
			t.Fatalf("bucket %d ends at %d, before it begins at %d", bucket, to, from)
		}
		for _, ns := range []int64{from, (from + to) / 2, to} {
			if got := bucketOf(ns); got != bucket {
				t.Fatalf("%d ns go to bucket %d, want %d", ns, got, bucket)
			}
		}
		if width := to - from + 1; width > 1 && from/width < 1<<precisionBits {
			t.Fatalf("bucket %d, from %d, is %d wide", bucket, from, width)
		}
		last = to
	}
	if last != 1<<maxExponent-1 {
		t.Errorf("the last bucket ends at %d", last)
	}
	for _, ns := range []int64{1 << maxExponent, 1<<63 - 1} {
		if got := bucketOf(ns); got != bucketCount-1 {
			t.Errorf("%d ns go to bucket %d", ns, got)
		}
	}
	if got := bucketOf(-1); got != 0 {
		t.Errorf("-1 ns go to bucket %d", got)
	}
}

func TestQuantilesAreThoseOfTheValues(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var first, second histogram
	var values []time.Duration
	for i := range 20_000 {
		d := time.Duration(random.ExpFloat64() * float64(3*time.Millisecond))
		values = append(values, d)
		if i%2 == 0 {
			first.record(d)
		} else {
			second.record(d)
		}
	}
	slices.Sort(values)
	var d distribution
	d.merge(first.distribution())
	d.merge(second.distribution())
	if d.count() != uint64(len(values)) {
		t.Fatalf("%d values, want %d", d.count(), len(values))
	}
	for _, q := range []float64{0.001, 0.5, 0.9, 0.99, 0.999, 1} {
		want := values[max(1, int(q*float64(len(values))+0.5))-1]
		got := d.quantile(q)
		if got < want || float64(got) > float64(want)*(1+1.0/(1<<precisionBits))+1 {
			t.Errorf("quantile %g is %v, want %v", q, got, want)
		}
	}
	if d.Max != int64(values[len(values)-1]) || d.quantile(1) != values[len(values)-1] {
		t.Errorf("the greatest is %v, quantile 1 %v, want %v", time.Duration(d.Max), d.quantile(1), values[len(values)-1])
	}
	var sum time.Duration
	for _, v := range values {
		sum += v
	}
	if want := sum / time.Duration(len(values)); d.mean() != want {
		t.Errorf("the mean is %v, want %v", d.mean(), want)
	}
}

func TestEmptyDistribution(t *testing.T) {
	var d distribution
	if d.count() != 0 || d.quantile(0.5) != 0 || d.mean() != 0 || newLatencyReport(d) != nil {
		t.Errorf("nothing recorded, yet %v, %v", d.quantile(0.5), d.mean())
	}
	var h histogram
	h.record(-time.Second)
	if d := h.distribution(); d.count() != 1 || d.quantile(1) != 0 {
		t.Errorf("a negative duration counts as %v", d.quantile(1))
	}
}
