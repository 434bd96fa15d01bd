package main

import "math/bits"

// A histogram of nanoseconds, linear within each power of two: a value is off by less than 1 part in 128.
const (
	subBits    = 7
	subBuckets = 1 << subBits
	powers     = 40 // up to 2^40 ns and more than 18 minutes
)

type histogram struct {
	buckets [powers * subBuckets]uint32
	count   uint64
	most    uint64
}

func bucketOf(value uint64) int {
	if value < subBuckets {
		return int(value)
	}
	shift := bits.Len64(value) - subBits - 1
	at := (shift+1)<<subBits | int(value>>shift)&(subBuckets-1)
	return min(at, powers*subBuckets-1)
}

// floorOf is the least value of a bucket.
func floorOf(bucket int) uint64 {
	if bucket < subBuckets {
		return uint64(bucket)
	}
	shift := bucket>>subBits - 1
	return uint64(subBuckets|bucket&(subBuckets-1)) << shift
}

func (h *histogram) add(value uint64) {
	h.buckets[bucketOf(value)]++
	h.count++
	h.most = max(h.most, value)
}

func (h *histogram) merge(other *histogram) {
	for at, count := range other.buckets {
		h.buckets[at] += count
	}
	h.count += other.count
	h.most = max(h.most, other.most)
}

// quantile is the nearest-rank value of a share, from the middle of its bucket; 0 where nothing was counted.
func (h *histogram) quantile(share float64) uint64 {
	if h.count == 0 {
		return 0
	}
	rank := uint64(share*float64(h.count) + 0.9999999)
	rank = max(1, min(rank, h.count))
	var seen uint64
	for at, count := range h.buckets {
		seen += uint64(count)
		if seen >= rank {
			low := floorOf(at)
			return min(h.most, low+(floorOf(at+1)-low)/2)
		}
	}
	return h.most
}

// milliseconds is the quantiles that a run reports.
func (h *histogram) milliseconds() map[string]float64 {
	found := map[string]float64{"max": float64(h.most) / 1e6}
	for name, share := range map[string]float64{"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999} {
		found[name] = float64(h.quantile(share)) / 1e6
	}
	return found
}
