package journal

import (
	"io"
	"os"

	"github.com/cutover/cutover/internal/atomicfile"
)

// File is what the Journal needs of an open file.
type File interface {
	io.ReadWriteCloser
	Sync() error
}

// FS is the file system as the Journal uses it; tests inject errors through it.
type FS interface {
	// OpenFile opens as os.OpenFile does.
	OpenFile(name string, flag int, perm os.FileMode) (File, error)
	Rename(from, to string) error
	Link(from, to string) error
	Remove(name string) error
	// SyncDir makes creations, renames and removals in the directory durable.
	SyncDir(dir string) error
}

// OS is the FS of the operating system.
type OS struct{}

// OpenFile is os.OpenFile.
func (OS) OpenFile(name string, flag int, perm os.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err // not f: a nil *os.File in a File is not nil
	}
	return f, nil
}

// Rename is os.Rename.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Link is os.Link.
func (OS) Link(from, to string) error { return os.Link(from, to) }

// Remove is os.Remove.
func (OS) Remove(name string) error { return os.Remove(name) }

// SyncDir fsyncs the directory.
func (OS) SyncDir(dir string) error { return atomicfile.SyncDir(dir) }
