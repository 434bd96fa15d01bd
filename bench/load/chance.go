package main

import "sync/atomic"

const keyBytes = 14 // bench-00000000

// chance is a splitmix64 generator: the same seed gives the same keys and values, whatever the system.
type chance struct{ state uint64 }

func (c *chance) next() uint64 {
	c.state += 0x9e3779b97f4a7c15
	z := c.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// source gives keys and values to one client. Values are slices of one random block, at a random place.
type source struct {
	chance chance
	keys   uint64
	block  []byte
	size   int
	key    [keyBytes]byte
	taken  *atomic.Uint64 // nil: keys are chosen at random
}

const blockBytes = 1 << 16

func newBlock(seed uint64, size int) []byte {
	random := chance{state: seed}
	block := make([]byte, blockBytes+size)
	for at := range block {
		block[at] = byte(random.next() >> 56)
	}
	return block
}

func newSource(seed uint64, client int, keys uint64, block []byte, size int) *source {
	s := &source{chance: chance{state: seed<<20 ^ uint64(client)}, keys: keys, block: block, size: size}
	copy(s.key[:], "bench-")
	return s
}

// next is the key to use now; nil: all have been taken. It is good until the next call.
func (s *source) next() []byte {
	if s.taken == nil {
		return s.named(s.chance.next() % s.keys)
	}
	number := s.taken.Add(1) - 1
	if number >= s.keys {
		return nil
	}
	return s.named(number)
}

// take claims up to `count` keys of a fill: numbers from `first` on; none when all have been taken.
func (s *source) take(count uint64) (first, taken uint64) {
	first = s.taken.Add(count) - count
	if first >= s.keys {
		return 0, 0
	}
	return first, min(count, s.keys-first)
}

// named is the key of a number. It is good until the next call.
func (s *source) named(number uint64) []byte {
	for at := keyBytes - 1; at >= len("bench-"); at-- {
		s.key[at] = byte('0' + number%10)
		number /= 10
	}
	return s.key[:]
}

func (s *source) value() []byte {
	at := s.chance.next() % blockBytes
	return s.block[at : at+uint64(s.size)]
}
