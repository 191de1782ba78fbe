package nginx

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// What nginx refused may be mended where its digest does not show (a certificate is there again): an old refusal is asked again
// before it is repeated.
func TestAnOldRefusalIsAskedAgain(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "certificate")
	checkerBinary := filepath.Join(dir, "nginx")
	base := filepath.Join(dir, "nginx.conf")
	for name, text := range map[string]string{
		checkerBinary: "#!/bin/sh\n[ -e " + missing + " ] || { echo no certificate; exit 1; }\n",
		base:          "http {}\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := newChecker(ctx, Options{Dir: filepath.Join(dir, "lb"), BaseConfig: base, Prefix: dir, Binary: checkerBinary})
	t.Cleanup(func() { cancel(); c.wait() })
	check := func() error { return c.check(ctx, "frame", existing(dir)) }

	var refused *driver.RefusedError
	if err := check(); !errors.As(err, &refused) {
		t.Fatalf("%v", err)
	}
	if err := os.WriteFile(missing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for key, known := range c.answers {
		known.at = known.at.Add(-checkAge - time.Second)
		c.answers[key] = known
	}
	if err := check(); err != nil {
		t.Errorf("what is mended is refused by an old answer: %v", err)
	}
}
