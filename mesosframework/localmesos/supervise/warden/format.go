package warden

import (
	"errors"
	"os"
	"strconv"
	"strings"
)

// Env is the environment variable that makes a process a warden; its value is
// the directory of the files below.
const Env = "CUTOVER_TASK_SUPERVISOR"

// Files of a task's directory.
const (
	SpecFile       = "spec"       // what to run, written by the agent
	LockFile       = "lock"       // locked while a warden lives
	SupervisorFile = "supervisor" // the warden's Process
	StartedFile    = "started"    // the task's Process
	ExitFile       = "exit"       // the task's raw wait status
)

// Descriptors that a warden inherits.
const (
	notifyFD = 3 // pipe: one line when the task was started
	lockFD   = 4 // the locked lock file
)

const formatVersion = "1"

// Spec says what a warden runs.
type Spec struct {
	Path   string   // executable
	Argv   []string // with argv[0]
	Env    []string // the whole environment, NAME=value
	Dir    string   // working directory
	Stdout string   // file, appended to
	Stderr string   // file, appended to
	MaxLog int64    // bytes after which an output file is rotated, 0 = never
}

// Encode gives the file form of s: NUL-separated, since no part may hold NUL.
func (s Spec) Encode() ([]byte, error) {
	parts := []string{formatVersion, s.Path, s.Dir, s.Stdout, s.Stderr, strconv.FormatInt(s.MaxLog, 10),
		strconv.Itoa(len(s.Argv))}
	parts = append(parts, s.Argv...)
	parts = append(parts, s.Env...)
	for _, p := range parts {
		if strings.IndexByte(p, 0) >= 0 {
			return nil, errors.New("task command or environment holds a NUL byte")
		}
	}
	return []byte(strings.Join(parts, "\x00")), nil
}

// DecodeSpec reads what Encode wrote.
func DecodeSpec(data []byte) (Spec, error) {
	parts := strings.Split(string(data), "\x00")
	if len(parts) < 7 || parts[0] != formatVersion {
		return Spec{}, errors.New("warden: spec of an unknown format version")
	}
	maxLog, err1 := strconv.ParseInt(parts[5], 10, 64)
	argc, err2 := strconv.Atoi(parts[6])
	if err1 != nil || err2 != nil || argc < 0 || len(parts) < 7+argc {
		return Spec{}, errors.New("warden: spec is damaged")
	}
	return Spec{Path: parts[1], Dir: parts[2], Stdout: parts[3], Stderr: parts[4], MaxLog: maxLog,
		Argv: parts[7 : 7+argc], Env: parts[7+argc:]}, nil
}

// Process names one process for ever: its pid and its start time in clock
// ticks after boot, as /proc/PID/stat has it. A zero PID means that the program
// could not be executed.
type Process struct {
	PID   int
	Start uint64
}

func (p Process) String() string {
	return strconv.Itoa(p.PID) + " " + strconv.FormatUint(p.Start, 10) + "\n"
}

// ParseProcess reads the form of String.
func ParseProcess(text string) (Process, error) {
	a, b, ok := strings.Cut(strings.TrimSpace(text), " ")
	pid, err1 := strconv.Atoi(a)
	start, err2 := strconv.ParseUint(b, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return Process{}, errors.New("warden: damaged process record")
	}
	return Process{PID: pid, Start: start}, nil
}

// Look returns the process that has the pid now.
func Look(pid int) (Process, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Process{}, err
	}
	// The name may hold blanks and parentheses: count from the last ')'.
	text := string(data)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	const startTime = 22 - 3 // field 22; fields[0] is field 3
	if len(fields) <= startTime {
		return Process{}, errors.New("warden: short /proc stat")
	}
	start, err := strconv.ParseUint(fields[startTime], 10, 64)
	return Process{PID: pid, Start: start}, err
}

// WriteFile replaces dir/name by rename; with sync it is on disk on return.
func WriteFile(dir, name string, data []byte, sync bool) error {
	tmp := dir + "/" + name + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && sync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, dir+"/"+name)
	}
	if err == nil && sync {
		var d *os.File
		if d, err = os.Open(dir); err == nil {
			err = d.Sync()
			_ = d.Close()
		}
	}
	return err
}
