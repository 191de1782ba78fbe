package consulstore

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/cutover/cutover/orchestrator/store"
)

// Prefix returns where the keys of a cluster are when nothing else is said.
func Prefix(cluster string) string { return "cutover/" + cluster }

// LeaderKey returns the key below prefix whose lock the leader holds; the session in a store.Fence is checked on it.
func LeaderKey(prefix string) string { return prefix + "/leader" }

// head is the record that every write replaces.
type head struct {
	Format   int            `json:"format"`
	Revision store.Revision `json:"revision"` // of the newest Commit
	Epoch    uint64         `json:"epoch"`    // the highest seen
	Seq      uint64         `json:"seq"`      // counts the writes, each with one Commit or more
	Nonce    string         `json:"nonce"`    // names the newest write
}

// slot is one write in the ring of changes.
type slot struct {
	Seq     uint64  `json:"seq"`
	Nonce   string  `json:"nonce"`
	Batches []batch `json:"batches"`
	// Dropped: the changes did not fit. Whoever still needs them has to read the records.
	Dropped bool `json:"dropped,omitempty"`
}

type batch struct {
	Revision store.Revision `json:"revision"`
	Changes  []change       `json:"changes"`
}

type change struct {
	Key     string `json:"key"`
	Value   []byte `json:"value,omitempty"`
	Deleted bool   `json:"deleted,omitempty"`
}

func (b batch) store() store.Batch {
	out := store.Batch{Revision: b.Revision}
	for _, c := range b.Changes {
		next := store.Change{Record: store.Record{Key: c.Key, Revision: b.Revision}, Deleted: c.Deleted}
		if !c.Deleted {
			next.Value = append([]byte{}, c.Value...)
		}
		out.Changes = append(out.Changes, next)
	}
	return out
}

// How a value is stored.
const (
	plain    byte = 0
	deflated byte = 1
)

// compressFrom is the size from which compressing is tried.
const compressFrom = 512

var errDamaged = errors.New("the record is damaged")

// seal is how values are stored: the encoding, the revision, the value.
func seal(rev store.Revision, value []byte) []byte {
	out := binary.AppendUvarint([]byte{plain}, uint64(rev))
	if len(value) < compressFrom {
		return append(out, value...)
	}
	var b bytes.Buffer
	b.Write(out)
	b.Bytes()[0] = deflated
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	if err != nil {
		panic("consulstore: " + err.Error()) // only a wrong level, which is a constant
	}
	_, _ = w.Write(value) // a Buffer takes everything
	_ = w.Close()
	if b.Len() >= len(out)+len(value) {
		return append(out, value...)
	}
	return b.Bytes()
}

// unseal is the inverse of seal. What it returns belongs to the caller.
func unseal(b []byte) (store.Revision, []byte, error) {
	if len(b) == 0 {
		return 0, nil, errDamaged
	}
	rev, n := binary.Uvarint(b[1:])
	if n <= 0 {
		return 0, nil, errDamaged
	}
	rest := b[1+n:]
	switch b[0] {
	case plain:
		return store.Revision(rev), append([]byte{}, rest...), nil
	case deflated:
		// The ring holds a whole write as JSON, where bytes take a third more.
		value, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(rest)), 2*store.MaxCommitBytes+1))
		if err != nil || len(value) > 2*store.MaxCommitBytes {
			return 0, nil, errDamaged
		}
		return store.Revision(rev), value, nil
	}
	return 0, nil, fmt.Errorf("encoding %d is of a newer version of cutover: %w", b[0], errDamaged)
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("consulstore: " + err.Error()) // plain structs: always a bug
	}
	return b
}

func (s *Store) headKey() string             { return s.opts.Prefix + "/head" }
func (s *Store) recordKey(key string) string { return s.opts.Prefix + "/records/" + key }
func (s *Store) slotKey(seq uint64) string {
	return fmt.Sprintf("%s%06d", s.ringKey(), seq%uint64(s.opts.History))
}                                // #nosec G115: positive
func (s *Store) ringKey() string { return s.opts.Prefix + "/changes/" }
func (s *Store) decodeHead(value []byte) (head, error) {
	var h head
	if err := json.Unmarshal(value, &h); err != nil {
		return head{}, fmt.Errorf("consul key %s: %w: %w", s.headKey(), errDamaged, err)
	}
	if h.Format > store.FormatVersion {
		return head{}, fmt.Errorf("consul key %s has format %d and this program knows formats up to %d: run the version of cutover that wrote it, or a newer one", s.headKey(), h.Format, store.FormatVersion)
	}
	return h, nil
}
