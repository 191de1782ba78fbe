package ownfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// MaxRead bounds what is read of one file, in bytes. A longer one differs.
const MaxRead = 8 << 20

// Checker remembers the files that were found right. Its zero value is ready; it is safe for concurrent use. What a file
// should hold may change only together with the file: then nothing has to be rendered for a file that was not touched.
type Checker struct {
	mu    sync.Mutex
	right map[string]stamp
}

// grain is by how much two changes of a file may lie apart and have the same time: the kernel's tick, with room.
const grain = 20 * time.Millisecond

type stamp struct {
	inode, size    uint64
	mtime, changed syscall.Timespec
}

// Altered is a file that is not what it should be.
type Altered struct {
	Path string
	// Found is what the file holds, or in words what is in its place; Missing: there is nothing.
	Found   []byte
	Missing bool
	// Since is when it was altered at the latest: later processes may have read it so.
	Since time.Time
}

// Look compares a file with what want returns, which is asked only if the file has changed since it was found right. Nil:
// it is right. An error says that the file could not be looked at.
func (c *Checker) Look(path string, want func() []byte) (*Altered, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		c.forget(path)
		return &Altered{Path: path, Missing: true, Since: changedAt(filepath.Dir(path))}, nil
	}
	if err != nil {
		return nil, err
	}
	now, ok := stampOf(info)
	if !ok || !info.Mode().IsRegular() {
		c.forget(path)
		return &Altered{Path: path, Found: fmt.Appendf(nil, "(not a regular file: %s)\n", info.Mode().Type()), Since: changedAt(path)}, nil
	}
	c.mu.Lock()
	was, known := c.right[path]
	c.mu.Unlock()
	if known && was == now {
		return nil, nil
	}
	found, err := read(path)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(found, want()) {
		c.forget(path)
		return &Altered{Path: path, Found: found, Since: time.Unix(now.changed.Unix())}, nil
	}
	if time.Since(time.Unix(now.changed.Unix())) < grain {
		c.forget(path) // another change may get the same stamp
		return nil, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.right == nil {
		c.right = map[string]stamp{}
	}
	// The stamp is from before the read: a change in between is seen at the next look.
	c.right[path] = now
	return nil, nil
}

// Keep forgets all files but those for which keep says true: call it now and then where files come and go.
func (c *Checker) Keep(keep func(path string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path := range c.right {
		if !keep(path) {
			delete(c.right, path)
		}
	}
}

func (c *Checker) forget(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.right, path)
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxRead))
}

func stampOf(info fs.FileInfo) (stamp, bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}, false
	}
	return stamp{inode: s.Ino, size: uint64(info.Size()), mtime: s.Mtim, changed: s.Ctim}, true
}

// changedAt is the status-change time of what is at path; now if that cannot be told.
func changedAt(path string) time.Time {
	if info, err := os.Lstat(path); err == nil {
		if s, ok := stampOf(info); ok {
			return time.Unix(s.changed.Unix())
		}
	}
	return time.Now()
}
