package supervisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/google/renameio/v2"
)

// Identity names a process beyond doubt: a pid is used again, a pid with its start time is not.
type Identity struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // in clock ticks since boot, field 22 of /proc/PID/stat
}

// Alive reports whether exactly this process still runs. A zombie does not.
func (i Identity) Alive() bool {
	if i.PID <= 0 {
		return false
	}
	now, state, err := identify(i.PID)
	return err == nil && now == i && state != 'Z' && state != 'X'
}

// Identify reads the identity of a running process.
func Identify(pid int) (Identity, error) {
	id, _, err := identify(pid)
	return id, err
}

func identify(pid int) (Identity, byte, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Identity{}, 0, err
	}
	// The command name may hold anything, spaces and parentheses too: fields are counted after its last ')'.
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return Identity{}, 0, fmt.Errorf("/proc/%d/stat: no command in it", pid)
	}
	fields := bytes.Fields(stat[end+1:])
	if len(fields) < 20 {
		return Identity{}, 0, fmt.Errorf("/proc/%d/stat: only %d fields", pid, len(fields))
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return Identity{}, 0, fmt.Errorf("/proc/%d/stat: start time: %w", pid, err)
	}
	return Identity{PID: pid, StartTime: start}, fields[0][0], nil
}

func identityFile(dir, name string) string { return filepath.Join(dir, "run", name+".json") }

// Read returns the recorded identity of a supervised process ("supervisor" is the supervisor itself), and whether it is
// alive. Nothing recorded is not an error.
func Read(dir, name string) (Identity, bool, error) {
	var id Identity
	data, err := os.ReadFile(identityFile(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return id, false, nil
	}
	if err != nil {
		return id, false, err
	}
	if err := json.Unmarshal(data, &id); err != nil {
		return id, false, fmt.Errorf("read %s: %w", identityFile(dir, name), err)
	}
	return id, id.Alive(), nil
}

func record(dir, name string, id Identity) error {
	data, err := json.Marshal(id)
	if err != nil {
		return err
	}
	return renameio.WriteFile(identityFile(dir, name), data, 0o600)
}
