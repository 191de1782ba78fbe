package haproxy

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// While HAProxy loads the tree no file of it changes, or it would load some of before and some of after.
func TestPublishWaitsForAReload(t *testing.T) {
	dir, err := os.MkdirTemp("", "hp")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	o := planOptions
	o.Dir = filepath.Join(dir, "c")
	o.RecheckAfter = time.Hour // there is no haproxy to check with
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	want := driver.Section{App: "shop", Routes: []driver.Route{{Host: "*", Path: "/shop"}}, Upstreams: []driver.Upstream{{
		Name: "a", Address: netip.MustParseAddrPort("127.0.0.1:9"), Weight: 1, Mode: driver.Serving,
		Health: driver.Health{Kind: driver.HealthTCP, Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 1},
	}}}
	digest := func() string {
		t.Helper()
		got, err := d.PublishedDigest(t.Context(), want.App)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	before := digest()
	if err := d.reloading.Acquire(t.Context(), allChanges); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := d.Publish(ctx, want); !errors.Is(err, driver.ErrBusy) {
		t.Errorf("during a reload: %v, want that it is busy", err)
	}
	if got := digest(); got != before {
		t.Errorf("published during a reload: %s, before %s", got, before)
	}
	d.reloading.Release(allChanges)
	if err := d.Publish(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if got := digest(); got != driver.Digest(want) {
		t.Errorf("published %s, want %s", got, driver.Digest(want))
	}
}
