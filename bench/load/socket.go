package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

const readBytes = 64 << 10

// wire is how one system's requests and answers look. One of it belongs to one connection.
type wire interface {
	// open is sent first and answered before anything else; nil: nothing is.
	open() []byte
	// opened reads the answer to `open`; size 0: it is not whole yet.
	opened(data []byte) (size int, err error)
	// request appends the next request and says how many operations it is; 0: there is none left.
	request(buffer []byte, number uint64, s *source) ([]byte, uint64)
	// answer reads the answer at the front of `data`; size 0: it is not whole yet.
	answer(data []byte) (reply, error)
}

// reply is what an answer said.
type reply struct {
	size    int
	number  uint64 // 0: answers come in the order of the requests
	failure string // empty: it is the answer that was wanted
}

func wireOf(s settings) wire {
	switch s.system {
	case "http":
		return newPlainHTTP(s)
	case "gateway":
		return newGateway(s)
	case "redis":
		return &redis{op: s.op, valueBytes: s.valueBytes}
	default:
		return newFrames(s)
	}
}

type pending struct {
	number, weight uint64
	sent           int64
}

// socket is one connection in a closed loop with up to `depth` requests under way.
type socket struct {
	conn    net.Conn
	wire    wire
	source  *source
	depth   int
	out, in []byte
	have    int
	ring    []pending // by number; a power of two
	sent    uint64    // number of the last request
	heard   uint64    // number of the last answer, where they come in order
	open    int       // requests under way
	dry     bool      // nothing more is sent
}

const ringSlots = 1 << 12 // of requests under way and of those that overtook them

func connectSockets(ctx context.Context, s settings) (*crew, error) {
	made := &crew{}
	shared := newPlan(s)
	var dialer net.Dialer
	for client := range s.clients {
		conn, err := dialer.DialContext(ctx, "tcp", s.addresses[client%len(s.addresses)])
		if err != nil {
			made.close()
			return nil, err
		}
		made.closers = append(made.closers, func() { _ = conn.Close() })
		one := &socket{conn: conn, wire: wireOf(s), source: shared.source(client), depth: s.depth}
		one.in, one.ring = make([]byte, readBytes), make([]pending, max(ringSlots, s.depth))
		if err := one.greet(ctx); err != nil {
			made.close()
			return nil, err
		}
		made.workers = append(made.workers, one)
	}
	return made, nil
}

func (c *socket) greet(ctx context.Context) error {
	hello := c.wire.open()
	if hello == nil {
		return nil
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.conn.SetDeadline(deadline)
		defer c.conn.SetDeadline(time.Time{})
	}
	if _, err := c.conn.Write(hello); err != nil {
		return err
	}
	for {
		if err := c.read(); err != nil {
			return err
		}
		size, err := c.wire.opened(c.in[:c.have])
		if err != nil {
			return err
		}
		if size > 0 {
			c.have = copy(c.in, c.in[size:c.have])
			return nil
		}
	}
}

func (c *socket) run(ctx context.Context, t *tally) {
	defer context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Now()) })()
	_ = c.conn.SetReadDeadline(t.window.base.Add(time.Duration(t.window.closes.Load()) + drainSeconds*time.Second))
	for range c.depth {
		c.append(t)
	}
	for c.open > 0 {
		if len(c.out) > 0 {
			if _, err := c.conn.Write(c.out); err != nil {
				c.lost(t, err)
				return
			}
			c.out = c.out[:0]
		}
		if err := c.read(); err != nil {
			c.lost(t, err)
			return
		}
		if err := c.answers(t); err != nil {
			c.lost(t, err)
			return
		}
	}
}

// append puts the next request into the buffer to send, unless there is none left.
func (c *socket) append(t *tally) {
	now := t.window.now()
	if c.dry || now >= t.window.closes.Load() {
		c.dry = true
		return
	}
	slot := &c.ring[(c.sent+1)%uint64(len(c.ring))]
	if slot.number != 0 {
		t.failed("overtaken too often")
		return
	}
	var weight uint64
	c.out, weight = c.wire.request(c.out, c.sent+1, c.source)
	if weight == 0 {
		c.dry = true
		return
	}
	c.sent++
	c.open++
	*slot = pending{number: c.sent, weight: weight, sent: now}
}

// answers takes all whole answers from what was read, and prepares as many new requests.
func (c *socket) answers(t *tally) error {
	at := 0
	for at < c.have {
		found, err := c.wire.answer(c.in[at:c.have])
		if err != nil {
			return err
		}
		if found.size == 0 {
			break
		}
		at += found.size
		if found.number == 0 {
			c.heard++
			found.number = c.heard
		}
		slot := &c.ring[found.number%uint64(len(c.ring))]
		if slot.number != found.number {
			return fmt.Errorf("an answer to %d, which is not under way", found.number)
		}
		if found.failure != "" {
			t.failed(found.failure)
		} else {
			t.done(slot.sent, t.window.now(), slot.weight)
		}
		slot.number = 0
		c.open--
		c.append(t)
	}
	if at > 0 {
		c.have = copy(c.in, c.in[at:c.have])
	}
	return nil
}

func (c *socket) read() error {
	if c.have == len(c.in) {
		c.in = append(c.in, make([]byte, len(c.in))...)
	}
	count, err := c.conn.Read(c.in[c.have:])
	c.have += count
	return err
}

// lost counts what was under way when the connection broke.
func (c *socket) lost(t *tally, err error) {
	why := "connection lost"
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		why = "no answer"
	case errors.Is(err, errUnreadable):
		why = err.Error()
	}
	t.errors[why] += uint64(max(1, c.open))
}

// errUnreadable is the base of what a wire says of an answer that it cannot read.
var errUnreadable = errors.New("unreadable answer")
