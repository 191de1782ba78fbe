package boltstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/cutover/cutover/internal/atomicfile"
)

// This file opens the state file, and refuses one that is not whole. A store that forgot must never pass for a new one:
// what it does not know would be taken from the Hosts (FAIL-STATIC).

// openFile opens the file at path; a file that is not there is created.
func openFile(path string, opts Options) (*bolt.DB, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := create(path); err != nil {
			return nil, fmt.Errorf("create state file %s: %w", path, err)
		}
	case err != nil:
		return nil, fmt.Errorf("open state file %s: %w", path, err)
	case info.Size() == 0:
		return nil, damaged(path, errors.New("it is empty, and a new one never is"))
	}
	var file *os.File // bbolt's, to let go of the lock if it panics
	var db *bolt.DB
	err = guard(func() error {
		var err error
		db, err = bolt.Open(path, 0o600, &bolt.Options{
			Timeout: opts.LockTimeout, FreelistType: bolt.FreelistMapType,
			OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
				var err error
				file, err = os.OpenFile(name, flag, mode)
				return file, err
			},
		})
		if err != nil {
			return err
		}
		return whole(db)
	})
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("state file %s is in use by another process (waited %v): stop the orchestrator that runs on this data directory, or choose another one: %w", path, opts.LockTimeout, err)
	case errors.Is(err, errNotWhole), errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		err = damaged(path, err)
	default:
		err = fmt.Errorf("open state file %s: %w", path, err)
	}
	if file != nil {
		// Not the Close alone: a mapping that a panic left behind keeps the lock. Where bbolt did both, this does nothing.
		_ = unix.Flock(int(file.Fd()), unix.LOCK_UN)
		_ = file.Close()
	}
	return nil, err
}

// create makes the file under another name and links it to its own: whatever stops the process, a file at path has been
// written completely. Of two processes that create it, one finds it there.
func create(path string) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(tmp.Name())) }()
	if err := tmp.Close(); err != nil {
		return err
	}
	db, err := bolt.Open(tmp.Name(), 0o600, nil)
	if err != nil {
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// The name of a new file is durable only with its folder.
	return atomicfile.SyncDir(dir)
}

// whole reads everything once: what is damaged shows now, and not in the middle of a Deploy.
func whole(db *bolt.DB) error {
	return db.View(func(tx *bolt.Tx) error {
		info, err := os.Stat(db.Path())
		if err != nil {
			return err
		}
		if info.Size() < tx.Size() {
			return fmt.Errorf("%w: it has %d bytes and should have %d", errNotWhole, info.Size(), tx.Size())
		}
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				if string(name) == string(bucketRecords) && len(v) < 8 {
					return fmt.Errorf("%w: record %q has %d bytes", errNotWhole, k, len(v))
				}
				return nil
			})
		})
	})
}

// errNotWhole is in the chain of what openFile says about a file that is not whole.
var errNotWhole = errors.New("the state file is damaged")

func damaged(path string, why error) error {
	if !errors.Is(why, errNotWhole) {
		why = fmt.Errorf("%w: %w", errNotWhole, why)
	}
	return fmt.Errorf("state file %s: %w: tasks and proxies go on as they are; put back a copy of the file of before, and do not start without it: the orchestrator would not know what the hosts serve", path, why)
}

// guard turns bbolt's panics on a damaged page, and the kernel's on one that the file does not have, into errors.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errNotWhole, p)
		}
	}()
	return fn()
}
