package nginx_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
)

// hatch is a server of the test's own in nginx, which runs Lua: it gives the hand on the memory that the workers share.
func (p *proxy) hatch(t testing.TB) (run func(code string) string) {
	t.Helper()
	address := freePort(t, p.options.SourceAddress)
	p.add(t, fmt.Sprintf(`server { listen %s; location / { content_by_lua_block {
		ngx.req.read_body()
		ngx.print(assert(loadstring(ngx.req.get_body_data()))())
	} } }`, address))
	return func(code string) string {
		t.Helper()
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Post("http://"+address.String(), "text/plain", strings.NewReader(code))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %v", resp.Status, text, err)
		}
		return string(text)
	}
}

// fill takes all the memory of a dictionary: large pieces first, then small ones.
const fill = `
	local dict, n = ngx.shared.%s, 0
	for _, size in ipairs({100000, 4000, 1500, 700, 300, 140, 60, 1}) do
		while true do
			local ok, err = dict:safe_set("filler" .. n, ("x"):rep(size))
			if not ok then break end
			n = n + 1
		end
	end
	return n`

// A request that cannot be counted is a session all the same: without it a draining upstream would be let go of while the
// request runs (NO-ORPHAN-KILL).
func TestLuaRequestThatCannotBeCounted(t *testing.T) {
	p := newProxy(t, lua)
	run := p.hatch(t)
	p.Start(t)
	a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
	p.serve(t, section("shop", a.Upstream(driver.Serving)))
	run(fmt.Sprintf(fill, "cutover_count"))
	a.Hold()
	done := make(chan error, 1)
	go func() {
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(p.url + "/shop")
		if err == nil {
			resp.Body.Close()
		}
		done <- err
	}()
	drivertest.Eventually(t, "the request is with the upstream", func() error {
		if a.Traffic() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	p.serve(t, section("shop", b.Upstream(driver.Serving), a.Upstream(driver.Draining)))
	if row := p.row(t, "shop", "a-1"); row.Sessions == 0 {
		t.Errorf("%+v while a request is with it", row)
	}
	a.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	drivertest.Eventually(t, "drained", func() error {
		if row := p.row(t, "shop", "a-1"); row.Sessions != 0 {
			return fmt.Errorf("%+v", row)
		}
		return nil
	})
}

// What is counted costs memory while it lasts: what was served once, by each worker, must not use the dictionary up.
func TestLuaCountsOnlyWhatIsInFlight(t *testing.T) {
	p := newProxy(t, lua)
	run := p.hatch(t)
	p.Start(t)
	a := drivertest.NewBackend(t, "a-1")
	p.serve(t, section("shop", a.Upstream(driver.Serving)))
	keys := func() string { return run(`return #ngx.shared.cutover_count:get_keys(0)`) }
	before := keys()
	for range 20 {
		p.status(t, "/shop")
	}
	drivertest.Eventually(t, "nothing is counted", func() error {
		if now := keys(); now != before {
			return fmt.Errorf("%s keys after requests that have ended, %s before them", now, before)
		}
		return nil
	})
}

// With its dictionary full nginx refuses a change, and what it refuses changes nothing: neither that App nor any other is lost
// to a worker that starts later.
func TestLuaFullDictionaryLosesNothing(t *testing.T) {
	p := newProxy(t, lua)
	run := p.hatch(t)
	p.Start(t)
	a := drivertest.NewBackend(t, "a-1")
	other, small := section("other", a.Upstream(driver.Serving)), section("shop", a.Upstream(driver.Serving))
	p.serve(t, other)
	p.serve(t, small)
	run(fmt.Sprintf(fill, "cutover_state"))
	large := small
	for i := range 400 {
		up := a.Upstream(driver.Warm)
		up.Name, up.Health = fmt.Sprintf("warm-%d", i), driver.Health{}
		large.Upstreams = append(large.Upstreams[:len(large.Upstreams):len(large.Upstreams)], up)
	}
	if err := p.driver.Converge(within(t), large); err == nil || !strings.Contains(err.Error(), "DictMiB") {
		t.Errorf("converge of what has no room: %v", err)
	}
	// A worker that is new reads everything anew.
	before := workers(t, p.master())
	for pid := range before {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	drivertest.Eventually(t, "new workers", func() error {
		now := workers(t, p.master())
		for pid := range now {
			if before[pid] {
				return errors.New("not yet")
			}
		}
		if len(now) != len(before) {
			return fmt.Errorf("%d workers", len(now))
		}
		return nil
	})
	for _, app := range []string{"shop", "other"} {
		if got := p.status(t, "/"+app); got != http.StatusOK {
			t.Errorf("%s: status %d", app, got)
		}
	}
	// Full as it is, an upstream leaves it.
	if err := p.driver.Converge(within(t), driver.Section{App: "other"}); err != nil {
		t.Errorf("remove an App: %v", err)
	}
	if got := p.status(t, "/other"); got != http.StatusNotFound {
		t.Errorf("status %d of an App that was removed", got)
	}
}
