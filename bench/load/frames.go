package main

import (
	"encoding/binary"
	"fmt"
)

// FenceKV's frames: 4 bytes of length, big-endian, and one canonical CBOR array. See docs/frames.md.

const frameBytes = 16_000_000

// Operations of a request.
const (
	opGet = 1
	opPut = 2
	opTxn = 4
)

// CBOR's major types.
const (
	majorUint  = 0
	majorBytes = 2
	majorText  = 3
	majorArray = 4
	majorMap   = 5
)

const cborNull = 0xf6

type frames struct {
	namespace string
	table     []byte // encoded
	op        string
	batch     uint64
	value     int
}

func newFrames(s settings) *frames {
	table := appendText(nil, s.table)
	return &frames{namespace: s.namespace, table: table, op: s.op, batch: s.batch, value: s.valueBytes}
}

func (f *frames) open() []byte {
	out := appendHead(make([]byte, 4), majorArray, 5)
	out = append(out, 0)
	out = appendText(out, "fencekv")
	out = append(appendHead(out, majorArray, 1), 1)
	out = appendText(out, f.namespace)
	return framed(appendText(out, "fencekv-load"), 0)
}

func (f *frames) opened(data []byte) (int, error) {
	body, err := frameBody(data)
	if body == nil || err != nil {
		return 0, err
	}
	in := cbor{data: body}
	in.array()
	if number := in.uint(); number != 0 || in.bad {
		return 0, fmt.Errorf("%w: the opening was not answered: % x", errUnreadable, body[:min(len(body), 40)])
	}
	if what := in.text(); string(what) != "fencekv" {
		return 0, fmt.Errorf("%w: %s: %s", errUnreadable, what, in.text())
	}
	if version := in.uint(); version != 1 || in.bad {
		return 0, fmt.Errorf("%w: version %d", errUnreadable, version)
	}
	return 4 + len(body), nil
}

func (f *frames) request(buffer []byte, number uint64, s *source) ([]byte, uint64) {
	if f.batch > 1 {
		return f.fill(buffer, number, s)
	}
	key := s.next()
	if key == nil {
		return buffer, 0
	}
	begin := len(buffer)
	buffer = append(buffer, 0, 0, 0, 0)
	if f.op == "get" {
		buffer = f.head(buffer, 5, number, opGet)
		return framed(appendText(buffer, key), begin), 1
	}
	buffer = f.head(buffer, 7, number, opPut)
	buffer = appendText(buffer, key)
	value := s.value()
	buffer = append(appendHead(buffer, majorBytes, uint64(len(value))), value...)
	return framed(append(buffer, cborNull), begin), 1
}

// fill is a transaction of many puts.
func (f *frames) fill(buffer []byte, number uint64, s *source) ([]byte, uint64) {
	first, count := s.take(f.batch)
	if count == 0 {
		return buffer, 0
	}
	begin := len(buffer)
	buffer = append(buffer, 0, 0, 0, 0)
	buffer = f.head(buffer, 7, number, opTxn)
	buffer = appendHead(buffer, majorArray, 0)
	buffer = appendHead(buffer, majorArray, count)
	for at := range count {
		buffer = append(appendHead(buffer, majorArray, 3), 0)
		buffer = appendText(buffer, s.named(first+at))
		value := s.value()
		buffer = append(appendHead(buffer, majorBytes, uint64(len(value))), value...)
	}
	return framed(appendHead(buffer, majorArray, 0), begin), count
}

func (f *frames) head(buffer []byte, members, number, op uint64) []byte {
	buffer = appendHead(buffer, majorArray, members)
	buffer = appendHead(buffer, majorUint, number)
	buffer = appendHead(buffer, majorUint, op)
	return append(append(buffer, f.table...), cborNull)
}

