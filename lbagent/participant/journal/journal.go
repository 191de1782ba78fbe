package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cutover/cutover/internal/flock"
	"github.com/cutover/cutover/lbagent/participant"
)

const (
	fileName    = "journal"
	newName     = "journal.new"
	lockName    = "lock"
	keepHistory = 8
	// DefaultMaxSize is where NeedsCompaction begins, in bytes beyond the snapshot.
	DefaultMaxSize = 16 << 20
)

// ErrDead is returned after a write or an fsync has failed: open the Journal again.
var ErrDead = errors.New("the journal failed before and was not opened again")

// Options of Open. Only Dir is required.
type Options struct {
	// Dir must exist; the Journal has it for itself. Files are created with mode 0600.
	Dir string
	// MaxSize is how many bytes of records, beyond the snapshot, call for a compaction. 0: about DefaultMaxSize, by chance
	// up to a quarter more or less, so that the Hosts of a Group, which write the same, do not compact at the same moment.
	MaxSize int64
	// FS is for tests; nil: the operating system's.
	FS FS
}

// Journal is an open journal. It is used by one goroutine.
type Journal struct {
	opts Options
	fs   FS
	lock *os.File
	file File
	seq  uint64
	base int64 // size of header and snapshot
	// pending is a compaction under way.
	pending *Snapshot
	size    int64
	failed  error
	// Torn is how many bytes of a torn tail Open dropped.
	Torn int64
}

// Open replays the journal in the directory, makes what it found durable as a new snapshot, and returns it. An empty
// directory gives an empty Durable. It refuses a directory that another process holds, and a corrupt file
// (*CorruptError).
func Open(opts Options) (*Journal, participant.Durable, error) {
	if opts.MaxSize <= 0 {
		opts.MaxSize = DefaultMaxSize*3/4 + rand.Int64N(DefaultMaxSize/2)
	}
	if opts.FS == nil {
		opts.FS = OS{}
	}
	lock, err := lockDir(opts.Dir)
	if err != nil {
		return nil, participant.Durable{}, err
	}
	j := &Journal{opts: opts, fs: opts.FS, lock: lock}
	c, err := j.replay()
	if err == nil {
		j.seq, j.Torn = c.seq, c.torn
		s := j.Snapshot(c.state)
		s.Encode()
		err = j.install(s, c.records > 0)
	}
	if err != nil {
		return nil, participant.Durable{}, errors.Join(err, lock.Close())
	}
	return j, c.state, nil
}

// Read returns what the journal in the directory holds, and changes nothing; an agent may be writing it.
func Read(dir string) (participant.Durable, error) {
	c, err := (&Journal{opts: Options{Dir: dir}, fs: OS{}}).replay()
	return c.state, err
}

// lockDir takes the directory for this process.
func lockDir(dir string) (*os.File, error) {
	f, err := flock.Try(filepath.Join(dir, lockName))
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("%w: another agent runs on this directory", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open the lock of the journal: %w", err)
	}
	return f, nil
}

func (j *Journal) path(name string) string { return filepath.Join(j.opts.Dir, name) }

