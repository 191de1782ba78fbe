package haproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/internal/crashpoint"
	"github.com/cutover/cutover/lbagent/driver"
)

// Reload makes HAProxy load the tree anew, and returns when the new worker has answered and holds what the old one held,
// or with the reason why not. It is needed for a grown pool, another Frame, and to collect tombstones. No request is
// lost: the new worker takes the listeners over, and warm servers, which are in no file, are registered again and have
// to rise again in the new worker.
func (d *Driver) Reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.o.ReloadTimeout+settle)
	defer cancel()
	if err := d.reloading.Acquire(ctx, allChanges); err != nil {
		return driver.ErrBusy
	}
	defer d.reloading.Release(allChanges)
	if err := d.checks.whole(ctx, d.tree.mark); err != nil {
		return err // a reload would fail, and HAProxy would say so nowhere but in a counter
	}
	obs, err := d.observe(ctx, nil)
	if err != nil {
		return fmt.Errorf("reload haproxy: %w", err)
	}
	if err := d.saveDown(obs); err != nil {
		return fmt.Errorf("reload haproxy: %w", err)
	}
	err = d.replaceWorker(ctx, obs.procs)
	// Whatever happened, the state is not true any more: a later reload by the owner must not load it.
	err = errors.Join(err, atomicfile.Replace(d.o.stateFile(), []byte(noState)))
	if err != nil {
		return fmt.Errorf("reload haproxy: %w", err)
	}
	if err := d.reapply(ctx, obs); err != nil {
		return fmt.Errorf("reload haproxy: register what was not in the files: %w", err)
	}
	return nil
}

// noState is a state file of no server, which HAProxy loads without a warning. A state file is true during one reload
// only (see doc.go): at all other times this is what it holds.
const noState = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n"

// saveDown writes the state of the servers that are down, for all backends: one file, because each backend takes its own
// lines of it and there are few. Only those that are down: the others are UP in the new worker anyway, and with a state
// they would claim checks that it never made.
func (d *Driver) saveDown(obs observation) error {
	text := []byte(obs.stateOf)
	if len(text) == 0 {
		return nil
	}
	for _, rows := range obs.servers {
		for _, row := range rows {
			if row.state.running || row.state.maint() || row.marked {
				continue
			}
			// The files know an upstream by its plain name, whatever life it is in.
			name, _ := row.upstream()
			line := strings.Replace(row.state.line, " "+row.name+" ", " "+name+" ", 1)
			text = append(append(text, line...), '\n')
		}
	}
	return atomicfile.Replace(d.o.stateFile(), text)
}

// replaceWorker tells the master to reload and waits for the proof: another worker that the master names, that answers
// itself and that carries the mark of our Frame. Before 2.7 the master does not answer "reload" at all, and after that
// its answer is no evidence either.
func (d *Driver) replaceWorker(ctx context.Context, before processes) error {
	crashpoint.At("before-reload")
	if _, err := d.master.ask(ctx, "reload"); err != nil && !errors.Is(err, driver.ErrProxyDown) {
		return err
	}
	crashpoint.At("during-reload")
	end := time.Now().Add(d.o.ReloadTimeout)
	for {
		w, err := d.bracketed(ctx)
		switch {
		case err != nil:
		case w.procs.failed > before.failed:
			return fmt.Errorf("%w: the new worker did not start (failed reloads: %d), worker %d serves on: see haproxy's log",
				driver.ErrProxyMismatch, w.procs.failed, w.info.pid)
		case w.info.pid == before.current[0]:
			err = fmt.Errorf("%w: worker %d is still the current one %s after the reload", driver.ErrProxyMismatch, w.info.pid, d.o.ReloadTimeout)
		case w.mark != d.tree.mark:
			return fmt.Errorf("%w: the new worker %d has not loaded the Frame in %s: check the -f arguments of haproxy's unit",
				driver.ErrProxyMismatch, w.info.pid, d.o.currentDir())
		default:
			return nil
		}
		if time.Now().After(end) || pause(ctx, settleStep) != nil {
			return err
		}
	}
}

// reapply brings every App back to what it was before the reload where the files say less: warm upstreams, the weights
// of draining ones, and what was converged without having been published. The caller holds off all changes.
func (d *Driver) reapply(ctx context.Context, before observation) error {
	sections := map[string]driver.Section{}
	holders := d.tree.allHolders()
	held := map[string]map[string]slot{}
	for s, app := range holders {
		if held[app] == nil {
			held[app] = map[string]slot{}
		}
		held[app][s.class] = s
	}
	for app, slots := range held {
		s := driver.Section{App: app, Routes: before.routes.routesOf(slots)}
		health := d.healthOf(app)
		for _, at := range slots {
			for _, row := range before.servers[at] {
				name, _ := row.upstream()
				h, known := health[name]
				if row.mode() == 0 {
					continue
				}
				if !known || classOf(h).name != at.class {
					d.log.Warn("an upstream of unknown origin is not registered again after the reload", "app", app, "server", row.name)
					continue
				}
				s.Upstreams = append(s.Upstreams, driver.Upstream{
					Name: name, Address: row.state.address, Weight: max(row.state.weight, 1), Mode: row.mode(), Health: h,
				})
			}
		}
		sections[app] = s
	}
	now, err := d.observe(ctx, nil)
	if err != nil {
		return err
	}
	v, err := parseVersion(now.info.version)
	if err != nil {
		return err
	}
	var commands []string
	for _, app := range slices.Sorted(maps.Keys(sections)) {
		p := planner{o: d.o, slots: held[app], deletes: deletesSafely(v)}
		commands = append(commands, p.plan(sections[app], now).must...)
	}
	return d.command(ctx, now.info.pid, commands)
}
