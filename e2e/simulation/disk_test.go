package simulation

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/cutover/cutover/lbagent/participant/journal"
)

// disk is what a Host's journal is written to. What was not synced when the process died may be there, torn, or not.
type disk struct {
	mu      sync.Mutex
	names   map[string]*inode // as a running process sees them
	durable map[string]*inode // as they are after a crash
	mount   int               // file handles of an earlier mount are dead
	full    bool
	badSync int // one fsync in so many fails; 0: none
	dice    *rand.Rand
}

type inode struct {
	data   []byte
	synced int
}

func newDisk(dice *rand.Rand) *disk {
	return &disk{names: map[string]*inode{}, durable: map[string]*inode{}, dice: dice}
}

// crash drops what was never synced: a random part of each tail stays, and of the unsynced names all or none.
func (d *disk) crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mount++
	if d.dice.IntN(2) == 0 {
		d.durable = maps.Clone(d.names)
	}
	for _, name := range slices.Sorted(maps.Keys(d.durable)) {
		f := d.durable[name]
		if tail := len(f.data) - f.synced; tail > 0 {
			keep := d.dice.IntN(tail + 1)
			f.data = bytes.Clone(f.data[:f.synced+keep])
			if keep > 0 && d.dice.IntN(3) == 0 { // of an interrupted write some blocks may read as zeros
				clear(f.data[f.synced+d.dice.IntN(keep):])
			}
		}
		f.synced = len(f.data)
	}
	d.names = maps.Clone(d.durable)
}

func (d *disk) set(full bool, badSync int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full, d.badSync = full, badSync
}

// fs returns the disk as the next process sees it.
func (d *disk) fs() journal.FS {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &mounted{disk: d, mount: d.mount}
}

var errDied = errors.New("this process has died")

type mounted struct {
	disk  *disk
	mount int
}

func (m *mounted) do(f func(d *disk) error) error {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	if m.mount != m.disk.mount {
		return errDied
	}
	return f(m.disk)
}

// OpenFile implements journal.FS.
func (m *mounted) OpenFile(name string, flag int, _ os.FileMode) (journal.File, error) {
	f := &handle{m: m}
	err := m.do(func(d *disk) error {
		f.inode = d.names[name]
		switch {
		case f.inode == nil && flag&os.O_CREATE == 0:
			return fs.ErrNotExist
		case f.inode == nil && d.full:
			return syscall.ENOSPC
		case f.inode == nil:
			f.inode = &inode{}
			d.names[name] = f.inode
		case flag&os.O_TRUNC != 0:
			f.inode.data, f.inode.synced = nil, 0
		}
		return nil
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return f, nil
}

// Rename implements journal.FS.
func (m *mounted) Rename(from, to string) error {
	return m.do(func(d *disk) error {
		f := d.names[from]
		if f == nil {
			return fs.ErrNotExist
		}
		delete(d.names, from)
		d.names[to] = f
		return nil
	})
}

// Link implements journal.FS.
func (m *mounted) Link(from, to string) error {
	return m.do(func(d *disk) error {
		f := d.names[from]
		switch {
		case f == nil:
			return fs.ErrNotExist
		case d.names[to] != nil:
			return fs.ErrExist
		case d.full:
			return syscall.ENOSPC
		}
		d.names[to] = f
		return nil
	})
}

// Remove implements journal.FS.
func (m *mounted) Remove(name string) error {
	return m.do(func(d *disk) error {
		if d.names[name] == nil {
			return fs.ErrNotExist
		}
		delete(d.names, name)
		return nil
	})
}

// SyncDir implements journal.FS.
func (m *mounted) SyncDir(string) error {
	return m.do(func(d *disk) error {
		if oneIn(d.dice, d.badSync) {
			return syscall.EIO
		}
		d.durable = maps.Clone(d.names)
		return nil
	})
}

// handle is an open file.
type handle struct {
	m     *mounted
	inode *inode
	at    int
}

// Read implements io.Reader.
func (f *handle) Read(p []byte) (n int, err error) {
	err = f.m.do(func(*disk) error {
		if f.at >= len(f.inode.data) {
			return io.EOF
		}
		n = copy(p, f.inode.data[f.at:])
		f.at += n
		return nil
	})
	return n, err
}

// Write implements io.Writer: it appends, as the journal opens its files.
func (f *handle) Write(p []byte) (n int, err error) {
	err = f.m.do(func(d *disk) error {
		n = len(p)
		if d.full {
			n = d.dice.IntN(len(p) + 1)
		}
		f.inode.data = append(f.inode.data, p[:n]...)
		if d.full {
			return syscall.ENOSPC
		}
		return nil
	})
	return n, err
}

// Sync makes what was written durable, or fails: then it may be or not.
func (f *handle) Sync() error {
	return f.m.do(func(d *disk) error {
		if oneIn(d.dice, d.badSync) {
			return syscall.EIO
		}
		f.inode.synced = len(f.inode.data)
		return nil
	})
}

// Close implements io.Closer.
func (f *handle) Close() error { return nil }
