package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/internal/procfs"
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
	s, err := procfs.ReadStat(i.PID)
	return err == nil && s.StartTicks == i.StartTime
}

// Identify reads the identity of a process, also of one that has ended and waits for its parent.
func Identify(pid int) (Identity, error) {
	s, err := procfs.ReadStat(pid)
	if err != nil && !errors.Is(err, procfs.ErrEnded) {
		return Identity{}, err
	}
	return Identity{PID: pid, StartTime: s.StartTicks}, nil
}

// IdentityFile is where the identity of a supervised process is recorded: one JSON object, "pid" first.
func IdentityFile(dir, name string) string { return filepath.Join(dir, "run", name+".json") }

// Read returns the recorded identity of a supervised process ("supervisor" is the supervisor itself), and whether it is
// alive. Nothing recorded is not an error.
func Read(dir, name string) (Identity, bool, error) {
	var id Identity
	data, err := os.ReadFile(IdentityFile(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return id, false, nil
	}
	if err != nil {
		return id, false, err
	}
	if err := json.Unmarshal(data, &id); err != nil {
		return id, false, fmt.Errorf("read %s: %w", IdentityFile(dir, name), err)
	}
	return id, id.Alive(), nil
}

func record(dir, name string, id Identity) error {
	data, err := json.Marshal(id)
	if err != nil {
		return err
	}
	return atomicfile.Write(IdentityFile(dir, name), data)
}
