// Load drives one system in a closed loop and prints what came of it as one JSON document.
//
//	load run  -system frames -address 127.0.0.1:8080 -op put -clients 64 -seconds 4
//	load stub -system frames        # a server that answers at once: the generator's own ceiling
//
// Every system is driven in the same way: `clients` connections, `depth` requests under way on each, the next one
// sent when an answer has come. Keys and values come from a seeded generator and are the same for all systems.
//
// Only what completed within the window is counted; failures count wherever they happen.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// settings is what a run does.
type settings struct {
	system     string
	addresses  []string
	op         string
	clients    int
	depth      int
	seconds    float64
	warmup     float64
	keys       uint64
	valueBytes int
	seed       uint64
	batch      uint64
	table      string
	namespace  string
}

var systems = []string{"frames", "http", "etcd", "gateway", "redis"}

func main() {
	if len(os.Args) < 2 || (os.Args[1] != "run" && os.Args[1] != "stub") {
		fmt.Fprintln(os.Stderr, "usage: load run|stub [options]; load run -h lists them")
		os.Exit(2)
	}
	chosen, err := parse(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	}
	if os.Args[1] == "stub" {
		err = serveStub(chosen)
	} else {
		err = drive(chosen)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func parse(command string, arguments []string) (settings, error) {
	var s settings
	var address string
	flags := flag.NewFlagSet("load "+command, flag.ExitOnError)
	flags.StringVar(&s.system, "system", "frames", strings.Join(systems, ", "))
	flags.StringVar(&address, "address", "", "host:port; several, separated by commas, are taken in turn")
	flags.StringVar(&s.op, "op", "put", "put, get, or fill (every key once)")
	flags.IntVar(&s.clients, "clients", 64, "connections")
	flags.IntVar(&s.depth, "depth", 1, "requests under way on each connection")
	flags.Float64Var(&s.seconds, "seconds", 4, "length of the window")
	flags.Float64Var(&s.warmup, "warmup", 1, "seconds before the window")
	flags.Uint64Var(&s.keys, "keys", 10_000, "number of keys")
	flags.IntVar(&s.valueBytes, "value-bytes", 256, "size of a value")
	flags.Uint64Var(&s.seed, "seed", 1, "of keys and values")
	flags.Uint64Var(&s.batch, "batch", 1, "puts of one transaction in a fill over frames")
	flags.StringVar(&s.table, "table", "bench", "FenceKV's table")
	flags.StringVar(&s.namespace, "namespace", "sample", "FenceKV's namespace")
	if err := flags.Parse(arguments); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	s.addresses = strings.Split(address, ",")
	return s, s.check(command)
}

func (s settings) check(command string) error {
	if !contains(systems, s.system) {
		return fmt.Errorf("unknown system %q", s.system)
	}
	if !contains([]string{"put", "get", "fill"}, s.op) {
		return fmt.Errorf("unknown op %q", s.op)
	}
	if command == "run" && s.addresses[0] == "" {
		return fmt.Errorf("-address is missing")
	}
	if s.depth > 1 && (s.system == "http" || s.system == "gateway") {
		return fmt.Errorf("-depth goes with frames, etcd and redis: HTTP/1.1 is not pipelined here")
	}
	if s.clients < 1 || s.clients > 4096 || s.depth < 1 || s.depth > 1024 {
		return fmt.Errorf("want 1 to 4096 clients and a depth of 1 to 1024")
	}
	if s.keys < 1 || s.keys > 1e8 || s.valueBytes < 1 || s.valueBytes > 1<<20 {
		return fmt.Errorf("want 1 to 10^8 keys and values of 1 to 2^20 bytes")
	}
	if s.batch < 1 || s.batch > 1000 || (s.batch > 1 && (s.system != "frames" || s.op != "fill")) {
		return fmt.Errorf("-batch is 1 to 1000 and goes with a fill over frames")
	}
	if s.seconds <= 0 || s.warmup < 0 {
		return fmt.Errorf("want a window of more than 0 seconds")
	}
	return nil
}

func contains(all []string, one string) bool {
	for _, each := range all {
		if each == one {
			return true
		}
	}
	return false
}

// document is what a run prints.
type document struct {
	System      string             `json:"system"`
	Op          string             `json:"op"`
	Clients     int                `json:"clients"`
	Depth       int                `json:"depth"`
	Seconds     float64            `json:"seconds"`
	Operations  uint64             `json:"operations"`
	PerSecond   float64            `json:"per_second"`
	LatencyMs   map[string]float64 `json:"latency_ms"`
	Errors      map[string]uint64  `json:"errors"`
	CPUSeconds  float64            `json:"cpu_seconds"`
	BySecond    []uint64           `json:"by_second"`
	EndedEarly  bool               `json:"ended_early"`
	ConnectedMs float64            `json:"connected_ms"`
}

func drive(s settings) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	began := time.Now()
	crew, err := connect(ctx, s)
	if err != nil {
		return fmt.Errorf("%s at %s: %w", s.system, strings.Join(s.addresses, ","), err)
	}
	defer crew.close()
	connected := time.Since(began)
	found := run(ctx, s, crew)
	found.ConnectedMs = float64(connected.Microseconds()) / 1e3
	return json.NewEncoder(os.Stdout).Encode(found)
}
