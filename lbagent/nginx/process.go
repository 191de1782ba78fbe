package nginx

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/driver"
)

// The titles that nginx gives its processes.
const (
	titleMaster  = "nginx: master process"
	titleWorker  = "nginx: worker process"
	titleLeaving = "nginx: worker process is shutting down"
)

// family is nginx as the kernel shows it: a master and its workers, each sorted by pid.
type family struct {
	master   procfs.Stat
	current  []procfs.Stat
	leaving  []procfs.Stat
	starting int // forked, and not yet a worker by its own word
}

// sameAs says whether two looks saw the same processes in the same roles.
func (f family) sameAs(g family) bool {
	same := func(a, b procfs.Stat) bool { return a.PID == b.PID && a.StartTicks == b.StartTicks }
	return same(f.master, g.master) && slices.EqualFunc(f.current, g.current, same)
}

// workers lists current and leaving workers.
func (f family) workers() []procfs.Stat { return slices.Concat(f.current, f.leaving) }

func (f family) isCurrent(pid int) bool {
	return slices.ContainsFunc(f.current, func(s procfs.Stat) bool { return s.PID == pid })
}

func (f family) process(version string) driver.Process {
	p := driver.Process{MasterPID: f.master.PID, Version: version}
	if len(f.current) > 0 {
		p.WorkerPID, p.StartedAt = f.current[0].PID, f.current[0].Started()
	}
	return p
}

// familyOf finds the family of the worker that answered with its pid. The worker's word is checked against the kernel's:
// its parent must be an nginx master that runs the binary.
func familyOf(worker int, binary string) (family, error) {
	s, err := procfs.ReadStat(worker)
	if err != nil {
		return family{}, fmt.Errorf("%w: worker %d answered and is gone: %w", driver.ErrProxyDown, worker, err)
	}
	f, err := familyOfMaster(s.Parent, binary)
	if err != nil {
		return family{}, fmt.Errorf("worker %d answered: %w", worker, err)
	}
	if !f.isCurrent(worker) {
		return family{}, fmt.Errorf("%w: worker %d answered, and it is not a current worker of master %d", driver.ErrProxyMismatch, worker, f.master.PID)
	}
	return f, nil
}

func familyOfMaster(pid int, binary string) (family, error) {
	var f family
	var err error
	if f.master, err = procfs.ReadStat(pid); err != nil {
		return f, fmt.Errorf("%w: its master %d is gone: %w", driver.ErrProxyDown, pid, err)
	}
	title, err := procfs.Title(pid)
	if err != nil || !strings.HasPrefix(title, titleMaster) {
		return f, fmt.Errorf("%w: its parent %d is %q and no nginx master: the master was killed and left orphans (run Bootstrap, then start nginx)", driver.ErrProxyDown, pid, title)
	}
	// Not every user may read the link of another one's process; the title is then all there is.
	if exe, err := procfs.Executable(pid); err == nil && exe != filepath.Base(binary) && !strings.HasPrefix(exe, "nginx") {
		return f, fmt.Errorf("%w: master %d runs %q, want %q", driver.ErrProxyMismatch, pid, exe, binary)
	}
	children, err := procfs.Children(pid)
	if err != nil {
		return f, fmt.Errorf("%w: children of master %d: %w", driver.ErrProxyDown, pid, err)
	}
	for _, child := range children {
		s, err := procfs.ReadStat(child)
		if err != nil {
			continue // ended meanwhile
		}
		title, err := procfs.Title(child)
		switch {
		case err != nil:
		case title == titleWorker:
			f.current = append(f.current, s)
		case title == titleLeaving:
			f.leaving = append(f.leaving, s)
		case strings.HasPrefix(title, titleMaster):
			f.starting++
		}
	}
	if len(f.current) == 0 && f.starting == 0 {
		return f, fmt.Errorf("%w: master %d has no worker", driver.ErrProxyDown, pid)
	}
	return f, nil
}

// ownsListeners checks that every frontend's listening socket is held by the master, and that nobody else listens there:
// nginx says that all is well when a port belongs to someone else.
func ownsListeners(master int, listen []netip.AddrPort) error {
	own, err := procfs.Sockets(master)
	if err != nil {
		return fmt.Errorf("%w: sockets of master %d: %w", driver.ErrProxyDown, master, err)
	}
	rows, err := procfs.Listeners(master, procfs.IPv4, procfs.IPv6)
	if err != nil {
		return err
	}
	for _, addr := range listen {
		mine := false
		for _, row := range rows {
			if !row.Receives(addr) {
				continue
			}
			if _, ok := own[row.Inode]; ok {
				mine = true
				continue
			}
			return fmt.Errorf("%w: %s is also listened on by %s: stop it", driver.ErrProxyMismatch, addr, holders(row.Inode))
		}
		if !mine {
			return fmt.Errorf("%w: nginx master %d does not listen on %s: reload or restart it and look in its error log", driver.ErrProxyMismatch, master, addr)
		}
	}
	return nil
}

// holders names the processes that hold a socket, for an error message.
func holders(inode uint64) string {
	pids, err := procfs.Holders(inode)
	if err != nil || len(pids) == 0 {
		return "a process that cannot be named"
	}
	title, _ := procfs.Title(pids[0])
	if len(title) > 80 {
		title = title[:80]
	}
	return fmt.Sprintf("process %d (%s)", pids[0], title)
}

// downWithReason adds to ErrProxyDown who holds the frontends in nginx's place: then nginx cannot start, and the error is
// ErrProxyMismatch too.
func downWithReason(err error, listen []netip.AddrPort) error {
	if !errors.Is(err, driver.ErrProxyDown) {
		return err
	}
	rows, listErr := procfs.Listeners(os.Getpid(), procfs.IPv4, procfs.IPv6)
	if listErr != nil {
		return err
	}
	for _, addr := range listen {
		for _, row := range rows {
			if !row.Receives(addr) {
				continue
			}
			pids, _ := procfs.Holders(row.Inode)
			foreign := !slices.ContainsFunc(pids, func(pid int) bool {
				title, err := procfs.Title(pid)
				return err != nil || strings.HasPrefix(title, "nginx: ")
			})
			if len(pids) > 0 && foreign {
				return fmt.Errorf("%w: %s is taken by %s, so nginx cannot start: %w", driver.ErrProxyMismatch, addr, holders(row.Inode), err)
			}
		}
	}
	return err
}

// cutConns shuts down the connections of all workers to one upstream.
func cutConns(ctx context.Context, f family, upstream netip.AddrPort) (int, error) {
	addr := netip.AddrPortFrom(upstream.Addr().Unmap(), upstream.Port())
	total := 0
	var errs []error
	for _, w := range f.workers() {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := procfs.ShutdownConns(w.PID, addr)
		total += n
		if _, gone := procfs.ReadStat(w.PID); err != nil && gone == nil {
			errs = append(errs, err)
		}
	}
	return total, errors.Join(errs...)
}
