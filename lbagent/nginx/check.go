package nginx

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

const (
	// checkTimeout bounds one run of nginx -t.
	checkTimeout = 20 * time.Second
	// checkAge is how long an answer of nginx -t holds without being asked again in the background: what we cannot see
	// (certificates, names that nginx resolves) may change.
	checkAge = 30 * time.Second
	// Bounds of what is read to see whether the owner's configuration changed.
	maxBaseFiles = 2000
	maxBaseBytes = 64 << 20
)

// checker asks nginx itself about configurations. It remembers answers by the digest of what was asked. Safe for
// concurrent use.
type checker struct {
	o   Options
	ctx context.Context // ends with the driver
	wg  sync.WaitGroup
	sem chan struct{} // one nginx -t at a time

	mu      sync.Mutex
	answers map[string]checked
}

type checked struct {
	err        error
	at         time.Time
	refreshing bool
}

func newChecker(ctx context.Context, o Options) *checker {
	return &checker{o: o, ctx: ctx, sem: make(chan struct{}, 1), answers: make(map[string]checked)}
}

// check validates the owner's base with a tree in the place of the published one. build makes the tree (it may be there
// already) and says how to clean up; key names its content. The answer is a *driver.RefusedError, nil, or the error that
// kept nginx from answering, which is not remembered. An old refusal is asked again before it is repeated: its cause may be
// mended (a certificate is there again), and nobody's change is refused for what is not so.
func (c *checker) check(ctx context.Context, key string, build buildTree) error {
	base, err := baseDigest(c.o.BaseConfig)
	if err != nil {
		return &driver.RefusedError{Checker: "read " + c.o.BaseConfig, Output: err.Error(), Err: err}
	}
	key = base + " " + key
	c.mu.Lock()
	known, ok := c.answers[key]
	if ok && (known.err == nil || time.Since(known.at) <= checkAge) {
		if time.Since(known.at) > checkAge && !known.refreshing && c.ctx.Err() == nil {
			known.refreshing = true
			c.answers[key] = known
			c.wg.Go(func() { _ = c.ask(c.ctx, key, build) }) // the answer is in the map for the next caller
		}
		c.mu.Unlock()
		return known.err
	}
	c.mu.Unlock()
	return c.ask(ctx, key, build)
}

// buildTree returns a directory of configuration files and what to call when nginx has read it.
type buildTree func() (tree string, done func(), err error)

// existing is the buildTree of a directory that stays.
func existing(tree string) buildTree {
	return func() (string, func(), error) { return tree, func() {}, nil }
}

func (c *checker) ask(ctx context.Context, key string, build buildTree) error {
	tree, done, err := build()
	if err != nil {
		return fmt.Errorf("nginx -t: %w", err)
	}
	defer done()
	err = c.run(ctx, tree)
	var refused *driver.RefusedError
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && !errors.As(err, &refused) {
		if known, ok := c.answers[key]; ok {
			known.refreshing = false
			c.answers[key] = known
		}
		return err
	}
	if len(c.answers) >= 256 { // bounded; what is still in use is asked again
		clear(c.answers)
	}
	c.answers[key] = checked{err: err, at: time.Now()}
	return err
}

// run runs nginx -t on a mirror of the owner's directory: links to everything in it, and tree under the name of our include.
func (c *checker) run(ctx context.Context, tree string) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	select {
	case c.sem <- struct{}{}:
		defer func() { <-c.sem }()
	case <-ctx.Done():
		return fmt.Errorf("nginx -t: waiting for another run: %w", ctx.Err())
	}
	if err := makeDirs((paths{c.o.Dir}).stage()); err != nil {
		return err
	}
	mirror, err := os.MkdirTemp((paths{c.o.Dir}).stage(), "check-")
	if err != nil {
		return fmt.Errorf("nginx -t: %w", err)
	}
	defer os.RemoveAll(mirror)
	owner := filepath.Dir(c.o.BaseConfig)
	entries, err := os.ReadDir(owner)
	if err != nil {
		return fmt.Errorf("nginx -t: %w", err)
	}
	for _, e := range entries {
		if e.Name() == IncludeName {
			continue
		}
		if err := os.Symlink(filepath.Join(owner, e.Name()), filepath.Join(mirror, e.Name())); err != nil {
			return fmt.Errorf("nginx -t: %w", err)
		}
	}
	if err := os.Symlink(tree, filepath.Join(mirror, IncludeName)); err != nil {
		return fmt.Errorf("nginx -t: %w", err)
	}
	args := []string{"-t", "-c", filepath.Join(mirror, filepath.Base(c.o.BaseConfig)), "-p", c.o.Prefix, "-e", "stderr"}
	cmd := exec.CommandContext(ctx, c.o.Binary, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("nginx -t: %w", ctx.Err())
	}
	text := string(out)
	if len(text) > driver.MaxOutput {
		text = text[len(text)-driver.MaxOutput:]
	}
	return &driver.RefusedError{Checker: c.o.Binary + " " + strings.Join(args, " "), Output: strings.TrimSpace(text), Err: explain(text, err)}
}