func (j *Journal) replay() (contents, error) {
	f, err := j.fs.OpenFile(j.path(fileName), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return contents{}, nil
	}
	if err != nil {
		return contents{}, fmt.Errorf("open the journal: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(f, 4*MaxFrame))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return contents{}, fmt.Errorf("read the journal: %w", err)
	}
	return decode(j.path(fileName), data)
}

// Append makes the records durable together, or none of them. After an error the Journal is dead.
func (j *Journal) Append(records ...participant.Record) error {
	if j.failed != nil {
		return fmt.Errorf("%w: %w", ErrDead, j.failed)
	}
	if len(records) == 0 {
		return nil
	}
	frame, err := encodeFrame('R', records)
	if err != nil {
		j.failed = err
		return err
	}
	if _, err := j.file.Write(frame); err != nil {
		j.failed = fmt.Errorf("write the journal: %w", err)
		return j.failed
	}
	if err := j.file.Sync(); err != nil {
		j.failed = fmt.Errorf("fsync the journal: %w", err)
		return j.failed
	}
	j.size += int64(len(frame))
	if j.pending != nil {
		j.pending.since = append(j.pending.since, frame...)
	}
	return nil
}

// Size is the size of the file in bytes.
func (j *Journal) Size() int64 { return j.size }

// NeedsCompaction reports whether the records have outgrown MaxSize or twice the snapshot, whichever is more, and no
// Snapshot is on its way.
func (j *Journal) NeedsCompaction() bool {
	return j.failed == nil && j.pending == nil && j.size-j.base > max(j.opts.MaxSize, 2*j.base)
}

// Snapshot is a compaction under way: first Encode, by any goroutine, then Install.
type Snapshot struct {
	state participant.Durable
	frame []byte
	err   error
	since []byte // the frames appended since; only the Journal's goroutine looks at them
}

// Snapshot begins a compaction. state must be what the records came to. Until its Install, what is appended goes into both
// files. A Snapshot that was begun before is forgotten.
func (j *Journal) Snapshot(state participant.Durable) *Snapshot {
	j.pending = &Snapshot{state: state}
	return j.pending
}

// Encode does the long part of the work, which touches no file.
func (s *Snapshot) Encode() { s.frame, s.err = encodeFrame('S', s.state) }

// Behind is how many bytes were appended since the Snapshot began.
func (s *Snapshot) Behind() int { return len(s.since) }

// Install replaces the file by the Snapshot, which was encoded, and what was appended since. One that another Snapshot or
// another Open has taken over is passed over. After an error the Journal is dead; the old file or the new one is in place,
// and both say the same.
func (j *Journal) Install(s *Snapshot) error {
	if j.failed != nil {
		return fmt.Errorf("%w: %w", ErrDead, j.failed)
	}
	if s != j.pending {
		return nil
	}
	if err := j.install(s, true); err != nil {
		j.failed = err
		return err
	}
	return nil
}

// install writes a new file and puts it in the place of the old one, which is kept as history if it holds records.
func (j *Journal) install(s *Snapshot, history bool) error {
	j.pending = nil
	if s.err != nil {
		return s.err
	}
	base := append(encodeHeader(j.seq+1), s.frame...)
	data := append(base, s.since...)
	f, err := j.fs.OpenFile(j.path(newName), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("create the journal's snapshot: %w", err)
	}
	fail := func(what string, err error) error {
		return errors.Join(fmt.Errorf("%s the journal's snapshot: %w", what, err), f.Close())
	}
	if _, err := f.Write(data); err != nil {
		return fail("write", err)
	}
	if err := f.Sync(); err != nil {
		return fail("fsync", err)
	}
	if history && j.seq > 0 {
		old := j.path(fileName + "." + strconv.FormatUint(j.seq, 10))
		if err := j.fs.Link(j.path(fileName), old); err != nil && !errors.Is(err, fs.ErrExist) {
			return fail("keep what comes before", err)
		}
	}
	if err := j.fs.Rename(j.path(newName), j.path(fileName)); err != nil {
		return fail("rename", err)
	}
	if err := j.fs.SyncDir(j.opts.Dir); err != nil {
		return fail("fsync the directory of", err)
	}
	if j.file != nil {
		_ = j.file.Close() // the old file; all of it was fsynced
	}
	j.file, j.seq, j.base, j.size = f, j.seq+1, int64(len(base)), int64(len(data))
	return j.dropHistory()
}

// dropHistory keeps the newest keepHistory of the files that snapshots replaced.
func (j *Journal) dropHistory() error {
	names, err := j.History()
	if err != nil {
		return err
	}
	for len(names) > keepHistory {
		if err := j.fs.Remove(names[0]); err != nil {
			return fmt.Errorf("remove an old journal: %w", err)
		}
		names = names[1:]
	}
	return nil
}

// History lists the files that snapshots have replaced, oldest first.
func (j *Journal) History() ([]string, error) {
	entries, err := os.ReadDir(j.opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("list the journal's directory: %w", err)
	}
	var seqs []uint64
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), fileName+".")
		if n, err := strconv.ParseUint(rest, 10, 64); ok && err == nil {
			seqs = append(seqs, n)
		}
	}
	slices.Sort(seqs)
	out := make([]string, len(seqs))
	for i, n := range seqs {
		out[i] = j.path(fileName + "." + strconv.FormatUint(n, 10))
	}
	return out, nil
}

// Close releases the directory. What was appended is durable already.
func (j *Journal) Close() error {
	if j.failed == nil {
		j.failed = errors.New("it is closed")
	}
	var err error
	if j.file != nil {
		err = j.file.Close()
		j.file = nil
	}
	if j.lock != nil {
		err = errors.Join(err, j.lock.Close())
		j.lock = nil
	}
	return err
}
