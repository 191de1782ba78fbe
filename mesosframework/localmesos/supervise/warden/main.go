package warden

import (
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func init() {
	if dir := os.Getenv(Env); dir != "" {
		os.Exit(run(dir))
	}
}

const (
	prSetChildSubreaper = 36
	rotateEvery         = 2 * time.Second
	// Everything a task leaves behind is gone within this, or stays unreaped
	// (a process in uninterruptible sleep).
	sweepFor = 2 * time.Second
)

// run is the whole life of a warden; it returns the process's exit code.
func run(dir string) int {
	syscall.CloseOnExec(notifyFD)
	syscall.CloseOnExec(lockFD)
	// Orphans of the task come to the warden, which can then end them.
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0)
	self, err := Look(os.Getpid())
	if err != nil {
		return 2
	}
	if err := WriteFile(dir, SupervisorFile, []byte(self.String()), false); err != nil {
		return 2
	}
	data, err := os.ReadFile(dir + "/" + SpecFile)
	if err != nil {
		return 2
	}
	spec, err := DecodeSpec(data)
	if err != nil {
		return 2
	}
	task, status := start(spec)
	if err := WriteFile(dir, StartedFile, []byte(task.String()), false); err != nil {
		if task.PID > 0 {
			_ = syscall.Kill(-task.PID, syscall.SIGKILL)
		}
		return 2
	}
	_, _ = syscall.Write(notifyFD, []byte(task.String()))
	_ = syscall.Close(notifyFD)
	if task.PID > 0 {
		if spec.MaxLog > 0 {
			go rotate(spec)
		}
		status = wait(task.PID)
		sweep(task.PID)
	}
	if err := WriteFile(dir, ExitFile, []byte(strconv.Itoa(int(status))+"\n"), true); err != nil {
		return 2
	}
	return 0
}

// start executes the task. A program that cannot be executed ends with status
// 1, as Mesos's launcher makes it; the zero Process says so.
func start(spec Spec) (Process, syscall.WaitStatus) {
	const failed = syscall.WaitStatus(1 << 8)
	null, err := os.Open(os.DevNull)
	if err != nil {
		return Process{}, failed
	}
	defer null.Close()
	const flags = os.O_WRONLY | os.O_APPEND | os.O_CREATE
	stdout, err := os.OpenFile(spec.Stdout, flags, 0o644)
	if err != nil {
		return Process{}, failed
	}
	defer stdout.Close()
	stderr, err := os.OpenFile(spec.Stderr, flags, 0o644)
	if err != nil {
		return Process{}, failed
	}
	defer stderr.Close()
	pid, err := syscall.ForkExec(spec.Path, spec.Argv, &syscall.ProcAttr{
		Dir:   spec.Dir,
		Env:   spec.Env,
		Files: []uintptr{null.Fd(), stdout.Fd(), stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		_, _ = stderr.WriteString("Failed to execute '" + spec.Path + "': " + err.Error() + "\n")
		return Process{}, failed
	}
	task, err := Look(pid) // a zombie still has its stat
	if err != nil {
		task = Process{PID: pid}
	}
	return task, 0
}

// wait reaps until the task's first process has ended.
func wait(pid int) syscall.WaitStatus {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return syscall.WaitStatus(1 << 8) // not reached while the child is ours
		}
		if got == pid && (status.Exited() || status.Signaled()) {
			return status
		}
	}
}

// sweep kills what the task left behind: its process group, then every process
// that was handed to the warden.
func sweep(pid int) {
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	for deadline := time.Now().Add(sweepFor); time.Now().Before(deadline); {
		for _, child := range children() {
			_ = syscall.Kill(child, syscall.SIGKILL)
		}
		got, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err == syscall.ECHILD {
			return
		}
		if got == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// children returns the warden's children, of whichever of its threads.
func children() []int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var pids []int
	for _, t := range tasks {
		data, err := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// rotate keeps the output files near MaxLog: what is there is copied to
// FILE.1 and the file is emptied. The task writes in append mode, so it goes on
// at the new end; what it writes between the copy and the cut is lost. That is
// the price of writing straight to the file, where a dead warden never blocks
// the task.
func rotate(spec Spec) {
	for {
		time.Sleep(rotateEvery)
		for _, path := range []string{spec.Stdout, spec.Stderr} {
			if st, err := os.Stat(path); err == nil && st.Size() > spec.MaxLog {
				_ = copyAndCut(path, spec.MaxLog)
			}
		}
	}
}

// copyAndCut keeps at most the last limit bytes in path.1.
func copyAndCut(path string, limit int64) error {
	in, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if st.Size() > limit {
		if _, err := in.Seek(-limit, io.SeekEnd); err != nil {
			return err
		}
	}
	out, err := os.OpenFile(path+".1.tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(path+".1.tmp", path+".1")
	}
	if err != nil {
		return err
	}
	return in.Truncate(0)
}
