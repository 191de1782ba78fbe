package e2e

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cutover/cutover/internal/loadgen"
)

// clients are how many send the load of a Host, each a request at a time.
const clients = 4 + 1 + 1

// load starts a modest load of every kind through all Hosts but those that are out; the caller stops it.
func (c *cluster) load(path string, out ...string) *loadgen.Run {
	c.t.Helper()
	return c.loadWith(loadgen.Options{URLs: c.frontends(out...), Path: path + "/buy", SlowPath: path + "/slow?ms=3000", KeepAlive: 4, Close: 1, Slow: 1, Think: 10 * time.Millisecond})
}

// loadWith starts a load. A request that is answered late, because the machine is busy or a proxy stood still, is not lost.
func (c *cluster) loadWith(o loadgen.Options) *loadgen.Run {
	c.t.Helper()
	o.Timeout = generous
	run, err := loadgen.Start(context.Background(), o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { run.Stop() })
	c.eventually("the load runs", func() bool { return run.Result().Sent > uint64(len(o.URLs)) })
	return run
}

// get asks one Host; a fresh connection each time.
func get(url string) (int, string, error) {
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: 15 * time.Second}).DialContext}}
	resp, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(body), err
}

// serves fails the test unless every Host answers several requests in a row with the version.
func (c *cluster) serves(version, path string) {
	c.t.Helper()
	for _, url := range c.frontends() {
		for range 8 {
			code, body, err := get(url + path + "/x")
			if err != nil || code != 200 || !strings.HasPrefix(body, version+" ") {
				c.t.Errorf("%s%s answers %d %q %v, want version %s", url, path, code, body, err, version)
				break
			}
		}
	}
}

// served says how many requests (health checks apart) a task has answered.
func served(address string) (int, error) {
	_, body, err := get("http://" + address + "/stats")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(body))
}

// killTask kills the process of a task as the kernel's OOM killer might.
func (c *cluster) killTask(id string) {
	c.t.Helper()
	task := c.task(id)
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		data, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(data, []byte(sampleBin+"\x00--addr\x00"+task.Address+"\x00")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if err != nil {
			continue
		}
		c.signal(pid, syscall.SIGKILL)
		return
	}
	c.t.Fatalf("no process of task %s at %s", id, task.Address)
}

func splitAddress(address string) (host, port string, err error) { return net.SplitHostPort(address) }
