package leaktest

import (
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

// tests are the tests of a package.
type tests func() int

func (t tests) Run() int { return t() }

func TestWhatIsLeft(t *testing.T) {
	forever := make(chan struct{})
	defer close(forever)
	for _, c := range []struct { // in this order: what is left by one would be found by the next
		name     string
		tests    tests
		patience time.Duration
		code     int
		says     string
	}{
		{"nothing", func() int { return 0 }, 0, 0, ""},
		{"failed tests", func() int { return 2 }, 0, 2, ""},
		{"what ends in its time", func() int { go time.Sleep(time.Second); return 0 }, patience, 0, ""},
		{"what does not end", func() int { go func() { <-forever }(); return 0 }, 0, 1, "left something running"},
	} {
		var out strings.Builder
		if got := run(c.tests, c.patience, &out); got != c.code || !strings.Contains(out.String(), c.says) {
			t.Errorf("%s: exit %d, said %q", c.name, got, &out)
		}
	}
}