func (f *frames) answer(data []byte) (reply, error) {
	body, err := frameBody(data)
	if body == nil || err != nil {
		return reply{}, err
	}
	in := cbor{data: body}
	in.array()
	found := reply{size: 4 + len(body), number: in.uint()}
	if found.number == 0 {
		return reply{}, fmt.Errorf("%w: %s: %s", errUnreadable, in.text(), in.text())
	}
	if in.uint() != 0 {
		found.failure = string(in.text())
	} else if f.op == "get" {
		in.skip() // partition
		in.skip() // token
		in.skip() // epoch
		if value := in.bytes(); len(value) != f.value {
			found.failure = fmt.Sprintf("a value of %d bytes", len(value))
		}
	}
	if in.bad {
		return reply{}, fmt.Errorf("%w: % x", errUnreadable, body[:min(len(body), 40)])
	}
	return found, nil
}

// frameBody is the body of the frame at the front of `data`; nil: it is not whole yet.
func frameBody(data []byte) ([]byte, error) {
	if len(data) < 4 {
		return nil, nil
	}
	size := binary.BigEndian.Uint32(data)
	if size < 1 || size > frameBytes {
		return nil, fmt.Errorf("%w: a frame of %d bytes", errUnreadable, size)
	}
	if len(data)-4 < int(size) {
		return nil, nil
	}
	return data[4 : 4+size], nil
}

// framed sets the length of the frame that began at `begin`.
func framed(buffer []byte, begin int) []byte {
	binary.BigEndian.PutUint32(buffer[begin:], uint32(len(buffer)-begin-4))
	return buffer
}

func appendHead(buffer []byte, major byte, value uint64) []byte {
	major <<= 5
	switch {
	case value < 24:
		return append(buffer, major|byte(value))
	case value < 1<<8:
		return append(buffer, major|24, byte(value))
	case value < 1<<16:
		return binary.BigEndian.AppendUint16(append(buffer, major|25), uint16(value))
	case value < 1<<32:
		return binary.BigEndian.AppendUint32(append(buffer, major|26), uint32(value))
	default:
		return binary.BigEndian.AppendUint64(append(buffer, major|27), value)
	}
}

func appendText[T string | []byte](buffer []byte, text T) []byte {
	return append(appendHead(buffer, majorText, uint64(len(text))), text...)
}

// cbor reads from a body; once something does not fit it is bad for good and gives zeros.
type cbor struct {
	data []byte
	bad  bool
}

func (c *cbor) head() (major byte, value uint64) {
	if c.bad || len(c.data) == 0 {
		c.bad = true
		return 0, 0
	}
	first := c.data[0]
	major, value = first>>5, uint64(first&31)
	c.data = c.data[1:]
	if value < 24 {
		return major, value
	}
	size := 1 << (value - 24)
	if value > 27 || len(c.data) < size {
		c.bad = true
		return 0, 0
	}
	value = 0
	for _, each := range c.data[:size] {
		value = value<<8 | uint64(each)
	}
	c.data = c.data[size:]
	return major, value
}

func (c *cbor) wanted(major byte) uint64 {
	found, value := c.head()
	if found != major {
		c.bad = true
		return 0
	}
	return value
}

func (c *cbor) array() uint64 { return c.wanted(majorArray) }
func (c *cbor) uint() uint64  { return c.wanted(majorUint) }
func (c *cbor) text() []byte  { return c.slice(c.wanted(majorText)) }
func (c *cbor) bytes() []byte { return c.slice(c.wanted(majorBytes)) }

func (c *cbor) slice(size uint64) []byte {
	if uint64(len(c.data)) < size {
		c.bad = true
		return nil
	}
	found := c.data[:size]
	c.data = c.data[size:]
	return found
}

// skip passes over one item of any kind.
func (c *cbor) skip() {
	for left := uint64(1); left > 0 && !c.bad; left-- {
		major, value := c.head()
		switch major {
		case majorBytes, majorText:
			c.slice(value)
		case majorArray:
			left += value
		case majorMap:
			left += 2 * value
		}
	}
}
