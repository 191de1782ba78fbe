package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Stat is what /proc/PID/stat tells of a process. PID and StartTicks name it for good: a pid alone may be used again.
type Stat struct {
	PID        int
	State      byte // R, S, D, Z, T, ...
	Parent     int
	Group      int
	Session    int
	User       time.Duration // CPU time, its threads included
	System     time.Duration
	Threads    int
	StartTicks uint64 // clock ticks since boot
	RSS        int64  // bytes
}

// Ended says whether only the exit status is left of the process, for its parent to collect. A process that is killed is a
// zombie as soon as its first thread has ended; until the others have too, it holds its locks and its sockets.
func (s Stat) Ended() bool { return s.State == 'X' || s.State == 'Z' && s.Threads <= 1 }

// tick is the clock tick of /proc (1/USER_HZ), which Linux fixes for user space on every architecture that Go supports.
const tick = 10 * time.Millisecond

// ParseStat reads the text of /proc/PID/stat.
func ParseStat(text string) (Stat, error) {
	// The command is in parentheses and may hold spaces and parentheses itself; the last one ends it.
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 1 || end < open {
		return Stat{}, fmt.Errorf("process stat %.80q: no command", text)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(text[:open]))
	if err != nil {
		return Stat{}, fmt.Errorf("process stat: pid: %w", err)
	}
	f := strings.Fields(text[end+1:])
	const last = 24 // proc(5) counts from 1; the state is field 3
	if len(f) <= last-3 || len(f[0]) != 1 {
		return Stat{}, fmt.Errorf("process stat of %d: %d fields after the command", pid, len(f))
	}
	var bad error
	number := func(field int) int64 {
		n, err := strconv.ParseInt(f[field-3], 10, 64)
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("process stat of %d: field %d: %w", pid, field, err))
		}
		return n
	}
	s := Stat{
		PID: pid, State: f[0][0], Parent: int(number(4)), Group: int(number(5)), Session: int(number(6)),
		User: time.Duration(number(14)) * tick, System: time.Duration(number(15)) * tick,
		Threads:    int(number(20)),
		StartTicks: uint64(number(22)), RSS: number(24) * int64(os.Getpagesize()),
	}
	if bad != nil {
		return Stat{}, bad
	}
	return s, nil
}

// ErrEnded means that only the exit status is left of the process.
var ErrEnded = errors.New("the process has ended")

// ReadStat reads the Stat of a process. That of a zombie comes with ErrEnded: it is gone, only not yet collected.
func ReadStat(pid int) (Stat, error) {
	text, err := os.ReadFile(path(pid, "stat"))
	if err != nil {
		return Stat{}, err
	}
	s, err := ParseStat(string(text))
	if err == nil && s.Ended() {
		return s, fmt.Errorf("process %d: %w", pid, ErrEnded)
	}
	return s, err
}

// Grain is by how much Started and the mtime of a file may each be told too early.
const Grain = 20 * time.Millisecond

// bootTime is when the kernel started, on the wall clock as it was when this process asked first: so the start of one
// process is always told as the same time.
var bootTime = sync.OnceValues(func() (time.Time, error) {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}, fmt.Errorf("how long the kernel is up: %w", err)
	}
	return time.Now().Round(0).Add(-time.Duration(up.Nano())), nil
})

// Started converts the start of a process to wall-clock time (precision: one tick of 10 ms, rounded down). Compare
// StartTicks, not this, to tell processes apart. The zero time means that the kernel does not tell its own age.
func (s Stat) Started() time.Time {
	boot, err := bootTime()
	if err != nil {
		return time.Time{}
	}
	return boot.Add(time.Duration(s.StartTicks) * tick)
}

// Title is the command line of a process, in which some say what they are ("nginx: worker process").
func Title(pid int) (string, error) {
	text, err := os.ReadFile(path(pid, "cmdline"))
	if err != nil {
		return "", err
	}
	return string(bytes.TrimRight(bytes.ReplaceAll(text, []byte{0}, []byte{' '}), " ")), nil
}

// Executable is the base name of the file that a process runs, also when a package upgrade has replaced the file.
func Executable(pid int) (string, error) {
	target, err := os.Readlink(path(pid, "exe"))
	if err != nil {
		return "", err
	}
	return filepath.Base(strings.TrimSuffix(target, " (deleted)")), nil
}

// Children lists the direct children of a process, sorted.
func Children(pid int) ([]int, error) {
	// The kernel lists them by the thread that made them.
	threads, err := os.ReadDir(path(pid, "task"))
	if err != nil {
		return nil, err
	}
	var out []int
	for _, thread := range threads {
		text, err := os.ReadFile(path(pid, "task", thread.Name(), "children"))
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat("/proc/self/task/" + strconv.Itoa(os.Getpid()) + "/children"); err != nil {
				return childrenByParent(pid) // a kernel without CONFIG_PROC_CHILDREN
			}
			continue // the thread has ended
		}
		if err != nil {
			return nil, err
		}
		pids, err := parsePIDs(string(text))
		if err != nil {
			return nil, err
		}
		out = append(out, pids...)
	}
	slices.Sort(out)
	return out, nil
}

// childrenByParent looks at every process.
func childrenByParent(pid int) ([]int, error) {
	all, err := Processes()
	if err != nil {
		return nil, err
	}
	var out []int
	for _, p := range all {
		if s, err := ReadStat(p); err == nil && s.Parent == pid {
			out = append(out, p)
		}
	}
	return out, nil
}

// Processes lists all pids, sorted.
func Processes() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out, nil
}

func parsePIDs(text string) ([]int, error) {
	var out []int
	for _, f := range strings.Fields(text) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, err
		}
		out = append(out, pid)
	}
	slices.Sort(out)
	return out, nil
}

func path(pid int, rest ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(pid)}, rest...)...)
}
