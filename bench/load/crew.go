package main

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	drainSeconds   = 15
	connectSeconds = 10
	secondsMax     = 24 * 3600
)

// window says when requests are sent and which answers count. Times are nanoseconds since the run's start.
type window struct {
	base   time.Time
	opens  int64
	closes atomic.Int64 // brought forward when the run is interrupted
}

func (w *window) now() int64 { return int64(time.Since(w.base)) }

// tally is what one goroutine saw; nobody else touches it until that has ended.
type tally struct {
	window   *window
	latency  histogram
	bySecond []uint64
	errors   map[string]uint64
}

func newTally(w *window) *tally { return &tally{window: w, errors: map[string]uint64{}} }

// done counts an answer that came at `now` to what was sent at `sent` and is worth `weight` operations.
func (t *tally) done(sent, now int64, weight uint64) {
	if now < t.window.opens || now >= t.window.closes.Load() {
		return
	}
	t.latency.add(uint64(now - sent))
	second := int((now - t.window.opens) / int64(time.Second))
	for len(t.bySecond) <= second {
		t.bySecond = append(t.bySecond, 0)
	}
	t.bySecond[second] += weight
}

func (t *tally) failed(why string) { t.errors[why]++ }

// worker sends requests until the window has closed or there is nothing left to send.
type worker interface {
	run(ctx context.Context, t *tally)
}

// crew is a system's connections.
type crew struct {
	workers []worker
	closers []func()
}

func (c *crew) close() {
	for _, each := range c.closers {
		each()
	}
}

// connect opens all connections, so that the clock starts when they stand.
func connect(ctx context.Context, s settings) (*crew, error) {
	ctx, cancel := context.WithTimeout(ctx, connectSeconds*time.Second)
	defer cancel()
	if s.system == "etcd" {
		return connectEtcd(ctx, s)
	}
	return connectSockets(ctx, s)
}

// plan makes each client's source. In a fill all clients take from one counter, so that each key is sent once.
type plan struct {
	block []byte
	taken *atomic.Uint64 // nil: keys are chosen at random
	s     settings
}

func newPlan(s settings) plan {
	p := plan{block: newBlock(s.seed, s.valueBytes), s: s}
	if s.op == "fill" {
		p.taken = new(atomic.Uint64)
	}
	return p
}

func (p plan) source(client int) *source {
	made := newSource(p.s.seed, client, p.s.keys, p.block, p.s.valueBytes)
	made.taken = p.taken
	return made
}

func run(ctx context.Context, s settings, c *crew) document {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &window{base: time.Now(), opens: int64(s.warmup * float64(time.Second))}
	w.closes.Store(w.opens + int64(s.seconds*float64(time.Second)))
	if s.op == "fill" {
		w.opens = 0
		w.closes.Store(secondsMax * int64(time.Second))
	}
	interrupted := context.AfterFunc(ctx, func() { w.closes.Store(min(w.closes.Load(), w.now())) })
	defer interrupted()

	tallies := make([]*tally, len(c.workers))
	var group sync.WaitGroup
	for at, each := range c.workers {
		tallies[at] = newTally(w)
		group.Add(1)
		go func() {
			defer group.Done()
			each.run(ctx, tallies[at])
		}()
	}
	ended := make(chan struct{})
	go func() { group.Wait(); close(ended) }()

	waitUntil(w, w.opens, ended)
	before, opened := cpuSeconds(), w.now()
	waitUntil(w, w.closes.Load(), ended)
	cpu, closed := cpuSeconds()-before, w.now()
	<-ended
	found := summed(s, tallies, float64(max(1, min(closed, w.closes.Load())-opened))/1e9)
	found.CPUSeconds = cpu
	found.EndedEarly = s.op != "fill" && closed < w.closes.Load()
	return found
}

func waitUntil(w *window, at int64, ended <-chan struct{}) {
	timer := time.NewTimer(time.Duration(at - w.now()))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ended:
	}
}

func summed(s settings, tallies []*tally, seconds float64) document {
	found := document{System: s.system, Op: s.op, Clients: s.clients, Depth: s.depth, Seconds: seconds}
	found.Errors = map[string]uint64{}
	var latency histogram
	for _, each := range tallies {
		latency.merge(&each.latency)
		for why, count := range each.errors {
			found.Errors[why] += count
		}
		for second, count := range each.bySecond {
			for len(found.BySecond) <= second {
				found.BySecond = append(found.BySecond, 0)
			}
			found.BySecond[second] += count
			found.Operations += count
		}
	}
	found.LatencyMs = latency.milliseconds()
	found.PerSecond = float64(found.Operations) / seconds
	return found
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}
