package ownfile_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/ownfile"
)

func TestLook(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	asked := 0
	want := func() []byte { asked++; return []byte("right") }
	var c ownfile.Checker
	look := func() *ownfile.Altered {
		t.Helper()
		a, err := c.Look(path, want)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := look(); a == nil || !a.Missing || asked != 0 {
		t.Fatalf("no file: %+v, asked %d times", a, asked)
	}
	write("right")
	if a := look(); a != nil {
		t.Fatalf("a right file: %+v", a)
	}
	for info, err := os.Stat(path); time.Since(info.ModTime()) < 50*time.Millisecond; time.Sleep(time.Millisecond) {
		if err != nil {
			t.Fatal(err)
		}
	}
	asked = 0
	for range 3 {
		if a := look(); a != nil {
			t.Fatalf("a right file: %+v", a)
		}
	}
	if asked != 1 {
		t.Errorf("an untouched file was rendered %d times, want once", asked)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	// The same size and modification time: only the status-change time tells.
	write("wrong")
	if err := os.Chtimes(path, time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
	before := time.Now().Add(-time.Minute)
	if a := look(); a == nil || string(a.Found) != "wrong" || a.Since.Before(before) {
		t.Fatalf("an edit that hides its time: %+v", a)
	}
	write("right")
	if a := look(); a != nil {
		t.Fatalf("put right: %+v", a)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", path); err != nil {
		t.Fatal(err)
	}
	if a := look(); a == nil || a.Missing {
		t.Fatalf("a link in the place of the file: %+v", a)
	}
	c.Keep(func(string) bool { return false })
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write("right")
	if a := look(); a != nil || asked < 2 {
		t.Fatalf("a forgotten file is read again: %+v, asked %d times", a, asked)
	}
}
