package participant

import (
	"fmt"
	"testing"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// A proxy that does not listen is, most likely, one whose frontend a command has disabled; another proxy is another configuration.
func TestCauseOfAProxyThatIsNotTheRightOne(t *testing.T) {
	for want, err := range map[Cause]error{
		ForeignCommand: &driver.NotListeningError{Text: "it does not listen"},
		ChangedBase:    driver.ErrProxyMismatch,
	} {
		now := time.Unix(1000, 0)
		s := Recover(Identity{Cluster: "test", Group: "public"}, Durable{}, now)
		s, _ = Step(s, ReadFailed{Started: now, Err: fmt.Errorf("read: %w", err)}, now)
		got := s.Drifts()
		if len(got) != 1 || got[0].Cause != want || !got[0].Manual || got[0].Summary != "read: "+err.Error() {
			t.Errorf("%v: %+v, want %s", err, got, want)
		}
	}
}

// What is said of an upstream that is not there as it should be takes the place of "missing".
func TestDifferenceSaysWhy(t *testing.T) {
	want := driver.Section{App: "shop", Upstreams: []driver.Upstream{{Name: "a-1", Mode: driver.Serving}, {Name: "a", Mode: driver.Serving}}}
	have := driver.NewSectionReading("shop", nil, nil)
	have.Mark("a-1 is in maintenance")
	if got := Difference(want, have); got != "a is missing; a-1 is in maintenance" {
		t.Errorf("%q", got)
	}
}
