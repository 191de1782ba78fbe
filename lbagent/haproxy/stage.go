package haproxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Stage asks whether want could be served, and changes nothing. It refuses when the owner's base with our Frame is not
// valid (checked as a whole once for each content, and again in the background after changes), when the running proxy is
// not the one that these files describe, and when the checker refuses the Section. The Section is checked alone, in a
// tiny configuration of its own: that costs the same with 10 and with 1,000 Apps.
func (d *Driver) Stage(ctx context.Context, want driver.Section) error {
	if err := validateSection(want); err != nil {
		return err
	}
	procs, err := d.processes(ctx)
	if err != nil {
		return fmt.Errorf("stage %s: %w", want.App, err)
	}
	if err := d.checks.whole(ctx, d.tree.mark); err != nil {
		return fmt.Errorf("stage %s: %w", want.App, err)
	}
	if err := d.healthyReloads(procs); err != nil {
		return fmt.Errorf("stage %s: %w", want.App, err)
	}
	if err := d.ownsListeners(ctx, procs); err != nil {
		return fmt.Errorf("stage %s: %w", want.App, err)
	}
	if err := d.checks.section(ctx, want); err != nil {
		return fmt.Errorf("stage %s: %w", want.App, err)
	}
	return nil
}

const (
	// checkTimeout bounds one run of the checker.
	checkTimeout = 60 * time.Second
	// badOutput bounds what is read of a checker, before the tail is kept.
	badOutput = 1 << 20
)

// validator runs HAProxy's own checker. The answer about the whole is kept by the content that it is about.
type validator struct {
	o Options

	mu     sync.Mutex
	valid  string          // key of the whole that the checker accepted last; "" after a no
	shapes map[string]bool // shapes of Sections that the checker accepted
	timer  *time.Timer
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
	done   bool
}

func (v *validator) init(o Options) {
	v.o = o
	v.ctx, v.stop = context.WithCancel(context.Background())
}

func (v *validator) close() {
	v.mu.Lock()
	v.done = true
	if v.timer != nil && v.timer.Stop() {
		v.wg.Done()
	}
	v.timer = nil
	v.mu.Unlock()
	v.stop()
	v.wg.Wait()
}

// key names the content of the whole as far as it is checked before every change: the owner's file, our Frame, and the
// binary. What Sections add was checked with each of them.
func (v *validator) key(mark string) (string, error) {
	base, err := os.ReadFile(v.o.BaseConfig)
	if err != nil {
		return "", fmt.Errorf("the owner's configuration: %w", err)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n", mark, v.o.Binary)
	if path, err := exec.LookPath(v.o.Binary); err == nil {
		if stat, err := os.Stat(path); err == nil {
			fmt.Fprintf(h, "%s %d %d\n", path, stat.Size(), stat.ModTime().UnixNano())
		}
	}
	h.Write(base)
	return hex.EncodeToString(h.Sum(nil)), nil
}

// whole checks the owner's base with the published tree, unless this very content was accepted before. A no is never
// kept: as long as the base is bad, each call asks again, so the veto ends with its cause.
func (v *validator) whole(ctx context.Context, mark string) error {
	key, err := v.key(mark)
	if err != nil {
		return &driver.RefusedError{Checker: "haproxy -c", Output: err.Error(), Err: err}
	}
	v.mu.Lock()
	valid := v.valid == key
	v.mu.Unlock()
	if valid {
		return nil
	}
	return v.checkWhole(ctx, key)
}

func (v *validator) checkWhole(ctx context.Context, key string) error {
	err := v.run(ctx, v.o.BaseConfig, v.o.currentDir()+"/")
	if err != nil && !errors.As(err, new(*driver.RefusedError)) {
		return err // the checker could not be asked: nothing was learnt
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err == nil {
		v.valid = key
	} else {
		v.valid = ""
	}
	return err
}

// changed arranges for the whole to be checked again when changes have come to rest. A no takes the cached yes away, and
// so vetoes the next Stage.
func (v *validator) changed(mark string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.done || v.timer != nil {
		return
	}
	v.wg.Add(1)
	v.timer = time.AfterFunc(v.o.RecheckAfter, func() {
		defer v.wg.Done()
		v.mu.Lock()
		v.timer = nil
		v.mu.Unlock()
		key, err := v.key(mark)
		if err == nil {
			err = v.checkWhole(v.ctx, key)
		}
		if err != nil && v.ctx.Err() == nil {
			v.o.Logger.Error("haproxy's checker refuses what is published: deploys to this host are vetoed until it is mended", "error", err)
		}
	})
}

// maxShapes bounds the memory of accepted shapes.
const maxShapes = 4096

// shape names all of a Section that the checker's answer can depend on. Names, addresses and weights are not part of it:
// validateSection holds them to what HAProxy's parsers accept, and uniqueness is its business too. So a deploy that
// brings new tasks of a known shape costs no run of the checker.
func shape(s driver.Section) string {
	seen := map[string]bool{}
	for _, u := range s.Upstreams {
		seen[fmt.Sprintf("%s|%t|%s|%q", classOf(u.Health).name, u.Address.Addr().Is4(), checkWords(u.Health), u.Health.Path)] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(seen)), "\n")
}

// section checks the backends of one Section in a configuration of their own, unless one of its shape was accepted
// before by this binary.
func (v *validator) section(ctx context.Context, want driver.Section) error {
	known := shape(want)
	v.mu.Lock()
	known = v.valid + "\n" + known // the key of the whole names the binary
	accepted := v.shapes[known]
	v.mu.Unlock()
	if accepted {
		return nil
	}
	if err := v.checkSection(ctx, want); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.shapes) >= maxShapes || v.shapes == nil {
		v.shapes = map[string]bool{}
	}
	v.shapes[known] = true
	return nil
}

