package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/cutover/cutover/orchestrator/store"
)

var (
	bucketMeta    = []byte("meta")
	bucketRecords = []byte("records")
	bucketChanges = []byte("changes")

	keyFormat   = []byte("format")
	keyRevision = []byte("revision")
	keyFence    = []byte("fence")
)

// Options of Open. The zero value gives the defaults.
type Options struct {
	// LockTimeout bounds the wait for another process to let go of the file. Default 2 s.
	LockTimeout time.Duration
	// History and HistoryBytes bound what Watch can replay: whichever is reached first. Defaults 8192 Commits, 64 MiB.
	History      int
	HistoryBytes int64
	// WriteTimeout bounds the wait for one write to reach the disk; after it the outcome is unknown. Default 30 s.
	WriteTimeout time.Duration

	// beforeSync is called before each transaction is written; an error stands for one of the disk. Tests only.
	beforeSync func() error
}

// Store is a store.Store in one file. Safe for concurrent use.
type Store struct {
	db   *bolt.DB
	path string
	opts Options

	queue   *store.Queue
	closing chan struct{}
	done    sync.WaitGroup // the writer and the watches
	closed  sync.Once

	mu      sync.Mutex
	changed chan struct{} // closed and replaced after each written group
	broken  error         // the first failed write; later ones are refused

	// Owned by the writer: the size of the changes bucket.
	history      int
	historyBytes int64
}

var _ store.Store = (*Store)(nil)

// maxGroup bounds how many Commits share one fsync.
const maxGroup = 64

// Open opens or creates the file at path with mode 0600; its folder must exist. Only one process can have it open. A file
// that is empty or damaged is refused with an error that says what to do.
func Open(path string, opts Options) (*Store, error) {
	if opts.LockTimeout <= 0 {
		opts.LockTimeout = 2 * time.Second
	}
	if opts.History <= 0 {
		opts.History = 8192
	}
	if opts.HistoryBytes <= 0 {
		opts.HistoryBytes = 64 << 20
	}
	if opts.WriteTimeout <= 0 {
		opts.WriteTimeout = 30 * time.Second
	}
	db, err := openFile(path, opts)
	if err != nil {
		return nil, err
	}
	s := &Store{
		db: db, path: path, opts: opts,
		closing: make(chan struct{}),
		changed: make(chan struct{}),
	}
	s.queue = store.NewQueue("state file "+path+": the disk", s.closing)
	if err := s.initialise(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.done.Go(s.write)
	return s, nil
}

// initialise creates the buckets of a new file or checks the format of an old one, and measures the history.
func (s *Store) initialise() error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists(bucketMeta)
		if err != nil {
			return err
		}
		for _, b := range [][]byte{bucketRecords, bucketChanges} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		switch format := meta.Get(keyFormat); {
		case format == nil:
			return meta.Put(keyFormat, number(store.FormatVersion))
		case parseNumber(format) > store.FormatVersion:
			return fmt.Errorf("it has format %d and this program knows formats up to %d: run the version of cutover that wrote it, or a newer one", parseNumber(format), store.FormatVersion)
		}
		return tx.Bucket(bucketChanges).ForEach(func(_, v []byte) error {
			s.history++
			s.historyBytes += int64(len(v))
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("state file %s: %w", s.path, err)
	}
	return nil
}

// Commit implements store.Store. A ctx that ends while the write is on its way to the disk is not heard: the outcome
// is known soon, and an unknown one would end the caller's term.
func (s *Store) Commit(ctx context.Context, fence store.Fence, ops ...store.Op) (store.Revision, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	return s.queue.Commit(ctx, fence, ops, s.opts.WriteTimeout)
}

// Get implements store.Store.
func (s *Store) Get(_ context.Context, key string) (rec store.Record, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketRecords).Get([]byte(key))
		if v == nil {
			return fmt.Errorf("%q: %w", key, store.ErrNotFound)
		}
		rec = decodeRecord(key, v)
		return nil
	})
	return rec, err
}

// List implements store.Store.
func (s *Store) List(_ context.Context, prefix, after string, limit int) (out []store.Record, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		p := []byte(prefix)
		c := tx.Bucket(bucketRecords).Cursor()
		k, v := c.Seek(max(p, []byte(after)))
		for ; k != nil && bytes.HasPrefix(k, p); k, v = c.Next() {
			if string(k) <= after {
				continue
			}
			out = append(out, decodeRecord(string(k), v))
			if limit > 0 && len(out) == limit {
				break
			}
		}
		return nil
	})
	return out, err
}

// max returns the greater of two keys.
func max(a, b []byte) []byte {
	if bytes.Compare(a, b) > 0 {
		return a
	}
	return b
}

// Revision implements store.Store.
func (s *Store) Revision(context.Context) (rev store.Revision, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		rev = revisionOf(tx)
		return nil
	})
	return rev, err
}

// Close implements store.Store. Writes that have begun are finished, watches end, and the file is released.
func (s *Store) Close() error {
	var err error
	s.closed.Do(func() {
		s.mu.Lock()
		close(s.closing)
		s.mu.Unlock()
		s.done.Wait()
		err = s.db.Close()
	})
	return err
}

// view runs fn in a read transaction.
func (s *Store) view(fn func(*bolt.Tx) error) error {
	err := s.db.View(fn)
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return store.ErrClosed
	}
	return err
}

func revisionOf(tx *bolt.Tx) store.Revision {
	return store.Revision(parseNumber(tx.Bucket(bucketMeta).Get(keyRevision)))
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func parseNumber(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func encodeRecord(rev store.Revision, value []byte) []byte {
	return append(number(uint64(rev)), value...)
}

func decodeRecord(key string, v []byte) store.Record {
	return store.Record{Key: key, Value: append([]byte{}, v[8:]...), Revision: store.Revision(parseNumber(v[:8]))}
}
