package redisstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutover/cutover/orchestrator/store"
)

const (
	// watchWait is how long one read of the stream waits for more.
	watchWait = time.Second
	// watchPage is how many Commits are read at once.
	watchPage = 64
)

// Watch implements store.Store. Each watch reads the stream on a connection of its own. It ends when the stream no longer
// has what comes next, or Redis went back. Redis being away does not end it: it goes on when it is back.
func (s *Store) Watch(ctx context.Context, from store.Revision) (<-chan store.Batch, error) {
	newest, err := s.Revision(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.begin(); err != nil {
		return nil, err
	}
	if from != newest {
		entries, err := s.client.XRange(ctx, s.key("changes"), id(from+1), id(from+1)).Result()
		if err != nil || len(entries) == 0 || from > newest {
			s.done.Done()
			if err != nil {
				return nil, s.failed("read the changes", err)
			}
			return nil, fmt.Errorf("watch from revision %d, the store is at %d: %w", from, newest, store.ErrCompacted)
		}
	}
	config := *s.config
	config.PoolSize, config.MinIdleConns = 1, 0
	client := redis.NewClient(&config)
	ctx, cancel := context.WithCancel(ctx)
	unlink := context.AfterFunc(s.ctx, cancel)
	// A read that waits is ended by closing its connection.
	hangup := context.AfterFunc(ctx, func() { _ = client.Close() })
	ch := make(chan store.Batch, 16)
	go func() {
		defer s.done.Done()
		defer cancel()
		defer unlink()
		defer close(ch)
		s.follow(ctx, client, from, ch)
		if hangup() {
			_ = client.Close()
		}
	}()
	return ch, nil
}

func id(rev store.Revision) string { return fmt.Sprintf("%d-0", rev) }

// follow sends what came after from, until ctx ends or the next Commit is not there any more.
func (s *Store) follow(ctx context.Context, client *redis.Client, from store.Revision, ch chan<- store.Batch) {
	for try := 0; ctx.Err() == nil; {
		streams, err := client.XRead(ctx, &redis.XReadArgs{
			Streams: []string{s.key("changes"), id(from)}, Count: watchPage, Block: watchWait,
		}).Result()
		switch {
		case errors.Is(err, redis.Nil):
			// Nothing came. A stream that went back would never say more.
			if _, err := s.Revision(ctx); errors.Is(err, store.ErrWentBack) {
				return
			}
			continue
		case err != nil:
			try++
			pause(ctx, try)
			continue
		}
		try = 0
		for _, m := range streams[0].Messages {
			b, err := batch(m)
			if err != nil || b.Revision != from+1 {
				return // it was trimmed before this reader got there
			}
			select {
			case ch <- b:
				from = b.Revision
			case <-ctx.Done():
				return
			}
		}
	}
}

// batch reads one entry of the stream, in which a key appears once. go-redis gives the fields as a map: they are put in
// order of key.
func batch(m redis.XMessage) (store.Batch, error) {
	n, _, _ := strings.Cut(m.ID, "-")
	rev, err := strconv.ParseUint(n, 10, 64)
	if err != nil {
		return store.Batch{}, fmt.Errorf("entry %q of the stream: %w", m.ID, err)
	}
	b := store.Batch{Revision: store.Revision(rev)}
	for name, value := range m.Values {
		v, _ := value.(string)
		switch {
		case strings.HasPrefix(name, "+"):
			b.Changes = append(b.Changes, store.Change{Record: store.Record{Key: name[1:], Value: []byte(v), Revision: b.Revision}})
		case strings.HasPrefix(name, "-"):
			b.Changes = append(b.Changes, store.Change{Record: store.Record{Key: name[1:], Revision: b.Revision}, Deleted: true})
		}
	}
	slices.SortFunc(b.Changes, func(x, y store.Change) int { return strings.Compare(x.Key, y.Key) })
	return b, nil
}
