package drivertest

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/servertest"
	"github.com/cutover/cutover/lbagent/driver"
)

const loadClients = 8

// awaitAnswers waits until the load has n more answers from the named upstream.
func (r *rig) awaitAnswers(l *Load, name string, n int) {
	r.Helper()
	from := l.Answered(name)
	r.eventually("answers", func() error {
		if got := l.Answered(name) - from; got < n {
			failed, errs := l.Failed()
			return fmt.Errorf("%d answers of %q, want %d (%d failed: %v)", got, name, n, failed, errs)
		}
		return nil
	})
}

// Blue-green flips, five in a row, under keep-alive POSTs that nobody retries: none is lost, none goes to a warm
// upstream, and after each flip none goes to the old one.
func testFlipUnderLoad(t *testing.T, h Harness) {
	r := newRig(t, h)
	now := NewBackend(t, "rev-0")
	s := r.bring("shop", now)
	kept := StartLoad(t, r.FrontendURL()+"/shop", loadClients, !h.Lossy)
	fresh := StartLoad(t, r.FrontendURL()+"/shop", 2, false)
	r.awaitAnswers(kept, "rev-0", 50)
	for i := 1; i <= 5; i++ {
		next := NewBackend(t, fmt.Sprintf("rev-%d", i))
		warm := join(s, next.Upstream(driver.Warm))
		r.stage(warm)
		r.converge(warm)
		r.awaitGreen("shop", next.Name)
		if n := kept.Answered(next.Name) + fresh.Answered(next.Name); n != 0 {
			t.Fatalf("%s got %d requests while it was warm", next.Name, n)
		}
		flipped := withMode(withMode(warm, driver.Serving, next.Name), driver.Draining, now.Name)
		r.publish(flipped)
		r.converge(flipped)
		r.holds(flipped)
		r.awaitAnswers(kept, next.Name, 20)
		r.awaitAnswers(fresh, next.Name, 5)
		r.awaitIdle("shop", now.Name)
		if before := now.Traffic(); r.stays(kept, next.Name, 20) && now.Traffic() != before {
			t.Errorf("%s got %d requests while it was draining", now.Name, now.Traffic()-before)
		}
		s = section("shop", next.Upstream(driver.Serving))
		r.publish(s)
		r.converge(s)
		r.holds(s)
		now.Stop()
		r.awaitAnswers(kept, next.Name, 20)
		now = next
	}
	for _, l := range []*Load{kept, fresh} {
		l.Stop()
		if n, errs := l.Failed(); n != 0 {
			t.Errorf("%d of %d requests were lost: %v", n, n+l.Answered(""), errs)
		}
	}
	t.Logf("%d keep-alive and %d single requests over 5 flips", kept.Answered(""), fresh.Answered(""))
}

// stays waits for n more answers of the named upstream.
func (r *rig) stays(l *Load, name string, n int) bool {
	r.Helper()
	r.awaitAnswers(l, name, n)
	return true
}

// awaitIdle waits until no worker has a session on the upstream.
func (r *rig) awaitIdle(app, name string) {
	r.Helper()
	r.eventually("no sessions", func() error {
		row, err := row(r.read(app), name)
		if err != nil {
			return err
		}
		if row.Sessions != 0 {
			return fmt.Errorf("%s has %d sessions", name, row.Sessions)
		}
		return nil
	})
}

// The control: the same load, and the change as a careless script makes it (start the new task, swap the set at once,
// kill the old task). It must lose requests, or FlipUnderLoad proves nothing.
func testNaiveSwapLosesRequests(t *testing.T, h Harness) {
	r := newRig(t, h)
	now := NewBackend(t, "rev-0")
	r.bring("shop", now)
	load := StartLoad(t, r.FrontendURL()+"/shop", loadClients, !h.Lossy)
	r.awaitAnswers(load, "rev-0", 50)

	// The new task does not listen yet when the proxies are told about it.
	next := driver.Upstream{Name: "rev-1", Address: servertest.Refused(t), Weight: 100, Mode: driver.Serving, Health: Health()}
	swapped := section("shop", next)
	r.publish(swapped)
	r.converge(swapped)
	now.Stop()
	r.eventually("lost requests", func() error {
		if n, _ := load.Failed(); n == 0 {
			return errors.New("a naive swap lost no request: the load generator does not see losses")
		}
		return nil
	})
}

