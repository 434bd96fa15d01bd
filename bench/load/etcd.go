package main

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/status"
)

// etcd over gRPC with its own client: one client connection for each of `clients`, `depth` goroutines on it.

type etcdWorker struct {
	client *clientv3.Client
	source *source
	get    bool
}

func connectEtcd(ctx context.Context, s settings) (*crew, error) {
	made := &crew{}
	shared := newPlan(s)
	for client := range s.clients {
		one, err := clientv3.New(clientv3.Config{
			Endpoints:   []string{s.addresses[client%len(s.addresses)]},
			DialTimeout: connectSeconds * time.Second,
			Logger:      zap.NewNop(),
		})
		if err != nil {
			made.close()
			return nil, err
		}
		made.closers = append(made.closers, func() { _ = one.Close() })
		// The connection is made by the first request only.
		if _, err := one.Get(ctx, "bench", clientv3.WithCountOnly()); err != nil {
			made.close()
			return nil, err
		}
		for under := range s.depth {
			source := shared.source(client*s.depth + under)
			made.workers = append(made.workers, &etcdWorker{client: one, source: source, get: s.op == "get"})
		}
	}
	return made, nil
}

func (e *etcdWorker) run(ctx context.Context, t *tally) {
	limit := time.Duration(t.window.closes.Load()) + drainSeconds*time.Second
	ctx, cancel := context.WithDeadline(ctx, t.window.base.Add(limit))
	defer cancel()
	for {
		now := t.window.now()
		if now >= t.window.closes.Load() || ctx.Err() != nil {
			return
		}
		key := e.source.next()
		if key == nil {
			return
		}
		if why := e.one(ctx, key); why != "" {
			t.failed(why)
			continue
		}
		t.done(now, t.window.now(), 1)
	}
}

// one carries out one operation and says what went wrong with it.
func (e *etcdWorker) one(ctx context.Context, key []byte) string {
	if !e.get {
		_, err := e.client.Put(ctx, string(key), string(e.source.value()))
		return reason(err)
	}
	found, err := e.client.Get(ctx, string(key)) // linearizable, as etcd's client has it
	if err != nil {
		return reason(err)
	}
	if len(found.Kvs) != 1 || len(found.Kvs[0].Value) != e.source.size {
		return "no such value"
	}
	return ""
}

func reason(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer"
	case errors.Is(err, context.Canceled):
		return "connection lost"
	}
	return status.Convert(err).Code().String()
}