func (v *validator) checkSection(ctx context.Context, want driver.Section) error {
	dir, err := os.MkdirTemp(v.o.stagingDir(), "section-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// The maps of the running tree are not read here: they grow with the number of Apps.
	o := v.o
	o.Dir = dir
	if err := os.Mkdir(o.currentDir(), 0o700); err != nil {
		return err
	}
	var text bytes.Buffer
	text.WriteString("defaults\n    mode http\n    timeout connect 5s\n    timeout client 5s\n    timeout server 5s\n")
	// Without a listener HAProxy calls a valid configuration one that will not start. Checking binds nothing.
	text.WriteString("frontend check\n    bind 127.0.0.1:1\n")
	if err := os.WriteFile(o.stateFile(), []byte(noState), 0o600); err != nil {
		return err
	}
	for _, class := range neededClasses(want, nil) {
		p := published{App: want.App}
		for _, u := range want.Upstreams {
			if classOf(u.Health).name == class {
				p.Upstreams = append(p.Upstreams, u)
			}
		}
		text.Write(renderSlot(o, slot{class, 1}, p))
		if err := os.WriteFile(o.mapFile(healthMap), renderMap(healthExceptions(p.Upstreams)), 0o600); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, "section.cfg")
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		return err
	}
	return v.run(ctx, path)
}

// run asks the checker about files. A no is a RefusedError; any other error says that it could not be asked.
func (v *validator) run(ctx context.Context, files ...string) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	args := []string{"-c"}
	for _, f := range files {
		args = append(args, "-f", f)
	}
	cmd := exec.CommandContext(ctx, v.o.Binary, args...)
	cmd.WaitDelay = time.Second
	out := &limitedBuffer{limit: badOutput}
	cmd.Stdout, cmd.Stderr = out, out
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", cmd, ctx.Err())
	case errors.As(err, &exit):
		return &driver.RefusedError{Checker: cmd.String(), Output: tail(out.String()), Err: err}
	default:
		return fmt.Errorf("run the checker: %w", err)
	}
}

// limitedBuffer keeps the last bytes that were written, at most two times its limit.
type limitedBuffer struct {
	bytes.Buffer
	limit int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.Len() > 2*b.limit {
		b.Next(b.Len() - b.limit)
	}
	return b.Buffer.Write(p)
}
