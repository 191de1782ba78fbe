package consulstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/internal/consulclient"
	"github.com/cutover/cutover/orchestrator/store"
)

// Options of Open. Prefix is required.
type Options struct {
	// Client says how to reach Consul.
	Client consulclient.Options
	// Prefix is where the keys are, without a slash at either end: Prefix(cluster).
	Prefix string
	// WithoutSession permits a Fence that names no session: then only the epoch fences. For tools and tests; a leader's
	// writes are never without.
	WithoutSession bool
	// WriteTimeout bounds the attempts to carry out a Commit; after it its outcome is unknown. Default 20 s, which is
	// longer than Consul needs for a new leader of its own.
	WriteTimeout time.Duration
	// CallTimeout bounds one call of Consul. Default 5 s.
	CallTimeout time.Duration
	// History is how many writes Watch can replay. All users of one Prefix must use the same. Default 256.
	History int
}

// Store is a store.Store in Consul. Safe for concurrent use.
type Store struct {
	client    *api.Client
	closeIdle func()
	opts      Options

	queue   *store.Queue
	closing chan struct{}
	closed  sync.Once
	mu      sync.Mutex     // orders the beginning of a watch and Close
	done    sync.WaitGroup // the writer and the watches

	reads  context.Context // ends with Close
	writes context.Context // ends closeGrace after Close
	stop   [2]context.CancelFunc

	known snapshot // owned by the writer
}

var _ store.Store = (*Store)(nil)

// closeGrace is how long Close waits for the outcome of a write that was sent.
const closeGrace = 2 * time.Second

// Open connects to the Consul agent at address (see consulclient.New) and checks the format of what is there.
func Open(ctx context.Context, address string, opts Options) (*Store, error) {
	if opts.Prefix == "" || strings.Trim(opts.Prefix, "/") != opts.Prefix {
		return nil, fmt.Errorf("prefix %q of the keys in Consul: want some, without a slash at its ends", opts.Prefix)
	}
	opts.WriteTimeout = cmp.Or(opts.WriteTimeout, 20*time.Second)
	opts.CallTimeout = cmp.Or(opts.CallTimeout, 5*time.Second)
	opts.History = cmp.Or(opts.History, 256)
	client, closeIdle, err := consulclient.New(address, opts.Client)
	if err != nil {
		return nil, err
	}
	s := &Store{
		client: client, closeIdle: closeIdle, opts: opts,
		closing: make(chan struct{}),
	}
	s.queue = store.NewQueue("consul", s.closing)
	s.reads, s.stop[0] = context.WithCancel(context.Background())
	s.writes, s.stop[1] = context.WithCancel(context.Background())
	s.done.Go(s.write)
	if _, err := s.Revision(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the state in Consul at %s: %w", address, err), s.Close())
	}
	return s, nil
}

// Commit implements store.Store. A ctx that ends while the write is on its way is not heard: the outcome is known soon,
// and an unknown one would end the caller's term.
func (s *Store) Commit(ctx context.Context, fence store.Fence, ops ...store.Op) (store.Revision, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	if fence.Session == "" && !s.opts.WithoutSession {
		return 0, errors.New("nothing was written: the fence names no Consul session, so nothing proves that the writer leads")
	}
	return s.queue.Commit(ctx, fence, ops, 0) // the writer answers within WriteTimeout
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	ctx, end, err := s.reading(ctx)
	if err != nil {
		return store.Record{}, err
	}
	defer end()
	pair, _, err := s.client.KV().Get(s.recordKey(key), s.consistent(ctx))
	switch {
	case err != nil:
		return store.Record{}, s.readError("read "+key, err)
	case pair == nil:
		return store.Record{}, fmt.Errorf("%q: %w", key, store.ErrNotFound)
	}
	return record(key, pair.Value)
}

// List implements store.Store. Consul has no pages: each call reads all that begins with prefix.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) ([]store.Record, error) {
	ctx, end, err := s.reading(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	pairs, _, err := s.client.KV().List(s.recordKey(prefix), s.consistent(ctx))
	if err != nil {
		return nil, s.readError("list "+prefix, err)
	}
	var out []store.Record
	for _, pair := range pairs { // in order of key
		key := strings.TrimPrefix(pair.Key, s.recordKey(""))
		if key <= after {
			continue
		}
		rec, err := record(key, pair.Value)
		if err != nil {
			return nil, err
		}
		if out = append(out, rec); len(out) == limit {
			break
		}
	}
	return out, nil
}

func record(key string, value []byte) (store.Record, error) {
	rev, value, err := unseal(value)
	if err != nil {
		return store.Record{}, fmt.Errorf("record %q in Consul: %w", key, err)
	}
	return store.Record{Key: key, Value: value, Revision: rev}, nil
}

// Revision implements store.Store.
func (s *Store) Revision(ctx context.Context) (store.Revision, error) {
	ctx, end, err := s.reading(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	h, _, err := s.readHead(s.consistent(ctx))
	return h.Revision, err
}

// readHead returns the head and Consul's index of the answer; the zero head if nothing was ever written.
func (s *Store) readHead(q *api.QueryOptions) (head, uint64, error) {
	pair, meta, err := s.client.KV().Get(s.headKey(), q)
	if err != nil {
		return head{}, 0, s.readError("read the head", err)
	}
	if pair == nil {
		return head{}, meta.LastIndex, nil
	}
	h, err := s.decodeHead(pair.Value)
	return h, meta.LastIndex, err
}

// reading returns a context that ends with ctx, after CallTimeout, or when the Store is closed.
func (s *Store) reading(ctx context.Context) (context.Context, func(), error) {
	if s.isClosed() {
		return nil, nil, store.ErrClosed
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout)
	unlink := context.AfterFunc(s.reads, cancel)
	return ctx, func() { unlink(); cancel() }, nil
}

func (s *Store) consistent(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)
}

func (s *Store) readError(what string, err error) error {
	if s.isClosed() {
		return store.ErrClosed
	}
	return fmt.Errorf("consul: %s: %w", what, err)
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.closed.Do(func() {
		s.mu.Lock()
		close(s.closing)
		s.mu.Unlock()
		s.stop[0]()
		grace := time.AfterFunc(closeGrace, s.stop[1])
		s.done.Wait()
		grace.Stop()
		s.stop[1]()
		s.closeIdle()
	})
	return nil
}

func (s *Store) isClosed() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}
