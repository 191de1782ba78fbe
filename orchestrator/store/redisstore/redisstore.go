package redisstore

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutover/cutover/orchestrator/store"
)

// Options of Open. Cluster is required.
type Options struct {
	// Cluster names the cluster; it is a part of every key.
	Cluster string
	// TLS is for rediss; nil means the system's roots and no client certificate.
	TLS *tls.Config
	// WriteTimeout bounds the attempts to carry out a Commit; after it its outcome is unknown. Default 20 s.
	WriteTimeout time.Duration
	// CallTimeout bounds one call of Redis. Default 5 s.
	CallTimeout time.Duration
	// History and HistoryBytes bound what Watch can replay: whichever is reached first. Defaults 8192 Commits, 64 MiB.
	History      int
	HistoryBytes int64
}

// Store is a store.Store in Redis. Safe for concurrent use.
type Store struct {
	client *redis.Client
	config *redis.Options // for the connections of watches
	opts   Options

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	done   sync.WaitGroup // watches, and calls under way

	mu     sync.Mutex
	closed bool
	known  mark  // the newest Commit that was seen
	back   error // Redis went back: what every call returns
}

// mark names a Commit.
type mark struct {
	revision store.Revision
	nonce    string
}

var _ store.Store = (*Store)(nil)

// The library reports each failed dial to a logger of the whole process, by default on stderr. Our errors say it already.
func init() { redis.SetLogger(silent{}) }

type silent struct{}

// Printf drops the line.
func (silent) Printf(context.Context, string, ...any) {}

// plaintext is the parameter of an address that permits Redis without TLS on another machine.
const plaintext = "plaintext"

// Open connects to the Redis at address: redis://[USER:PASSWORD@]HOST:PORT[/DB], or rediss:// with TLS. Without TLS
// only this machine is accepted, unless the address ends in ?plaintext=allowed. It refuses a Redis that may evict records,
// that is a replica, or whose state is of a newer version.
func Open(ctx context.Context, address string, opts Options) (*Store, error) {
	if opts.Cluster == "" || strings.ContainsAny(opts.Cluster, "{}") {
		return nil, fmt.Errorf("cluster name %q: want one, without braces", opts.Cluster)
	}
	opts.WriteTimeout = cmp.Or(opts.WriteTimeout, 20*time.Second)
	opts.CallTimeout = cmp.Or(opts.CallTimeout, 5*time.Second)
	opts.History = cmp.Or(opts.History, 8192)
	opts.HistoryBytes = cmp.Or(opts.HistoryBytes, 64<<20)
	config, err := parse(address, opts)
	if err != nil {
		return nil, err
	}
	s := &Store{client: redis.NewClient(config), config: config, opts: opts}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.check(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the state in Redis at %s: %w", config.Addr, err), s.Close())
	}
	return s, nil
}

// parse reads the address. Its errors do not repeat it: it may hold a password.
func parse(address string, opts Options) (*redis.Options, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("address of Redis: want redis://HOST:PORT or rediss://HOST:PORT")
	}
	query := u.Query()
	trusted := query.Get(plaintext) == "allowed"
	query.Del(plaintext)
	if len(query) > 0 {
		return nil, fmt.Errorf("address of Redis: the only parameter is %s=allowed", plaintext)
	}
	u.RawQuery = ""
	config, err := redis.ParseURL(u.String())
	if err != nil {
		return nil, errors.New("address of Redis: want redis://HOST:PORT or rediss://HOST:PORT")
	}
	ip := net.ParseIP(u.Hostname())
	switch local := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback(); {
	case u.Scheme == "redis" && !local && !trusted:
		return nil, fmt.Errorf("address of Redis: redis://%s would send everything in the clear: use rediss://, or add ?%s=allowed on a network that you trust", u.Host, plaintext)
	case u.Scheme == "rediss" && opts.TLS != nil:
		config.TLSConfig = opts.TLS.Clone()
		config.TLSConfig.ServerName = cmp.Or(config.TLSConfig.ServerName, u.Hostname())
	}
	// A Commit must never be sent twice behind our back.
	config.MaxRetries = -1
	config.DialerRetries = 1
	config.DialTimeout = min(3*time.Second, opts.CallTimeout)
	config.ReadTimeout, config.WriteTimeout, config.PoolTimeout = opts.CallTimeout, opts.CallTimeout, opts.CallTimeout
	config.PoolSize = 32
	config.DisableIdentity = true
	return config, nil
}

// check refuses a Redis that cannot keep the promises of the store.
func (s *Store) check(ctx context.Context) error {
	info, err := s.client.Info(ctx, "memory", "replication").Result()
	if err != nil {
		return err
	}
	if policy := field(info, "maxmemory_policy"); policy != "noeviction" {
		return fmt.Errorf("its maxmemory-policy is %q: with that it drops records when memory is short; set it to noeviction", policy)
	}
	if role := field(info, "role"); role != "master" {
		return fmt.Errorf("it is a %s: give the address of the primary", role)
	}
	reply, err := s.call(ctx, headScript, "")
	if err != nil {
		return err
	}
	if format := number(reply, 3); format > store.FormatVersion {
		return fmt.Errorf("its state has format %d and this program knows formats up to %d: run the version of cutover that wrote it, or a newer one", format, store.FormatVersion)
	}
	return nil
}

