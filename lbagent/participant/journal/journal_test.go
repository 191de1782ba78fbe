package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/lbagent/participant"
)

func record(n int) participant.Record {
	return participant.Record{
		Kind: participant.KindStaged, At: time.Date(2026, 1, 2, 3, 4, n, 0, time.UTC), TxnID: fmt.Sprintf("t%d", n), Order: uint64(n),
		Epoch: uint64(n), View: 1, Origin: participant.Origin{Actor: "ci", Reason: "release", Deploy: "d1"},
		Sections: []*participant.SectionState{{App: "shop", Passed: uint64(n)}},
	}
}

func open(t *testing.T, o Options) (*Journal, participant.Durable) {
	t.Helper()
	j, d, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j, d
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReplay(t *testing.T) {
	dir := t.TempDir()
	j, d := open(t, Options{Dir: dir})
	if d.Epoch != 0 || len(d.Sections) != 0 {
		t.Fatalf("an empty directory gives %+v", d)
	}
	for n := 1; n <= 3; n++ {
		r := record(n)
		if err := j.Append(r, record(n)); err != nil {
			t.Fatal(err)
		}
		d = d.Apply(r).Apply(record(n))
	}
	// Beside the agent that writes it, nothing is changed.
	if read, err := Read(dir); err != nil || asJSON(t, read) != asJSON(t, d) {
		t.Errorf("read: %+v, %v", read, err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	_, got := open(t, Options{Dir: dir})
	if diff := cmp.Diff(asJSON(t, d), asJSON(t, got)); diff != "" {
		t.Error(diff)
	}
	info, err := os.Stat(filepath.Join(dir, fileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	open(t, Options{Dir: dir})
	if _, _, err := Open(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("a second Open: %v", err)
	}
}

// TestTruncateEverywhere: whatever prefix of a file a crash leaves, what was acknowledged before the cut is there, and
// nothing of what comes after it.
func TestTruncateEverywhere(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, Options{Dir: dir})
	base := j.Size()
	var ends []int64 // sizes after each Append
	for n := 1; n <= 3; n++ {
		if err := j.Append(record(n)); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, j.Size())
	}
	data, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	for cut := int64(0); cut <= int64(len(data)); cut++ {
		c, err := decode("journal", data[:cut])
		if cut < base {
			// A snapshot gets its name only when it is complete, so this is no crash.
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) {
				t.Fatalf("cut at %d of the snapshot: %v", cut, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		want := 0
		for _, end := range ends {
			if cut >= end {
				want++
			}
		}
		if c.records != want || c.state.Epoch != uint64(want) {
			t.Fatalf("cut at %d: %d records, epoch %d, want %d", cut, c.records, c.state.Epoch, want)
		}
		// The rest of a block that was never written reads as zeros.
		zeros := append(append([]byte(nil), data[:cut]...), make([]byte, 100)...)
		if c, err := decode("journal", zeros); cut == base || contains(ends, cut) {
			if err != nil || c.records != want || c.torn != 100 {
				t.Fatalf("zeros after %d: %+v, %v", cut, c, err)
			}
		}
	}
}

func contains(list []int64, v int64) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

// TestFlipEverywhere: a changed byte is never believed. In the last frame it is a torn tail, before that corruption.
func TestFlipEverywhere(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, Options{Dir: dir})
	var last int64
	for n := 1; n <= 3; n++ {
		last = j.Size()
		if err := j.Append(record(n)); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		bad := append([]byte(nil), data...)
		bad[i] ^= 0x41
		c, err := decode("journal", bad)
		if err == nil && (int64(i) < last || c.records != 2) {
			t.Fatalf("a flip at %d of %d was believed: %d records", i, len(bad), c.records)
		}
	}
}

func TestTornTailIsDropped(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, Options{Dir: dir})
	if err := j.Append(record(1)); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	frame, err := encodeFrame('R', []participant.Record{record(2)})
	if err != nil {
		t.Fatal(err)
	}
	appendFile(t, filepath.Join(dir, fileName), frame[:len(frame)-3])
	j, d := open(t, Options{Dir: dir})
	if d.Epoch != 1 || j.Torn != int64(len(frame)-3) {
		t.Errorf("epoch %d, torn %d", d.Epoch, j.Torn)
	}
	if err := j.Append(record(2)); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, d = open(t, Options{Dir: dir}); d.Epoch != 2 {
		t.Errorf("after the torn tail: epoch %d", d.Epoch)
	}
}

// An interrupted write may leave its beginning, of any length, and zeros up to the size that it would have had.
func TestTailOfZerosIsDropped(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, Options{Dir: dir})
	if err := j.Append(record(1)); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, fileName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	frame, err := encodeFrame('R', []participant.Record{record(2)})
	if err != nil {
		t.Fatal(err)
	}
	for written := range len(frame) {
		tail := append(slices.Clone(frame[:written]), make([]byte, len(frame)-written)...)
		c, err := decode(path, append(slices.Clone(whole), tail...))
		if bytes.Equal(tail, frame) {
			continue // what was not written is zero anyway
		}
		if err != nil || c.torn != int64(len(frame)) || c.state.Epoch != 1 {
			t.Errorf("%d of %d bytes written: torn %d, epoch %d, %v", written, len(frame), c.torn, c.state.Epoch, err)
		}
	}
}

func appendFile(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCorruptMiddleIsRefused(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, Options{Dir: dir})
	at := j.Size() + frameSize + 5
	for n := 1; n <= 2; n++ {
		if err := j.Append(record(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, fileName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[at] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = Open(Options{Dir: dir})
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) || !strings.Contains(err.Error(), "move the file away") {
		t.Errorf("opened with %v", err)
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	b := encodeHeader(1)
	b[len(magic)] = byte(FormatNewest) + 1
	b = binary.LittleEndian.AppendUint32(b[:headerSize-4], crc32.Checksum(b[:headerSize-4], castagnoli))
	if _, err := decode("journal", b); err == nil || !strings.Contains(err.Error(), "newer agent") {
		t.Errorf("%v", err)
	}
}

// compact is a whole compaction, with a record appended before its Install if there is one.
func compact(j *Journal, d participant.Durable, between ...participant.Record) error {
	s := j.Snapshot(d)
	s.Encode()
	return errors.Join(j.Append(between...), j.Install(s))
}

func TestCompaction(t *testing.T) {
	dir := t.TempDir()
	j, d := open(t, Options{Dir: dir, MaxSize: 500})
	for n := 1; n <= 60; n++ {
		if err := j.Append(record(n)); err != nil {
			t.Fatal(err)
		}
		d = d.Apply(record(n))
		if !j.NeedsCompaction() {
			continue
		}
		var between []participant.Record
		if n%2 == 0 {
			n++
			between = append(between, record(n))
		}
		if err := compact(j, d, between...); err != nil {
			t.Fatal(err)
		}
		for _, r := range between {
			d = d.Apply(r)
		}
		if j.NeedsCompaction() {
			t.Fatal("a fresh snapshot wants compaction")
		}
		if c, err := j.replay(); err != nil || cmp.Diff(asJSON(t, d), asJSON(t, c.state)) != "" || c.records != len(between) {
			t.Fatalf("after record %d the file holds %d records and %s, %v; want %s", n, c.records, asJSON(t, c.state), err, asJSON(t, d))
		}
	}
	old, err := j.History()
	if err != nil || len(old) != keepHistory {
		t.Errorf("history: %v %v", old, err)
	}
	for _, path := range old {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := decode(path, data); err != nil || c.records == 0 {
			t.Errorf("%s: %d records, %v", path, c.records, err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	_, got := open(t, Options{Dir: dir})
	if diff := cmp.Diff(asJSON(t, d), asJSON(t, got)); diff != "" {
		t.Error(diff)
	}
}

// A Snapshot that another one has taken over changes nothing, however late it is.
func TestLateSnapshotIsPassedOver(t *testing.T) {
	dir := t.TempDir()
	j, d := open(t, Options{Dir: dir})
	late := j.Snapshot(d)
	late.Encode()
	if err := j.Append(record(1)); err != nil {
		t.Fatal(err)
	}
	d = d.Apply(record(1))
	if err := compact(j, d); err != nil {
		t.Fatal(err)
	}
	if err := j.Install(late); err != nil {
		t.Fatal(err)
	}
	c, err := j.replay()
	if err != nil || cmp.Diff(asJSON(t, d), asJSON(t, c.state)) != "" {
		t.Errorf("%s, %v; want %s", asJSON(t, c.state), err, asJSON(t, d))
	}
}

var errInjected = errors.New("injected")

// faultFS fails its n-th operation, and writes only half when that is a write.
type faultFS struct {
	OS
	mu   sync.Mutex
	left int // operations until the fault; <0: none
	op   string
}

func (f *faultFS) fault(op string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left < 0 {
		return nil
	}
	f.left--
	if f.left == -1 {
		f.op = op
		return fmt.Errorf("%s: %w", op, errInjected)
	}
	return nil
}

func (f *faultFS) OpenFile(name string, flag int, perm os.FileMode) (File, error) {
	if err := f.fault("open"); err != nil {
		return nil, err
	}
	file, err := f.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &faultFile{file, f}, nil
}

func (f *faultFS) Rename(a, b string) error {
	if err := f.fault("rename"); err != nil {
		return err
	}
	return f.OS.Rename(a, b)
}

func (f *faultFS) Link(a, b string) error {
	if err := f.fault("link"); err != nil {
		return err
	}
	return f.OS.Link(a, b)
}

func (f *faultFS) SyncDir(dir string) error {
	if err := f.fault("syncdir"); err != nil {
		return err
	}
	return f.OS.SyncDir(dir)
}

type faultFile struct {
	File
	fs *faultFS
}

func (f *faultFile) Write(p []byte) (int, error) {
	if err := f.fs.fault("write"); err != nil {
		n, _ := f.File.Write(p[:len(p)/2])
		return n, err
	}
	return f.File.Write(p)
}

func (f *faultFile) Sync() error {
	if err := f.fs.fault("fsync"); err != nil {
		return err
	}
	return f.File.Sync()
}

// TestFaultEverywhere lets each operation of a history fail in turn: whatever was acknowledged is there afterwards, the
// Journal acknowledges nothing more until it is opened again, and then works.
func TestFaultEverywhere(t *testing.T) {
	seen := map[string]bool{}
	for n := 0; ; n++ {
		dir := t.TempDir()
		fs := &faultFS{left: n}
		acked := 0
		j, d, err := Open(Options{Dir: dir, FS: fs, MaxSize: 600})
		for i := 1; i <= 12 && err == nil; i++ {
			if err = j.Append(record(i)); err != nil {
				break
			}
			acked = i
			d = d.Apply(record(i))
			if j.NeedsCompaction() {
				err = compact(j, d)
			}
		}
		if fs.op == "" {
			if err != nil {
				t.Fatal(err)
			}
			_ = j.Close()
			break // no fault any more: all were tried
		}
		seen[fs.op] = true
		if !errors.Is(err, errInjected) {
			t.Fatalf("fault %d (%s): %v", n, fs.op, err)
		}
		if j != nil {
			if err := j.Append(record(99)); !errors.Is(err, ErrDead) {
				t.Fatalf("fault %d (%s): an Append after it: %v", n, fs.op, err)
			}
			if err := j.Install(j.Snapshot(d)); !errors.Is(err, ErrDead) {
				t.Fatalf("fault %d (%s): an Install after it: %v", n, fs.op, err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
		}
		again, got, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatalf("fault %d (%s): open again: %v", n, fs.op, err)
		}
		// The record whose fsync failed may be there; none before it may be missing, and none after it present.
		if got.Epoch != uint64(acked) && got.Epoch != uint64(acked)+1 {
			t.Fatalf("fault %d (%s): acknowledged %d, found %d", n, fs.op, acked, got.Epoch)
		}
		if err := again.Append(record(50)); err != nil {
			t.Fatal(err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, op := range []string{"open", "write", "fsync", "rename", "syncdir", "link"} {
		if !seen[op] {
			t.Errorf("no fault of %s was tried", op)
		}
	}
}

// FuzzDecode: no file makes decode panic, and what it accepts it accepts again after a snapshot.
func FuzzDecode(f *testing.F) {
	frame, err := encodeFrame('S', participant.Durable{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(encodeHeader(1), frame...))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := decode("journal", data); err == nil && c.torn < 0 {
			t.Error("negative torn tail")
		}
	})
}
