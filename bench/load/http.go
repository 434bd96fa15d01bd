package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strconv"
)

// HTTP/1.1 as far as the systems use it: a status line, Content-Length, a body. Everything else about a general client
// would be paid for in the figures.

const headBytesMax = 16 << 10

var (
	headEnd     = []byte("\r\n\r\n")
	lengthNames = [][]byte{[]byte("\r\nContent-Length: "), []byte("\r\ncontent-length: ")}
)

// message splits the message at the front of `data`; size 0: it is not whole yet.
func message(data []byte) (size int, head, body []byte, err error) {
	end := bytes.Index(data, headEnd)
	if end < 0 {
		if len(data) > headBytesMax {
			return 0, nil, nil, fmt.Errorf("%w: no end of the head", errUnreadable)
		}
		return 0, nil, nil, nil
	}
	head = data[:end+2]
	length := 0
	for _, name := range lengthNames {
		if at := bytes.Index(head, name); at >= 0 {
			rest := head[at+len(name):]
			length, err = strconv.Atoi(string(rest[:bytes.IndexByte(rest, '\r')]))
			if err != nil {
				return 0, nil, nil, fmt.Errorf("%w: Content-Length", errUnreadable)
			}
			break
		}
	}
	size = end + len(headEnd) + length
	if len(data) < size {
		return 0, nil, nil, nil
	}
	return size, head, data[end+len(headEnd) : size], nil
}

// answered reads an answer's status and body.
func answered(data []byte) (found reply, body []byte, err error) {
	size, head, body, err := message(data)
	if size == 0 || err != nil {
		return reply{}, nil, err
	}
	if len(head) < 12 || !bytes.HasPrefix(head, []byte("HTTP/1.1 ")) {
		return reply{}, nil, fmt.Errorf("%w: %q", errUnreadable, head[:min(len(head), 40)])
	}
	found.size = size
	if status := string(head[9:12]); status != "200" {
		found.failure = "status " + status
	}
	return found, body, nil
}

type unopened struct{}

func (unopened) open() []byte               { return nil }
func (unopened) opened([]byte) (int, error) { return 0, nil }

// plainHTTP is FenceKV's: PUT and GET of a key.
type plainHTTP struct {
	unopened
	get         bool
	value       int
	before      string
	afterwards  string
	valueLength string
}

func newPlainHTTP(s settings) *plainHTTP {
	method := "PUT"
	if s.op == "get" {
		method = "GET"
	}
	host := " HTTP/1.1\r\nHost: " + s.addresses[0] + "\r\n"
	return &plainHTTP{
		get:         s.op == "get",
		value:       s.valueBytes,
		before:      method + " /v1/" + s.namespace + "/" + s.table + "/keys/",
		afterwards:  host,
		valueLength: "Content-Type: application/octet-stream\r\nContent-Length: " + strconv.Itoa(s.valueBytes) + "\r\n\r\n",
	}
}

func (h *plainHTTP) request(buffer []byte, _ uint64, s *source) ([]byte, uint64) {
	key := s.next()
	if key == nil {
		return buffer, 0
	}
	buffer = append(append(append(buffer, h.before...), key...), h.afterwards...)
	if h.get {
		return append(buffer, "\r\n"...), 1
	}
	return append(append(buffer, h.valueLength...), s.value()...), 1
}

func (h *plainHTTP) answer(data []byte) (reply, error) {
	found, body, err := answered(data)
	if h.get && found.size > 0 && found.failure == "" && len(body) != h.value {
		found.failure = fmt.Sprintf("a value of %d bytes", len(body))
	}
	return found, err
}

// gateway is etcd's JSON gateway.
type gateway struct {
	unopened
	get  bool
	host string
	body []byte
}

func newGateway(s settings) *gateway { return &gateway{get: s.op == "get", host: s.addresses[0]} }

func (g *gateway) request(buffer []byte, _ uint64, s *source) ([]byte, uint64) {
	key := s.next()
	if key == nil {
		return buffer, 0
	}
	path := "put"
	g.body = base64.StdEncoding.AppendEncode(append(g.body[:0], `{"key":"`...), key)
	if g.get {
		path = "range"
	} else {
		g.body = base64.StdEncoding.AppendEncode(append(g.body, `","value":"`...), s.value())
	}
	g.body = append(g.body, `"}`...)
	buffer = append(append(append(buffer, "POST /v3/kv/"...), path...), " HTTP/1.1\r\nHost: "...)
	buffer = append(append(buffer, g.host...), "\r\nContent-Type: application/json\r\nContent-Length: "...)
	buffer = append(strconv.AppendInt(buffer, int64(len(g.body)), 10), headEnd...)
	return append(buffer, g.body...), 1
}

func (g *gateway) answer(data []byte) (reply, error) {
	found, body, err := answered(data)
	if g.get && found.size > 0 && found.failure == "" && !bytes.Contains(body, []byte(`"value"`)) {
		found.failure = "no such key"
	}
	return found, err
}
