package haproxy

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cutover/cutover/lbagent/driver"
)

// A published file that was damaged while no agent ran keeps nobody from starting. Its backend stays with its App, what
// differs is told, and it is put right byte for byte: by Mend while HAProxy runs, at once where HAProxy is about to start.
// Without a journal that knows the App the tree is one that HAProxy loads, and the damaged file is kept.
func TestADamagedFileKeepsNobodyFromStarting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "hp")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		o := planOptions
		o.Dir, o.Pool = filepath.Join(dir, "c"), 1
		tree, err := openTree(o)
		if err != nil {
			t.Fatal(err)
		}
		want := drawSection(t, "")
		if len(withoutWarm(want).Upstreams) == 0 {
			t.Skip("nothing is published")
		}
		if err := tree.publish(want); err != nil {
			t.Fatal(err)
		}
		held := tree.slotsOf("shop")
		digest := driver.Digest(withoutWarm(want))
		var paths []string
		for s := range tree.published {
			paths = append(paths, o.mapFile(slotFile(s)))
		}
		slices.Sort(paths)
		path := rapid.SampledFrom(paths).Draw(t, "file")
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bad := append([]byte(nil), good[:rapid.IntRange(0, len(good)-1).Draw(t, "length")]...)
		if rapid.Bool().Draw(t, "zeros") { // as after a crash of the machine
			bad = append(bad, make([]byte, len(good)-len(bad))...)
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if rapid.IntRange(0, 4).Draw(t, "gone") == 0 {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		o.Restore = rapid.Bool().Draw(t, "restore")
		known := rapid.Bool().Draw(t, "known")
		o.Journaled = func(app string) (driver.Section, bool) { return want, known && app == "shop" }

		tree, err = openTree(o)
		if err != nil {
			t.Fatalf("the tree is refused: %v", err)
		}
		now, err := readOptional(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := tree.digest(t.Context(), "shop")
		if err != nil {
			t.Fatal(err)
		}
		altered, err := tree.altered()
		if err != nil {
			t.Fatal(err)
		}
		if !known {
			p, err := parseSlotFile(now)
			if err != nil || !bytes.Equal(now, renderSlot(o, slotOfPath(t, path), p)) {
				t.Errorf("HAProxy cannot load what is left: %v\n%s", err, now)
			}
			return
		}
		for class, s := range held {
			if tree.slotsOf("shop")[class] != s {
				t.Errorf("the App held %v, and holds %v", held, tree.slotsOf("shop"))
			}
		}
		if bytes.Equal(now, good) {
			if got != digest || len(altered) != 0 {
				t.Errorf("restored, and the digest is %s, want %s; altered %v", got, digest, altered)
			}
			return
		}
		if o.Restore {
			t.Errorf("HAProxy is about to start on\n%s", now)
		}
		if got == digest {
			t.Error("the digest of a damaged file is that of a good one")
		}
		if len(altered) != 1 || altered[0].path != path || altered[0].app != "shop" || !bytes.Equal(altered[0].want, good) {
			t.Errorf("told: %+v", altered)
		}
		if err := tree.mend(); err != nil {
			t.Fatal(err)
		}
		if now, err = os.ReadFile(path); err != nil || !bytes.Equal(now, good) {
			t.Errorf("put right: %v\n%s\nwant\n%s", err, now, good)
		}
		if got, err = tree.digest(t.Context(), "shop"); err != nil || got != digest {
			t.Errorf("digest %s, %v; want %s", got, err, digest)
		}
	})
}

// A file that was cut off anywhere, between two lines too, is told from a whole one by itself.
func TestNoPartOfASlotsFileIsWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, p := slot{"t", 1}, published{App: "shop", Upstreams: withoutWarm(drawSection(t, "")).Upstreams}
		if len(p.Upstreams) == 0 {
			p.App = ""
		}
		whole := renderSlot(planOptions, s, p)
		if got, err := parseSlotFile(whole); err != nil || !bytes.Equal(renderSlot(planOptions, s, got), whole) {
			t.Fatalf("the whole one: %v", err)
		}
		for n := range len(whole) {
			if got, err := parseSlotFile(whole[:n]); err == nil && bytes.Equal(renderSlot(planOptions, s, got), whole[:n]) {
				t.Fatalf("%d bytes of %d pass for a file:\n%s", n, len(whole), whole[:n])
			}
		}
	})
}

func slotOfPath(t *rapid.T, path string) slot {
	name, _ := bytes.CutSuffix([]byte(filepath.Base(path)), []byte(".cfg"))
	s, ok := parseSlot(string(bytes.TrimPrefix(name, []byte("10-"))))
	if !ok {
		t.Fatalf("no slot: %s", path)
	}
	return s
}
