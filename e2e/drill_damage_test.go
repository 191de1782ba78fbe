package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// damageOwnFile cuts a file of the published tree that holds the App, and returns its place.
func (c *cluster) damageOwnFile(host string) string {
	c.t.Helper()
	path, text := c.ownFile(host)
	if err := os.WriteFile(path, text[:len(text)/2], 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// ownFile is a published file of the Host that tells of the App, and what it holds.
func (c *cluster) ownFile(host string) (path string, text []byte) {
	c.t.Helper()
	dir := filepath.Join(c.dir, "hosts", host, "proxy")
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a generation that went while we looked
		}
		if err != nil {
			return err
		}
		if e.IsDir() || !strings.HasSuffix(p, ".cfg") && !strings.HasSuffix(p, ".section") {
			return nil
		}
		if found, err := os.ReadFile(p); err == nil && strings.Contains(string(found), "shop") {
			path, text = p, found
		}
		return nil
	})
	if err != nil || path == "" {
		c.t.Fatalf("no published file of %s below %s: %v", host, dir, err)
	}
	return path, text
}

// A published file is damaged while the lbagent is away: it starts all the same, tells the difference and puts it right, and
// no request is lost. If the proxy starts on it too, as after a crash of the machine, it serves at once.
func TestDrillADamagedFile(t *testing.T) {
	t.Parallel()
	d := newCrashDrillOf(t, "haproxy=1,nginx=1,nginx-reload=1")
	before := d.still()
	for _, host := range d.hosts {
		back := d.takeAway(host)
		path := d.damageOwnFile(host)
		back()
		d.putRight(host, "a damaged file", func(e driftEntry) bool {
			return e.Cause == "edited-file" && (e.App == "shop" && e.Place == path || strings.Contains(e.Summary, "published files of shop"))
		})
		d.rest(host + ": the lbagent started on a damaged file")
	}
	d.asBefore(before, "damaged files are put right")
	for i, host := range d.hosts {
		h := d.host(host)
		d.loads[i].TakeOut(h.FrontendURL)
		back := d.takeAway(host)
		d.signal(-h.ProxyPID, syscall.SIGKILL)
		d.damageOwnFile(host)
		back()
		d.eventually(host+" serves", func() bool {
			code, body, err := get(h.FrontendURL + "/shop/x")
			return err == nil && code == 200 && strings.HasPrefix(body, d.serving+" ")
		})
		d.loads[i].PutIn(h.FrontendURL)
		d.rest(host + ": lbagent and proxy started on a damaged file")
	}
	d.asBefore(before, "lbagent and proxy started on damaged files")
	id, version := d.begin()
	d.evident(d.watch(id, "--wait-for", "drained").must(t, 0).View)
	d.serving = version
	d.rest("a deploy after that")
}
