package haproxy

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/cutover/cutover/internal/procfs"
)

// leavingTimeout bounds the questions of one reading to all workers that are leaving.
const leavingTimeout = time.Second

// leaving is what the workers that are leaving may still do, by "backend/upstream".
type leaving struct {
	// sessions and queued requests.
	sessions map[string]int
	// clients are connections to our frontends in workers that route to the upstream, as they did when they were replaced. No
	// command changes that any more, and one that is idle now may bring a request for the upstream at any time: until they are
	// gone the upstream is not drained (NO-ORPHAN-KILL).
	clients map[string]int
	// unknown counts the workers that live and do not answer: what they hold is not known, so it is not nothing.
	unknown int
}

// askLeaving asks the workers that are leaving. One that is gone by the time it is asked has no sessions.
func (d *Driver) askLeaving(ctx context.Context, pids []int, holders map[slot]string) leaving {
	out := leaving{sessions: map[string]int{}, clients: map[string]int{}}
	if len(pids) == 0 {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, leavingTimeout)
	defer cancel()
	for _, pid := range pids {
		rows, err := d.askOne(ctx, pid)
		if err != nil {
			if _, gone := procfs.ReadStat(pid); gone == nil {
				d.log.Warn("a leaving worker of haproxy does not say what it still serves: nothing counts as drained until it is gone", "worker", pid, "error", err)
				out.unknown++
			}
			continue
		}
		out.add(rows, holders)
	}
	return out
}

func (d *Driver) askOne(ctx context.Context, pid int) ([]statRow, error) {
	answers, err := d.master.ask(ctx, fmt.Sprintf("@!%d show stat -1 5 -1", pid))
	if err != nil {
		return nil, err
	}
	return parseStat(answers[0])
}

// add adds what one worker says: its frontends, and its servers in the slots that are asked for.
func (l *leaving) add(rows []statRow, holders map[slot]string) {
	clients := 0
	for _, row := range rows {
		if row.frontend && strings.HasPrefix(row.backend, frontendPrefix) {
			clients += row.sessions
		}
	}
	for _, row := range rows {
		if s, ok := parseSlot(row.backend); !ok || row.frontend || holders[s] == "" {
			continue
		}
		name, _, _ := strings.Cut(row.server, ":")
		key := row.backend + "/" + name
		l.sessions[key] += row.sessions
		out := row.weight == 0 || strings.HasPrefix(row.status, "MAINT") || strings.HasPrefix(row.status, "DRAIN")
		if !out {
			l.clients[key] += clients
		}
	}
}

// cutNow remembers that the sessions of an upstream were cut: whoever still comes through a leaving worker is cut too.
func (d *Driver) cutNow(app, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cut[app] == nil {
		d.cut[app] = map[string]bool{}
	}
	d.cut[app][name] = true
}

func (d *Driver) wasCut(app, name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cut[app][name]
}
