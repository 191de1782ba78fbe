package nginx_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
)

// A generation is published while nginx loads the one before it, for another App's change or because its owner reloads it:
// what it loads is of one of them, and it does not name the other (RUNNING = JOURNAL).
func TestReloadLoadsOneGeneration(t *testing.T) {
	p := startProxy(t, reload)
	a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
	p.serve(t, section("shop", a.Upstream(driver.Serving)))

	// nginx reads the files of a directory in the order of their names. It waits at a FIFO until somebody opens it to write:
	// the first one tells that the App's file was read, the second one holds nginx behind it.
	dir := filepath.Join(p.options.Dir, "current")
	if block, err := filepath.Glob(filepath.Join(dir, "*", "app-shop.conf")); err == nil && len(block) == 1 {
		dir = filepath.Dir(block[0])
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	fifos := []string{filepath.Join(dir, "app-shop.y.conf"), filepath.Join(dir, "app-shop.z.conf")}
	for _, name := range fifos {
		if err := syscall.Mkfifo(name, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pass := func(name string) {
		t.Helper()
		drivertest.Eventually(t, "nginx reads the App's files", func() error {
			gate, err := os.OpenFile(name, os.O_WRONLY|syscall.O_NONBLOCK, 0) // fails while nobody reads
			if err != nil {
				return err
			}
			return errors.Join(gate.Close(), os.Remove(name))
		})
	}
	before := workers(t, p.master())
	if err := syscall.Kill(p.master(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	pass(fifos[0])
	target := section("shop", b.Upstream(driver.Serving), a.Upstream(driver.Draining))
	if err := p.driver.Publish(within(t), target); err != nil {
		t.Fatal(err)
	}
	pass(fifos[1])
	drivertest.Eventually(t, "the owner's reload", func() error {
		now := workers(t, p.master())
		for pid := range now {
			if before[pid] {
				return errors.New("an old worker is current")
			}
		}
		if len(now) == 0 {
			return errors.New("no worker")
		}
		return nil
	})

	if err := p.driver.Converge(within(t), target); err != nil {
		t.Fatal(err)
	}
	if row := p.row(t, "shop", "b-1"); row.Mode != driver.Serving {
		t.Fatalf("the driver reads %+v", row)
	}
	was := a.Traffic()
	for range 20 {
		if got := p.status(t, "/shop"); got != http.StatusOK {
			t.Fatalf("status %d", got)
		}
	}
	if n := a.Traffic() - was; n != 0 {
		t.Errorf("%d of 20 requests went to an upstream that drains, by the driver's word", n)
	}
}

// What somebody deletes of one App's published files is not carried into the generation that a change of another App makes:
// the reload for that change would take it out of traffic (NEVER-ZERO).
func TestReloadDoesNotCarryDamageOn(t *testing.T) {
	p := startProxy(t, reload)
	a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
	p.serve(t, section("shop", a.Upstream(driver.Serving)))
	p.serve(t, section("other", b.Upstream(driver.Serving)))
	var block string
	err := filepath.WalkDir(filepath.Join(p.options.Dir, "gens"), func(path string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(path, "/app-other.conf") {
			block = path
		}
		return err
	})
	if err != nil || block == "" {
		t.Fatalf("no block of the App: %v", err)
	}
	if err := os.Remove(block); err != nil {
		t.Fatal(err)
	}
	p.serve(t, section("shop", a.Upstream(driver.Serving), b.Upstream(driver.Serving)))
	if got := p.status(t, "/other"); got != http.StatusOK {
		t.Errorf("status %d of an App that nobody changed", got)
	}
}
