package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

// The stubs answer every request at once and validly, and keep nothing: what a run reaches against one is the
// generator's own ceiling (a low one: the stub takes its share of the machine). A stub prints its address and ends with
// its standard input.

// replies appends the answers to all whole requests in `data` and says how many bytes those were.
type replies func(data, out []byte) (rest int, answers []byte, err error)

func serveStub(s settings) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if s.system == "etcd" {
		server := grpc.NewServer()
		pb.RegisterKVServer(server, &stubKV{value: make([]byte, s.valueBytes)})
		return server.Serve(listener)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go stubConnection(conn, stubOf(s))
	}
}

func stubOf(s settings) replies {
	switch s.system {
	case "http", "gateway":
		return stubHTTP(s)
	case "redis":
		return stubRedis(s)
	default:
		return stubFrames(s)
	}
}

func stubConnection(conn net.Conn, answer replies) {
	defer conn.Close()
	in, out := make([]byte, readBytes), []byte(nil)
	have := 0
	for {
		if have == len(in) {
			in = append(in, make([]byte, len(in))...)
		}
		count, err := conn.Read(in[have:])
		if err != nil {
			return
		}
		have += count
		used, answers, err := answer(in[:have], out[:0])
		if err != nil {
			fmt.Fprintln(os.Stderr, "stub:", err)
			return
		}
		out = answers
		have = copy(in, in[used:have])
		if _, err := conn.Write(out); len(out) > 0 && err != nil {
			return
		}
	}
}

func stubFrames(s settings) replies {
	value := make([]byte, s.valueBytes)
	var txid uint64
	return func(data, out []byte) (int, []byte, error) {
		used := 0
		for {
			body, err := frameBody(data[used:])
			if err != nil || body == nil {
				return used, out, err
			}
			used += 4 + len(body)
			in := cbor{data: body}
			in.array()
			begin := len(out)
			out = append(out, 0, 0, 0, 0)
			if number := in.uint(); number == 0 {
				out = append(appendText(append(appendHead(out, majorArray, 5), 0), "fencekv"), 1)
				out = framed(appendHead(appendText(out, "stub-0"), majorMap, 0), begin)
			} else {
				txid++
				out = framed(stubAnswer(out, number, in.uint(), txid, value), begin)
			}
			if in.bad {
				return used, out, errUnreadable
			}
		}
	}
}

func stubAnswer(out []byte, number, op, txid uint64, value []byte) []byte {
	members := map[uint64]uint64{opGet: 7, opPut: 7, opTxn: 9}[op]
	out = appendHead(appendHead(out, majorArray, members), majorUint, number)
	out = appendText(append(out, 0), "bench-0")
	out = appendHead(append(appendHead(out, majorArray, 2), 1), majorUint, txid) // token
	out = append(out, 1)                                                         // epoch
	version := appendHead([]byte{majorArray<<5 | 2, 1}, majorUint, txid)
	switch op {
	case opGet:
		out = append(appendHead(out, majorBytes, uint64(len(value))), value...)
		return append(out, version...)
	case opTxn:
		out = appendHead(append(out, 0xf5), majorArray, 0)
	}
	return append(append(out, version...), 0)
}

func stubHTTP(s settings) replies {
	written := httpAnswer(`{"version":"1.1000000","token":"1.1000000","partition":"bench-0"}`)
	read := httpAnswer(strings.Repeat("v", s.valueBytes))
	if s.system == "gateway" {
		read = httpAnswer(`{"kvs":[{"value":"` + strings.Repeat("v", s.valueBytes*4/3) + `"}]}`)
	}
	return func(data, out []byte) (int, []byte, error) {
		used := 0
		for {
			size, head, _, err := message(data[used:])
			if size == 0 || err != nil {
				return used, out, err
			}
			used += size
			if bytes.HasPrefix(head, []byte("GET")) || bytes.HasPrefix(head, []byte("POST /v3/kv/range")) {
				out = append(out, read...)
			} else {
				out = append(out, written...)
			}
		}
	}
}

func httpAnswer(body string) string {
	return "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(body)) +
		"\r\n\r\n" + body
}

func stubRedis(s settings) replies {
	found := appendBulk(nil, make([]byte, s.valueBytes))
	return func(data, out []byte) (int, []byte, error) {
		used := 0
		for {
			size := respBytes(data[used:])
			if size == 0 {
				return used, out, nil
			}
			if data[used+1] == '2' {
				out = append(out, found...)
			} else {
				out = append(out, "+OK\r\n"...)
			}
			used += size
		}
	}
}

// respBytes is the size of the command at the front of `data`; 0: it is not whole yet.
func respBytes(data []byte) int {
	end := bytes.Index(data, lineEnd)
	if end < 0 {
		return 0
	}
	size := end + 2
	parts, _ := strconv.Atoi(string(data[1:end]))
	for range parts {
		end = bytes.Index(data[min(size, len(data)):], lineEnd)
		if end < 0 {
			return 0
		}
		length, _ := strconv.Atoi(string(data[size+1 : size+end]))
		size += end + 2 + length + 2
	}
	if size > len(data) {
		return 0
	}
	return size
}

type stubKV struct {
	pb.UnimplementedKVServer
	value []byte
}

func (k *stubKV) Put(context.Context, *pb.PutRequest) (*pb.PutResponse, error) {
	return &pb.PutResponse{Header: &pb.ResponseHeader{}}, nil
}

func (k *stubKV) Range(_ context.Context, asked *pb.RangeRequest) (*pb.RangeResponse, error) {
	found := []*mvccpb.KeyValue{{Key: asked.Key, Value: k.value, Version: 1}}
	return &pb.RangeResponse{Header: &pb.ResponseHeader{}, Kvs: found, Count: 1}, nil
}
