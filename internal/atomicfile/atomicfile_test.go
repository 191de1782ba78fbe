package atomicfile_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cutover/cutover/internal/atomicfile"
)

// names lists a directory.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"new", ""} {
		if err := atomicfile.Write(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%q, %v; want %q", got, err, text)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := atomicfile.Write(filepath.Join(dir, "no", "f"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without its directory: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "d", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(filepath.Join(dir, "d"), []byte("x")); err == nil {
		t.Error("a directory was replaced")
	}
	if got := names(t, dir); got != "d f" {
		t.Errorf("left behind: %s", got)
	}
}

// Whoever writes at the same time, a reader sees one content whole.
func TestWritersDoNotMix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	var wg sync.WaitGroup
	for i := range 4 {
		data := bytes.Repeat([]byte{byte('a' + i)}, 10_000)
		wg.Go(func() {
			for range 20 {
				if err := atomicfile.Write(path, data); err != nil {
					t.Error(err)
				}
				got, err := os.ReadFile(path)
				if err != nil || len(got) != len(data) || bytes.Count(got, got[:1]) != len(got) {
					t.Errorf("%d bytes that are not one writer's, %v", len(got), err)
				}
			}
		})
	}
	wg.Wait()
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := atomicfile.Create(path, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Create(path, nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
}

func TestSymlink(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "current")
	if err := os.Symlink("nowhere", filepath.Join(dir, atomicfile.Temporary+"current")); err != nil { // of a crash
		t.Fatal(err)
	}
	for _, target := range []string{"a", "b", "b"} {
		if err := atomicfile.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(link); err != nil || got != target {
			t.Errorf("%q, %v; want %q", got, err, target)
		}
	}
	if got := names(t, dir); got != "current" {
		t.Errorf("left behind: %s", got)
	}
}

func TestClean(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"f", atomicfile.Temporary + "f-1"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, atomicfile.Temporary+"d", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Clean(dir); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); got != "f" {
		t.Errorf("left: %s", got)
	}
	if err := atomicfile.Clean(filepath.Join(dir, "no")); err != nil {
		t.Errorf("no directory: %v", err)
	}
}