// field returns a field of INFO.
func field(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (s *Store) key(name string) string { return "{cutover:" + s.opts.Cluster + "}:" + name }

func (s *Store) keys(nonce string) []string {
	return []string{s.key("head"), s.key("values"), s.key("revs"), s.key("index"), s.key("changes"), s.key("refused:" + nonce)}
}

// begin counts a call in, so that Close waits for it; or says why there is none.
func (s *Store) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.ErrClosed
	}
	if s.back != nil {
		return s.back
	}
	s.done.Add(1)
	return nil
}

// call runs a script that reads, once, and keeps the newest Commit that it saw.
func (s *Store) call(ctx context.Context, script *redis.Script, nonce string, args ...any) ([]any, error) {
	reply, err := s.run(ctx, script, nonce, args...)
	if err != nil {
		return nil, err
	}
	s.saw(mark{store.Revision(number(reply, 1)), text(reply, 2)}) // #nosec G115: not negative
	return reply, nil
}

// run runs a script once.
func (s *Store) run(ctx context.Context, script *redis.Script, nonce string, args ...any) ([]any, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout)
	defer cancel()
	known := s.newest()
	reply, err := script.Run(ctx, s.client, s.keys(nonce), append([]any{uint64(known.revision), known.nonce}, args...)...).Slice()
	if err != nil {
		return nil, err
	}
	if text(reply, 0) == "back" {
		return nil, s.wentBack(known, number(reply, 1))
	}
	return reply, nil
}

func (s *Store) newest() mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

func (s *Store) saw(m mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.revision > s.known.revision {
		s.known = m
	}
}

func (s *Store) wentBack(known mark, now int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.back == nil {
		s.back = fmt.Errorf("redis at %s had commit %d (%s) and does not have it any more, it is at %d: %w", s.config.Addr, known.revision, known.nonce, now, store.ErrWentBack)
	}
	return s.back
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	if err := s.begin(); err != nil {
		return store.Record{}, err
	}
	defer s.done.Done()
	reply, err := s.call(ctx, getScript, "", key)
	if err != nil {
		return store.Record{}, s.failed("read "+key, err)
	}
	rev := number(reply, 3)
	if rev == 0 {
		return store.Record{}, fmt.Errorf("%q: %w", key, store.ErrNotFound)
	}
	return store.Record{Key: key, Value: []byte(text(reply, 4)), Revision: store.Revision(rev)}, nil // #nosec G115: not negative
}

// listPage is how many records are read at once: a script holds up everybody else.
const listPage = 256

// List implements store.Store. More than a page is not read at one moment.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) ([]store.Record, error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer s.done.Done()
	highest := "+"
	if prefix != "" {
		highest = "(" + prefix + "\xff" // keys are text, which has no such byte
	}
	var out []store.Record
	for {
		lowest := "[" + prefix
		if after >= prefix && after != "" {
			lowest = "(" + after
		}
		page := listPage
		if limit > 0 {
			page = min(page, limit-len(out))
		}
		reply, err := s.call(ctx, listScript, "", lowest, highest, page)
		if err != nil {
			return nil, s.failed("list "+prefix, err)
		}
		n := 0
		for i := 3; i+2 < len(reply); i += 3 {
			after = text(reply, i)
			out = append(out, store.Record{Key: after, Revision: store.Revision(number(reply, i+1)), Value: []byte(text(reply, i+2))}) // #nosec G115: not negative
			n++
		}
		if n < page || len(out) == limit {
			return out, nil
		}
	}
}

// Revision implements store.Store.
func (s *Store) Revision(ctx context.Context) (store.Revision, error) {
	if err := s.begin(); err != nil {
		return 0, err
	}
	defer s.done.Done()
	reply, err := s.call(ctx, headScript, "")
	if err != nil {
		return 0, s.failed("read the revision", err)
	}
	return store.Revision(number(reply, 1)), nil // #nosec G115: not negative
}

func (s *Store) failed(what string, err error) error {
	if errors.Is(err, store.ErrWentBack) {
		return err
	}
	return fmt.Errorf("redis at %s: %s: %w", s.config.Addr, what, err)
}

// Close implements store.Store. Calls that are under way are finished.
func (s *Store) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.done.Wait()
	if again {
		return nil
	}
	return s.client.Close()
}

// number and text read one element of a reply.
func number(reply []any, i int) int64 {
	if i < len(reply) {
		if n, ok := reply[i].(int64); ok {
			return n
		}
	}
	return 0
}

func text(reply []any, i int) string {
	if i < len(reply) {
		if s, ok := reply[i].(string); ok {
			return s
		}
	}
	return ""
}
