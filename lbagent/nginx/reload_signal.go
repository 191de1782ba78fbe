package nginx

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/cutover/cutover/internal/crashpoint"
	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/driver"
)

// reloadTimeout bounds a reload. nginx itself tries for 2.5 s to bind a port that is taken.
const reloadTimeout = 15 * time.Second

// maxLogRead bounds what is read of the error log after a reload, in bytes.
const maxLogRead = 1 << 20

var errorLogLine = regexp.MustCompile(`(?m)(?:^|[;{}\s])error_log\s+["']?([^;"'\s]+)["']?[^;]*;`)

// errorLog is the file that nginx's master logs to; "" if it is not a file that we can read.
func errorLog(o Options) string {
	name := o.ErrorLog
	if name == "" {
		text, err := os.ReadFile(o.BaseConfig)
		if err != nil {
			return ""
		}
		m := errorLogLine.FindStringSubmatch(commentLine.ReplaceAllString(string(text), ""))
		if m == nil {
			return ""
		}
		name = m[1]
	}
	if name == "stderr" || strings.HasPrefix(name, "syslog:") || strings.HasPrefix(name, "memory:") {
		return ""
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(o.Prefix, name)
	}
	return name
}

// reload sends HUP to the master and returns the new cohort, which runs generation target or a later one (a later one was
// published meanwhile and holds all that target does). The exit code of a signal is no evidence: it returns only when every
// current worker is proved to be new, or when nginx has said why not.
func (d *Reload) reload(ctx context.Context, before cohort, target uint64) (cohort, error) {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	logName := errorLog(d.o)
	var offset int64
	if info, err := os.Stat(logName); err == nil {
		offset = info.Size()
	}
	master := before.family.master
	if s, err := procfs.ReadStat(master.PID); err != nil || s.StartTicks != master.StartTicks {
		return before, fmt.Errorf("%w: master %d has ended", driver.ErrProxyDown, master.PID)
	}
	crashpoint.At("before-reload")
	if err := syscall.Kill(master.PID, syscall.SIGHUP); err != nil {
		return before, fmt.Errorf("reload nginx: signal master %d: %w", master.PID, err)
	}
	crashpoint.At("during-reload")
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := d.lookOnce(ctx)
		switch {
		case err == nil && c.family.master.StartTicks != master.StartTicks:
			return c, fmt.Errorf("%w: nginx was restarted during the reload", driver.ErrProxyMismatch)
		case err == nil && c.generation >= target:
			d.adopt(c)
			return c, nil
		case err != nil && !errors.Is(err, errUnsettled) && !errors.Is(err, driver.ErrProxyDown):
			return c, err
		case err != nil && errors.Is(err, driver.ErrProxyDown):
			if s, gone := procfs.ReadStat(master.PID); gone != nil || s.StartTicks != master.StartTicks {
				return c, err
			}
		}
		if why := emergency(logName, offset, master.PID); why != "" {
			return before, fmt.Errorf("%w: nginx did not load generation %d and runs generation %d on: %s", driver.ErrProxyMismatch, target, before.generation, why)
		}
		select {
		case <-ctx.Done():
			return before, fmt.Errorf("%w: nginx was told to reload and runs generation %d, not %d (%w); look in %s", driver.ErrProxyMismatch, before.generation, target, cmp.Or(err, ctx.Err()), cmp.Or(logName, "its error log"))
		case <-tick.C:
		}
	}
}

// emergency returns the line of the error log by which the master gave up on the reload; "" if there is none. A failed bind
// is not the end: nginx tries again for 2.5 s and may yet succeed, so only "still could not bind" counts.
func emergency(name string, offset int64, master int) string {
	if name == "" {
		return ""
	}
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, offset, maxLogRead))
	if err != nil {
		return ""
	}
	mine := fmt.Appendf(nil, "[emerg] %d#", master)
	var bind string
	for line := range bytes.Lines(text) {
		if !bytes.Contains(line, mine) {
			continue
		}
		said := strings.TrimSpace(string(line))
		if strings.Contains(said, "bind() to ") {
			bind = said
			continue
		}
		if bind != "" {
			said = bind + "; " + said
		}
		return said
	}
	return ""
}
