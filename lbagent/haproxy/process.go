package haproxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/driver"
)

const (
	// settle bounds how long a read rides out a reload by somebody else: the master closes its command line while it
	// executes itself anew, and between two masters' words on the worker the worker may change.
	settle     = 5 * time.Second
	settleStep = 10 * time.Millisecond
)

// processes asks the master who runs. While the master that answered last is alive, a command line that refuses is one
// that is being executed anew, and it is asked again for a while; otherwise there is no proxy, at once.
func (d *Driver) processes(ctx context.Context) (processes, error) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for {
		p, err := d.masterWord.get(ctx, struct{}{}, d.askMaster)
		if err == nil {
			d.lastMaster.Store(int64(p.master))
			return p, nil
		}
		if !d.masterLives() || ctx.Err() != nil {
			return processes{}, err
		}
		if pause(ctx, settleStep) != nil {
			return processes{}, err
		}
	}
}

// askMaster asks once.
func (d *Driver) askMaster(ctx context.Context, _ struct{}) (processes, error) {
	answers, err := d.master.ask(ctx, "show proc")
	if err != nil {
		return processes{}, err
	}
	p, err := parseProcesses(answers[0])
	if err == nil && len(p.current) != 1 {
		err = fmt.Errorf("%w: the master names %d current workers", driver.ErrProxyDown, len(p.current))
	}
	return p, err
}

// masterLives says whether the master that answered last is still a process.
func (d *Driver) masterLives() bool {
	pid := int(d.lastMaster.Load())
	if pid == 0 {
		return false
	}
	_, err := procfs.ReadStat(pid)
	return err == nil
}

// pause waits for a moment or the end of the context.
func pause(ctx context.Context, moment time.Duration) error {
	timer := time.NewTimer(moment)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// witnessed is what one worker answered, with the master's word before and after that this is the worker.
type witnessed struct {
	procs   processes
	info    info
	mark    string // of the Frame that the worker loaded; "" if none of ours
	answers []string
}

// bracketed asks the current worker and proves that it was the current worker: the master names P; a connection opened
// for this read answers as P, not stopping, in the same breath as the answers; the master names P again. What does not
// hold is tried again for a while (a reload passes), then it is ErrProxyMismatch.
func (d *Driver) bracketed(ctx context.Context, commands ...string) (witnessed, error) {
	ctx, cancel := context.WithTimeout(ctx, settle+commandTimeout)
	defer cancel()
	end := time.Now().Add(settle)
	for {
		w, err := d.bracketedOnce(ctx, commands)
		if err == nil {
			return w, nil
		}
		down := errors.Is(err, driver.ErrProxyDown) && !d.masterLives()
		if down || time.Now().After(end) || pause(ctx, settleStep) != nil {
			return witnessed{}, err
		}
		if !errors.Is(err, driver.ErrProxyDown) && !errors.Is(err, driver.ErrProxyMismatch) {
			return witnessed{}, err
		}
	}
}

func (d *Driver) bracketedOnce(ctx context.Context, commands []string) (witnessed, error) {
	before, err := d.processes(ctx)
	if err != nil {
		return witnessed{}, err
	}
	w := witnessed{procs: before}
	for first := true; first || len(commands) > 0; first = false {
		n, size := 0, 0
		for n < len(commands) && (n == 0 || size+len(commands[n])+1 <= maxBatch) {
			size += len(commands[n]) + 1
			n++
		}
		// "get var" is last because it alone does not end its answer with an empty line.
		answers, err := d.worker.ask(ctx, slices.Concat([]string{"show info"}, commands[:n], []string{"get var proc.cutover_frame"})...)
		if err != nil {
			return witnessed{}, err
		}
		if w.info, err = parseInfo(answers[0]); err != nil {
			return witnessed{}, fmt.Errorf("%w: %s: %w", driver.ErrProxyMismatch, d.o.RuntimeSocket, err)
		}
		if w.info.pid != before.current[0] || w.info.stopping {
			return witnessed{}, fmt.Errorf("%w: the master on %s names worker %d, but process %d (stopping: %t) answers on %s",
				driver.ErrProxyMismatch, d.o.MasterSocket, before.current[0], w.info.pid, w.info.stopping, d.o.RuntimeSocket)
		}
		w.mark = parseVar(answers[n+1])
		w.answers = append(w.answers, answers[1:n+1]...)
		commands = commands[n:]
	}
	after, err := d.processes(ctx)
	if err != nil {
		return witnessed{}, err
	}
	if after.master != before.master || after.current[0] != before.current[0] {
		return witnessed{}, fmt.Errorf("%w: the worker changed from %d to %d during the read", driver.ErrProxyMismatch, before.current[0], after.current[0])
	}
	w.procs = after
	return w, nil
}

// process completes what the master said with the worker's start time, from the kernel.
func (d *Driver) process(p processes) (driver.Process, error) {
	stat, err := procfs.ReadStat(p.current[0])
	if err != nil {
		return driver.Process{}, fmt.Errorf("%w: worker %d: %w", driver.ErrProxyDown, p.current[0], err)
	}
	return driver.Process{
		MasterPID: p.master, WorkerPID: p.current[0],
		StartedAt: stat.Started(),
		Version:   p.version,
	}, nil
}
