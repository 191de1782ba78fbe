package haproxy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Files are written whole: to a hidden temporary name that HAProxy does not load, synced, and renamed over the old one.
// The directory is synced apart, so that the order of several renames is kept where it matters.

const temporary = ".tmp-"

// replaceFile makes the file hold text, atomically; the rename is durable only after syncDir.
func replaceFile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), temporary+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// makeDir makes a directory that only we and HAProxy's master (root) can enter.
func makeDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	return os.Chmod(path, 0o700)
}

// removeTemporaries removes what a crash left of replaceFile.
func removeTemporaries(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temporary) {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// removeContents empties a directory of regular files.
func removeContents(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}

// readOptional returns the text of a file, nil if there is none.
func readOptional(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what is published: %w", err)
	}
	if text == nil {
		text = []byte{} // an empty file is not a missing one
	}
	return text, nil
}
