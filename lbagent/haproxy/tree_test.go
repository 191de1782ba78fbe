package haproxy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/internal/flock"
	"github.com/cutover/cutover/lbagent/driver"
)

// testOptions are Options on a directory of the test's own, without a proxy.
func testOptions(t testing.TB) Options {
	t.Helper()
	dir, err := os.MkdirTemp("", "hp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := planOptions
	o.Dir = filepath.Join(dir, "c")
	o.RecheckAfter, o.ReloadTimeout = defaultRecheckAfter, defaultReloadTimeout
	return o
}

// servingOnDisk counts the upstreams that a request for the key would find after a restart from the files as they are.
func servingOnDisk(t *rapid.T, o Options, key string) int {
	text, err := os.ReadFile(o.mapFile(routesMap))
	if err != nil {
		t.Fatal(err)
	}
	value, ok := parseMapFile(text)[key]
	if !ok {
		return 0
	}
	_, to, ok := parseRoute(key, value)
	if !ok {
		t.Fatalf("route %s -> %q", key, value)
	}
	n := 0
	for _, backend := range to.backends {
		s, _ := parseSlot(backend)
		text, err := os.ReadFile(o.mapFile(slotFile(s)))
		if err != nil {
			t.Fatalf("route %s names a backend that does not exist: %v", key, err)
		}
		p, err := parseSlotFile(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range p.Upstreams {
			if u.Mode == driver.Serving {
				n++
			}
		}
	}
	return n
}

// A crash or a reload between any two renames of a publish finds a tree that serves (NEVER-ZERO), and publishing again
// after the crash, by a new agent, ends at exactly what was wanted (UNDO compares digests).
func TestPublishIsRightAtEveryRename(t *testing.T) {
	errCrash := errors.New("crash")
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
		for step := range 3 {
			want := drawSection(t, fmt.Sprint(step))
			hasServing := false
			for _, u := range want.Upstreams {
				hasServing = hasServing || u.Mode == driver.Serving
			}
			before := map[string]int{}
			for _, r := range want.Routes {
				before[routeKey(r)] = servingOnDisk(t, o, routeKey(r))
			}
			renames, crashAt := 0, rapid.IntRange(1, 12).Draw(t, "crash at")
			tree.renamed = func(path string) error {
				renames++
				for key, n := range before {
					if n > 0 && hasServing && servingOnDisk(t, o, key) == 0 {
						t.Fatalf("NEVER-ZERO: %s has no upstream after rename %d (%s)", key, renames, path)
					}
				}
				if renames == crashAt {
					return errCrash
				}
				return nil
			}
			if err := tree.publish(want); errors.Is(err, errCrash) {
				if tree, err = openTree(o); err != nil {
					t.Fatalf("open after a crash: %v", err)
				}
				if err := tree.publish(want); err != nil {
					t.Fatalf("publish after a crash: %v", err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			got, err := tree.digest(t.Context(), "shop")
			if err != nil {
				t.Fatal(err)
			}
			if want := driver.Digest(withoutWarm(want)); got != want {
				t.Fatalf("published digest %q, want %q", got, want)
			}
		}
	})
}

// Opening a tree is idempotent, removes what a crash left, keeps who holds what, and takes no foreign file for ours.
func TestOpenTree(t *testing.T) {
	o := testOptions(t)
	tree, err := openTree(o)
	if err != nil {
		t.Fatal(err)
	}
	held, err := tree.hold("warm-only", []string{"h1", "t"})
	if err != nil {
		t.Fatal(err)
	}
	left := o.mapFile(atomicfile.Temporary + "routes.map-1")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if tree, err = openTree(o); err != nil {
			t.Fatal(err)
		}
		if got := tree.slotsOf("warm-only"); len(got) != 2 || got["h1"] != held["h1"] || got["t"] != held["t"] {
			t.Errorf("held %v, want %v", got, held)
		}
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what a crash left is still there: %v", err)
		}
	}
	if err := tree.release("warm-only", nil); err != nil {
		t.Fatal(err)
	}
	if tree, err = openTree(o); err != nil || len(tree.slotsOf("warm-only")) != 0 {
		t.Errorf("after release: %v, %v", tree.slotsOf("warm-only"), err)
	}
	for _, dir := range []string{o.Dir, o.currentDir()} {
		if stat, err := os.Stat(dir); err != nil || stat.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, stat.Mode(), err)
		}
	}
	if err := os.WriteFile(o.mapFile("10-mine.cfg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if tree, err = openTree(o); err != nil {
		t.Fatalf("a foreign file keeps the agent from starting: %v", err)
	}
	if found, err := tree.altered(); err != nil || len(found) != 1 || found[0].want != nil {
		t.Errorf("a foreign file is not told: %+v, %v", found, err)
	}
}

// The pool doubles, class by class, and only when it has to.
func TestGrow(t *testing.T) {
	o := testOptions(t)
	o.Pool = 2
	tree, err := openTree(o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		app := fmt.Sprintf("app-%d", i)
		_, err := tree.hold(app, []string{"t"})
		if errors.As(err, new(errNoSpare)) {
			if err := tree.grow("t"); err != nil {
				t.Fatal(err)
			}
			_, err = tree.hold(app, []string{"t"})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	n := map[string]int{}
	for s := range tree.holders {
		n[s.class]++
	}
	if n["t"] != 16 || n["h1"] != 2 {
		t.Errorf("backends by class: %v, want 16 of t and 2 of h1", n)
	}
	if err := tree.grow("t"); err != nil || len(tree.holders) != 16+2+2+2 {
		t.Errorf("a class with spares grew: %v", err)
	}
}

// One process drives a tree. A supervisor that bootstraps beside a running agent finds that all is there.
func TestTreeIsHeldByOne(t *testing.T) {
	o := testOptions(t)
	o.RuntimeSocket, o.MasterSocket = filepath.Join(o.Dir, "r"), filepath.Join(o.Dir, "m")
	if err := Bootstrap(o); err != nil {
		t.Fatal(err)
	}
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := New(o); !errors.Is(err, flock.ErrHeld) {
		t.Errorf("a second driver on the same tree: %v, %v", second, err)
	}
	if err := Bootstrap(o); err != nil {
		t.Errorf("bootstrap beside a driver: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = New(o); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
