package haproxy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// makeDir makes a directory that only we and HAProxy's master (root) can enter.
func makeDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	return os.Chmod(path, 0o700)
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
