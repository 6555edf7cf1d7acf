package main

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Shape of a histogram: each power of two is cut into 2^precisionBits buckets, so a
// value is known to 1/64 of itself. Values go up to 2^maxExponent ns, about 18 minutes.
const (
	precisionBits = 6
	maxExponent   = 40
	bucketCount   = (maxExponent - precisionBits + 1) << precisionBits
)

// histogram counts durations in buckets whose width grows with the value, as HDR
// histograms do: 18 KB, whatever is recorded. It is safe for concurrent use.
type histogram struct {
	buckets [bucketCount]atomic.Uint64
	sum     atomic.Int64 // ns
	max     atomic.Int64 // ns
}

// bucketOf returns the bucket of a value in ns; values out of range go to the ends.
func bucketOf(ns int64) int {
	if ns < 1<<precisionBits {
		return int(max(ns, 0))
	}
	exponent := bits.Len64(uint64(ns)) - 1
	if exponent >= maxExponent {
		return bucketCount - 1
	}
	shift := exponent - precisionBits
	return (shift+1)<<precisionBits + int(ns>>shift) - 1<<precisionBits
}

// upperEdge returns the greatest value of a bucket, in ns.
func upperEdge(bucket int) int64 {
	if bucket < 1<<precisionBits {
		return int64(bucket)
	}
	shift := bucket>>precisionBits - 1
	mantissa := int64(bucket&(1<<precisionBits-1)) + 1<<precisionBits
	return (mantissa+1)<<shift - 1
}

// record counts one duration. A negative one, which two clocks can make, counts as 0.
func (h *histogram) record(d time.Duration) {
	d = max(d, 0)
	h.buckets[bucketOf(int64(d))].Add(1)
	h.sum.Add(int64(d))
	for {
		seen := h.max.Load()
		if int64(d) <= seen || h.max.CompareAndSwap(seen, int64(d)) {
			return
		}
	}
}

// distribution is what a histogram held at one moment; it can be sent to another
// process and added up.
type distribution struct {
	Buckets []uint64 // empty, or bucketCount long
	Sum     int64
	Max     int64
}

// distribution returns a copy of what has been recorded.
func (h *histogram) distribution() distribution {
	d := distribution{Buckets: make([]uint64, bucketCount), Sum: h.sum.Load(), Max: h.max.Load()}
	for i := range h.buckets {
		d.Buckets[i] = h.buckets[i].Load()
	}
	return d
}

// merge adds what other holds.
func (d *distribution) merge(other distribution) {
	if len(d.Buckets) == 0 {
		d.Buckets = make([]uint64, bucketCount)
	}
	for i, n := range other.Buckets {
		d.Buckets[i] += n
	}
	d.Sum += other.Sum
	d.Max = max(d.Max, other.Max)
}

// count returns how many durations were recorded.
func (d distribution) count() (n uint64) {
	for _, c := range d.Buckets {
		n += c
	}
	return n
}

// quantile returns a duration that the fraction q of all recorded ones does not exceed,
// to 1/64 of itself; 0 where nothing was recorded.
func (d distribution) quantile(q float64) time.Duration {
	total := d.count()
	if total == 0 {
		return 0
	}
	rank := max(1, uint64(q*float64(total)+0.5))
	for i, n := range d.Buckets {
		if n >= rank {
			return time.Duration(min(upperEdge(i), d.Max))
		}
		rank -= n
	}
	return time.Duration(d.Max)
}

// mean returns the arithmetic mean; 0 where nothing was recorded.
func (d distribution) mean() time.Duration {
	if n := d.count(); n > 0 {
		return time.Duration(d.Sum / int64(n))
	}
	return 0
}