// explain adds what to do to the failures that every owner meets once.
func explain(output string, err error) error {
	switch {
	case strings.Contains(output, "lua_setexdata"):
		return fmt.Errorf("%w: the Lua module needs OpenResty's LuaJIT: apt install libluajit2-5.1-2 && apt remove libluajit-5.1-2", err)
	case strings.Contains(output, `unknown directive "lua_shared_dict"`), strings.Contains(output, `unknown directive "init_by_lua_block"`):
		return fmt.Errorf("%w: nginx has no Lua module: apt install libnginx-mod-http-lua libluajit2-5.1-2 and load_module ndk_http_module.so and ngx_http_lua_module.so in the base configuration, or use the reload driver", err)
	case strings.Contains(output, "resty.core"):
		return fmt.Errorf("%w: apt install lua-resty-core lua-resty-lrucache", err)
	case strings.Contains(output, "is duplicate in") && strings.Contains(output, "/"+IncludeName+"/"+frameFile):
		return fmt.Errorf("%w: init_by_lua and init_worker_by_lua belong to Cutover: remove them from the base configuration", err)
	default:
		return err
	}
}

func (c *checker) wait() { c.wg.Wait() }

var (
	includeLine = regexp.MustCompile(`(?m)(?:^|[;{}\s])include\s+["']?([^;"'\s]+)["']?\s*;`)
	commentLine = regexp.MustCompile(`(?m)#.*$`)
	ourInclude  = regexp.MustCompile(`^` + IncludeName + `/\*\.conf$`)
)

// baseDigest is the digest of the owner's base configuration and of what it includes, our tree apart.
func baseDigest(base string) (string, error) {
	h := sha256.New()
	seen := make(map[string]bool)
	total := 0
	var add func(name string) error
	add = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		if len(seen) > maxBaseFiles {
			return fmt.Errorf("%s includes more than %d files", base, maxBaseFiles)
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if total += len(text); total > maxBaseBytes {
			return fmt.Errorf("%s and its includes are larger than %d bytes", base, maxBaseBytes)
		}
		fmt.Fprintf(h, "%s %d\n", name, len(text))
		h.Write(text)
		for _, pattern := range includes(string(text)) {
			if ourInclude.MatchString(pattern) {
				continue
			}
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(base), pattern)
			}
			names, err := filepath.Glob(pattern)
			if err != nil {
				continue // nginx says it better
			}
			for _, n := range names {
				if err := add(n); err != nil {
					// An include that cannot be read: nginx refuses it, and the digest tells when it comes back.
					fmt.Fprintf(h, "%s: %v\n", n, err)
				}
			}
		}
		return nil
	}
	if err := add(base); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func includes(text string) []string {
	var out []string
	for _, m := range includeLine.FindAllStringSubmatch(commentLine.ReplaceAllString(text, ""), -1) {
		out = append(out, m[1])
	}
	return out
}

// checkContract looks at the files: the include in the base and the link beside it.
func checkContract(o Options) error {
	if err := includesUs(o); err != nil {
		return err
	}
	return linkInclude(o)
}

// includesUs says whether the owner's base configuration includes our tree.
func includesUs(o Options) error {
	text, err := os.ReadFile(o.BaseConfig)
	if err != nil {
		return fmt.Errorf("nginx: the base configuration: %w", err)
	}
	found := false
	for _, pattern := range includes(string(text)) {
		found = found || ourInclude.MatchString(pattern)
	}
	if !found {
		return fmt.Errorf("nginx: %s has no \"include %s/*.conf;\": put it into http{}; it must be relative, or nginx -t would test the published tree instead of the staged one", o.BaseConfig, IncludeName)
	}
	return nil
}

// stageContract is checkContract as a vote: a base that lost the include passes nginx -t, and would lose every route at
// its owner's next reload.
func stageContract(o Options) error {
	err := checkContract(o)
	if err == nil {
		return nil
	}
	return &driver.RefusedError{Checker: "the contract with the base configuration", Output: err.Error(), Err: err}
}
