package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Temporary starts the names of files that are not whole yet.
const Temporary = ".tmp-"

// Write puts data in the place of a file, durably.
func Write(path string, data []byte) error {
	if err := Replace(path, data); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Replace is Write whose new name is durable only after SyncDir: for several files of one directory, in their order.
func Replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), Temporary+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	if err = fill(f, data); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Create writes and syncs a file that must not exist yet, under its own name: in a directory that nobody reads before it is
// whole. Its name is durable after SyncDir.
func Create(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return fill(f, data)
}

func fill(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Symlink points the symbolic link to target, durably. Two that do it at the same time may fail, but the link is always one
// of theirs or the old one.
func Symlink(target, link string) error {
	if now, err := os.Readlink(link); err == nil && now == target {
		return nil
	}
	tmp := filepath.Join(filepath.Dir(link), Temporary+filepath.Base(link))
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, link); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(link))
}

// SyncDir makes creations, renames and removals in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Clean removes what a crash left in a directory. Nobody may be writing there. A directory that is not there is clean.
func Clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), Temporary) {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
