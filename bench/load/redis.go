package main

import (
	"bytes"
	"fmt"
	"strconv"
)

// redis speaks RESP: SET and GET.
type redis struct {
	unopened
	op         string
	valueBytes int
}

var lineEnd = []byte("\r\n")

func (r *redis) request(buffer []byte, _ uint64, s *source) ([]byte, uint64) {
	key := s.next()
	if key == nil {
		return buffer, 0
	}
	if r.op == "get" {
		return appendBulk(append(buffer, "*2\r\n$3\r\nGET\r\n"...), key), 1
	}
	return appendBulk(appendBulk(append(buffer, "*3\r\n$3\r\nSET\r\n"...), key), s.value()), 1
}

func (r *redis) answer(data []byte) (reply, error) {
	end := bytes.Index(data, lineEnd)
	if end < 0 {
		return reply{}, nil
	}
	line, size := data[:end], end+len(lineEnd)
	switch {
	case line[0] == '+':
		return reply{size: size}, nil
	case line[0] == '-':
		return reply{size: size, failure: string(line[1:])}, nil
	case string(line) == "$-1":
		return reply{size: size, failure: "no such key"}, nil
	case line[0] == '$':
		length, err := strconv.Atoi(string(line[1:]))
		if err != nil || length != r.valueBytes {
			return reply{}, fmt.Errorf("%w: %q", errUnreadable, line)
		}
		if size += length + len(lineEnd); len(data) < size {
			return reply{}, nil
		}
		return reply{size: size}, nil
	}
	return reply{}, fmt.Errorf("%w: %q", errUnreadable, line)
}

func appendBulk(buffer, text []byte) []byte {
	buffer = strconv.AppendInt(append(buffer, '$'), int64(len(text)), 10)
	return append(append(append(buffer, lineEnd...), text...), lineEnd...)
}
