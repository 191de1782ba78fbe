package haproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cutover/cutover/internal/crashpoint"
	"github.com/cutover/cutover/lbagent/driver"
)

const (
	// changeTimeout bounds Converge when its context does not.
	changeTimeout = 60 * time.Second
	// busyAfter is how long a change waits for a reload of ours before it says ErrBusy.
	busyAfter = 5 * time.Second
	// rounds is how often Converge looks and acts again when the proxy changed under it (a reload by the owner).
	rounds = 5
)

// Converge makes the running worker hold exactly want for its App. See driver.Driver; the order that keeps NEVER-ZERO is
// the planner's. After the commands it verifies that the frontends' ports still belong to this HAProxy, and says
// ErrProxyMismatch if not: the set is applied then, but clients may not reach it.
func (d *Driver) Converge(ctx context.Context, want driver.Section) error {
	if err := validateSection(want); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	var last error
	for range rounds {
		procs, again, err := d.convergeOnce(ctx, want)
		switch {
		case err == nil && !again:
			if err := d.ownsListeners(ctx, procs); err != nil {
				return fmt.Errorf("converge %s: %w", want.App, err)
			}
			return nil
		case err == nil: // reloaded: look again
		case errors.Is(err, driver.ErrProxyMismatch), errors.As(err, new(*CommandError)):
			// The worker changed between the look and the act, or something else acted. Converge is idempotent.
			last = err
			if ctx.Err() != nil {
				return fmt.Errorf("converge %s: %w", want.App, err)
			}
			d.log.Debug("converge looks again", "app", want.App, "error", err)
		default:
			return fmt.Errorf("converge %s: %w", want.App, err)
		}
	}
	if last == nil {
		last = errors.New("the proxy does not have the backend after its reload")
	}
	return fmt.Errorf("converge %s: %w", want.App, last)
}

// convergeOnce looks and acts once. again: the proxy was reloaded first, and has to be looked at again.
func (d *Driver) convergeOnce(ctx context.Context, want driver.Section) (_ processes, again bool, _ error) {
	release, err := d.change(ctx)
	if err != nil {
		return processes{}, false, err
	}
	procs, reload, class, err := d.act(ctx, want)
	release()
	if err != nil || !reload {
		return procs, false, err
	}
	if class != "" {
		if err := d.tree.grow(class); err != nil {
			return processes{}, false, err
		}
	}
	d.log.Info("haproxy needs a reload for the pool of backends", "app", want.App, "class", class)
	return processes{}, true, d.Reload(ctx)
}

// change waits for a reload of ours to end, and holds off the next until release is called.
func (d *Driver) change(ctx context.Context) (release func(), err error) {
	wait, cancel := context.WithTimeout(ctx, busyAfter)
	defer cancel()
	if err := d.reloading.Acquire(wait, 1); err != nil {
		return nil, driver.ErrBusy
	}
	return func() { d.reloading.Release(1) }, nil
}

// act brings the App's servers and routes to want. reload: the worker lacks a backend, or the pool has no spare one of
// the class.
func (d *Driver) act(ctx context.Context, want driver.Section) (_ processes, reload bool, class string, _ error) {
	needed := neededClasses(want, d.tree.slotsOf(want.App))
	held, err := d.tree.hold(want.App, needed)
	var full errNoSpare
	if errors.As(err, &full) {
		return processes{}, true, full.class, nil
	}
	if err != nil {
		return processes{}, false, "", err
	}
	slots := slices.SortedFunc(maps.Values(held), slot.compare)
	obs, err := d.observe(ctx, slots)
	if err != nil {
		return processes{}, false, "", err
	}
	for _, s := range obs.missing {
		if slices.Contains(needed, s.class) {
			return obs.procs, true, "", nil
		}
	}
	v, err := parseVersion(obs.info.version)
	if err != nil {
		return processes{}, false, "", err
	}
	p := planner{o: d.o, slots: held, deletes: deletesSafely(v), paths: d.pathsOf(want.App)}
	commands := p.plan(want, obs)
	if err := d.command(ctx, obs.info.pid, commands.must); err != nil {
		return processes{}, false, "", err
	}
	crashpoint.At("during-converge")
	if len(commands.may) > 0 {
		// Tombstones with connections are deleted by a later Converge.
		if err := d.command(ctx, obs.info.pid, commands.may); err != nil && !errors.As(err, new(*CommandError)) {
			return processes{}, false, "", err
		}
	}
	d.rememberHealth(want)
	if err := d.tree.release(want.App, needed); err != nil {
		return processes{}, false, "", err
	}
	return obs.procs, false, "", nil
}

// pathsOf returns the health paths that this process has set, by upstream.
func (d *Driver) pathsOf(app string) map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[string]string{}
	for name, h := range d.health[app] {
		if h.Kind == driver.HealthHTTP {
			out[name] = h.Path
		}
	}
	return out
}

// command gives commands to the worker that was observed. Should another one take the connection, the commands reach a
// worker that they were not made for: that is told, and the caller looks and acts again.
func (d *Driver) command(ctx context.Context, pid int, commands []string) error {
	for len(commands) > 0 {
		n, size := 0, 0
		for n < len(commands) && (n == 0 || size+len(commands[n])+1 <= maxBatch) {
			size += len(commands[n]) + 1
			n++
		}
		answers, err := d.worker.ask(ctx, append([]string{"show info"}, commands[:n]...)...)
		if err != nil {
			return err
		}
		i, err := parseInfo(answers[0])
		if err != nil {
			return fmt.Errorf("%w: %w", driver.ErrProxyMismatch, err)
		}
		if i.pid != pid {
			return fmt.Errorf("%w: worker %d was looked at and worker %d took the commands", driver.ErrProxyMismatch, pid, i.pid)
		}
		var refused error
		for k, answer := range answers[1:] {
			if !succeeded(commands[k], answer) && refused == nil {
				refused = &CommandError{Command: commands[k], Reply: answer}
			}
		}
		if refused != nil {
			return refused
		}
		commands = commands[n:]
	}
	return nil
}

// observe reads the slots, bracketed. nil reads all. Those who wait to observe while another observation is under way are
// served by one: it began after each of them called, and each sees of it what it asked for.
func (d *Driver) observe(ctx context.Context, slots []slot) (observation, error) {
	if slots == nil {
		return d.observeNow(ctx, nil)
	}
	obs, err := d.looks.get(ctx, slots, d.observeNow)
	if err != nil {
		return observation{}, err
	}
	mine := obs
	mine.servers, mine.missing = make(map[slot][]serverRow, len(slots)), nil
	for _, s := range slots {
		if rows, ok := obs.servers[s]; ok {
			mine.servers[s] = rows
		}
		if slices.Contains(obs.missing, s) {
			mine.missing = append(mine.missing, s)
		}
	}
	return mine, nil
}

func (d *Driver) observeNow(ctx context.Context, slots []slot) (observation, error) {
	w, err := d.bracketed(ctx, observationCommands(d.o, slots)...)
	if err != nil {
		return observation{}, err
	}
	return parseObservation(d.o, slots, w, time.Now(), &d.tables)
}

// allSlots are those of two questions.
func allSlots(a, b []slot) []slot {
	out := slices.Concat(a, b)
	slices.SortFunc(out, slot.compare)
	return slices.Compact(out)
}