// Draining keeps the sessions that are open and takes no new ones; Cut closes what is left.
func testDrainAndCut(t *testing.T, h Harness) {
	r := newRig(t, h)
	old, next := NewBackend(t, "old-1"), NewBackend(t, "new-1")
	s := r.bring("shop", old)
	old.Hold()

	type result struct {
		answer
		err error
	}
	results := make(chan result, 2)
	ask := func() {
		// It outlasts all that is done meanwhile.
		client := &http.Client{Timeout: 10 * Deadline, Transport: &http.Transport{DisableKeepAlives: true}}
		defer client.CloseIdleConnections()
		resp, err := client.Get(r.FrontendURL() + "/shop/slow")
		if err != nil {
			results <- result{err: err}
			return
		}
		defer resp.Body.Close()
		results <- result{answer: answer{Status: resp.StatusCode, Backend: resp.Header.Get("X-Backend")}}
	}
	asked := old.Traffic()
	go ask()
	r.awaitTraffic(old, asked+1)
	r.awaitSessions("shop", old.Name, 1)

	warm := join(s, next.Upstream(driver.Warm))
	r.converge(warm)
	r.awaitGreen("shop", next.Name)
	flipped := withMode(withMode(warm, driver.Serving, next.Name), driver.Draining, old.Name)
	r.publish(flipped)
	r.converge(flipped)
	r.holds(flipped)
	r.awaitSessions("shop", old.Name, 1)
	r.expect("", "/shop", answer{Status: http.StatusOK, Backend: next.Name})
	old.Release()
	if got := receive(t, results); got.err != nil || got.answer != (answer{http.StatusOK, old.Name}) {
		t.Errorf("the request that was in flight ended with %+v", got)
	}
	r.awaitIdle("shop", old.Name)

	// Another one that never ends: back to serving, one request, draining, Cut.
	back := withMode(withMode(flipped, driver.Serving, old.Name), driver.Draining, next.Name)
	r.converge(back)
	old.Hold()
	asked = old.Traffic()
	go ask()
	r.awaitTraffic(old, asked+1)
	r.awaitSessions("shop", old.Name, 1)
	r.converge(flipped)
	r.awaitSessions("shop", old.Name, 1)
	if err := r.Driver().Cut(deadline(t), "shop", old.Name); err != nil {
		t.Fatalf("cut: %v", err)
	}
	r.awaitIdle("shop", old.Name)
	if got := receive(t, results); got.err == nil && got.Status == http.StatusOK {
		t.Errorf("the session that was cut ended with %+v", got)
	}
	r.holds(flipped)
}

// awaitTraffic waits until n requests have reached the backend: a session may be a check's.
func (r *rig) awaitTraffic(b *Backend, n int64) {
	r.Helper()
	r.eventually("requests", func() error {
		if got := b.Traffic(); got < n {
			return fmt.Errorf("%s got %d, want %d", b.Name, got, n)
		}
		return nil
	})
}

func (r *rig) awaitSessions(app, name string, atLeast int) {
	r.Helper()
	r.eventually("sessions", func() error {
		row, err := row(r.read(app), name)
		if err != nil {
			return err
		}
		if row.Sessions < atLeast {
			return fmt.Errorf("%s has %d sessions", name, row.Sessions)
		}
		return nil
	})
}

func receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(Deadline):
		t.Fatal("no answer within the deadline")
		panic("unreachable")
	}
}
