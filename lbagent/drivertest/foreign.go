package drivertest

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"

	"github.com/cutover/cutover/lbagent/driver"
)

// Hand is one thing that somebody else does behind the agent's back.
type Hand struct {
	Name string
	Do   func(t testing.TB)
	// Hurts: clients may notice the change itself. Putting it right must never cost a request.
	Hurts bool
	// Reloads: the hand reloads the proxy as its owner may.
	Reloads bool
}

// Edit changes a file in its place, as an editor that keeps the inode does.
func Edit(t testing.TB, path string, change func(string) string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := change(string(text))
	if next == string(text) {
		t.Fatalf("the edit of %s changes nothing:\n%s", path, text)
	}
	if err := os.WriteFile(path, []byte(next), 0o600); err != nil {
		t.Fatal(err)
	}
}

// seen tells what the driver sees of a foreign hand: what Survey lists, and what Read tells otherwise than wanted.
func (r *rig) seen(want driver.Section) ([]driver.Difference, bool, error) {
	reading, err := r.Driver().Read(deadline(r))
	if err != nil {
		return nil, false, err
	}
	found, err := r.Driver().Survey(deadline(r))
	differs := reading.Sections[want.App].Digest != driver.Digest(want)
	for app := range reading.Sections {
		differs = differs || app != want.App
	}
	return found, differs, err
}

// putRight does what a participant does whose Group's policy is to repair.
func (r *rig) putRight(want driver.Section) {
	r.Helper()
	r.eventually("what a foreign hand changed is put right", func() error {
		if err := r.Driver().Mend(deadline(r)); err != nil {
			return err
		}
		reading, err := r.Driver().Read(deadline(r))
		if err != nil {
			return err
		}
		for app := range reading.Sections {
			if app != want.App { // a Sync takes it away
				r.publish(driver.Section{App: app})
				r.converge(driver.Section{App: app})
			}
		}
		if reading.Sections[want.App].Digest != driver.Digest(want) {
			r.converge(want)
		}
		found, differs, err := r.seen(want)
		if err == nil && (differs || len(found) > 0) {
			err = fmt.Errorf("still different: %t, %+v", differs, found)
		}
		return err
	})
}

// Whatever somebody else does to the proxy or to the files is seen, and putting it right costs no request (NEVER-ZERO).
func testForeignHands(t *testing.T, h Harness) {
	r := newRig(t, h)
	a, b, spare := NewBackend(t, "a-1"), NewBackend(t, "b-1"), NewBackend(t, "spare-1")
	s := r.bring("shop", a, b)
	published := r.publishedDigest("shop")
	for _, hand := range r.Hands(s, spare.Upstream(driver.Serving)) {
		t.Run(hand.Name, func(t *testing.T) {
			r := &rig{TB: t, Proxy: r.Proxy}
			if found, differs, err := r.seen(s); err != nil || differs || len(found) > 0 {
				t.Fatalf("before: differs %t, %+v, %v", differs, found, err)
			}
			load := StartLoad(t, r.FrontendURL()+"/shop", 4, !h.Lossy)
			hand.Do(t)
			r.eventually("it is seen", func() error {
				found, differs, err := r.seen(s)
				if err == nil && !differs && len(found) == 0 {
					err = fmt.Errorf("nothing is seen")
				}
				return err
			})
			hurt, errs := load.Failed()
			if hurt > 0 && !hand.Hurts {
				t.Errorf("the hand alone cost %d requests: %v", hurt, errs)
			}
			r.putRight(s)
			if !hand.Hurts {
				before := load.Answered("")
				r.eventually("requests go on", func() error {
					if load.Answered("") < before+20 {
						return fmt.Errorf("%d answered", load.Answered(""))
					}
					return nil
				})
				if n, errs := load.Failed(); n > hurt {
					t.Errorf("putting it right cost %d requests: %v", n-hurt, errs)
				}
			}
			load.Stop()
			r.awaitGreen("shop", a.Name, b.Name)
			if got := r.publishedDigest("shop"); got != published {
				t.Errorf("published digest %s, before %s", got, published)
			}
			for range 4 {
				r.answersFrom(a, b)
			}
		})
	}
	if spare.Traffic() > 0 {
		t.Logf("the foreign upstream got %d requests meanwhile", spare.Traffic())
	}
}

// answersFrom fails unless one of the backends answers.
func (r *rig) answersFrom(backends ...*Backend) {
	r.Helper()
	got, err := r.get("", "/shop")
	if err != nil || got.Status != http.StatusOK || !slices.ContainsFunc(backends, func(b *Backend) bool { return b.Name == got.Backend }) {
		r.Fatalf("%+v, %v", got, err)
	}
}

// Survey and Read change nothing: what somebody else did stays until somebody puts it right.
func testForeignHandsLeftAlone(t *testing.T, h Harness) {
	r := newRig(t, h)
	a, b, spare := NewBackend(t, "a-1"), NewBackend(t, "b-1"), NewBackend(t, "spare-1")
	s := r.bring("shop", a, b)
	for _, hand := range r.Hands(s, spare.Upstream(driver.Serving)) {
		t.Run(hand.Name, func(t *testing.T) {
			r := &rig{TB: t, Proxy: r.Proxy}
			hand.Do(t)
			var first string
			r.eventually("it is seen", func() error {
				found, differs, err := r.seen(s)
				if err == nil && !differs && len(found) == 0 {
					err = fmt.Errorf("nothing is seen")
				}
				first = fmt.Sprintf("%t %+v", differs, found)
				return err
			})
			r.eventually("it stays as it is", func() error {
				for range 5 {
					found, differs, err := r.seen(s)
					if now := fmt.Sprintf("%t %+v", differs, found); err != nil || now != first {
						first = now
						return errors.Join(errors.New(now), err)
					}
				}
				return nil
			})
			r.putRight(s)
		})
	}
}

// Nothing that the driver itself does is a difference: warm, serving and draining upstreams, Apps that come and go, an
// owner's reload, another agent on the same tree.
func testOwnWorkIsNoDifference(t *testing.T, h Harness) {
	r := newRig(t, h)
	a, b := NewBackend(t, "a-1"), NewBackend(t, "b-1")
	none := func(when string, want driver.Section) {
		t.Helper()
		if found, differs, err := r.seen(want); err != nil || differs || len(found) > 0 {
			t.Fatalf("%s: differs %t, %+v, %v", when, differs, found, err)
		}
	}
	none("an empty proxy", driver.Section{App: "shop"})
	s := r.bring("shop", a)
	none("serving", s)
	warm := join(s, b.Upstream(driver.Warm))
	r.converge(warm)
	none("warm", warm)
	target := withMode(withMode(warm, driver.Serving, b.Name), driver.Draining, a.Name)
	r.publish(target)
	r.converge(target)
	none("draining", target)
	last := section("shop", b.Upstream(driver.Serving))
	r.publish(last)
	r.converge(last)
	none("drained", last)
	r.OwnerReload(t)
	none("after an owner's reload", last)
	r.Reopen(t)
	if _, err := r.Driver().Check(deadline(t)); err != nil {
		t.Fatal(err)
	}
	none("another agent", last)
	absent := driver.Section{App: "shop"}
	r.publish(absent)
	r.converge(absent)
	none("removed", absent)
}
