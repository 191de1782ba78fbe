package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/localmesos/supervise/warden"
	"github.com/cutover/cutover/mesosframework/localmesos/wire"
)

func writeSynced(dir, name string, data []byte) error {
	if err := warden.WriteFile(dir, name, data, true); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Join(dir, name), err)
	}
	return nil
}

// taskFile is task.json.
type taskFile struct {
	Format    int             `json:"format"`
	Framework string          `json:"framework"`
	Task      json.RawMessage `json:"task"`
}

// checkpoint makes the task's directories and writes down what it is, before
// anything is started.
func (t *task) checkpoint() error {
	if err := os.MkdirAll(t.meta(), 0o700); err != nil {
		return fmt.Errorf("%w: %w", errNoJournal, err)
	}
	if err := os.MkdirAll(t.sandbox(), 0o700); err != nil {
		return fmt.Errorf("%w: %w", errNoJournal, err)
	}
	runs := filepath.Dir(t.sandbox())
	tmp := filepath.Join(runs, ".latest-"+t.container)
	if err := os.Symlink(t.container, tmp); err != nil {
		return fmt.Errorf("%w: %w", errNoJournal, err)
	}
	if err := os.Rename(tmp, filepath.Join(runs, "latest")); err != nil {
		return fmt.Errorf("%w: %w", errNoJournal, err)
	}
	data, err := json.Marshal(taskFile{Format: diskFormat, Framework: t.key.framework, Task: wire.MarshalJSON(&t.info)})
	if err != nil {
		return err
	}
	if err := writeSynced(t.meta(), "task.json", data); err != nil {
		return err
	}
	t.journal, err = openJournal(t.meta(), 0)
	return err
}

// keepFramework remembers a framework, on disk too. On the agent's actor.
func (a *Agent) keepFramework(fw mesos.FrameworkInfo) {
	id := fw.ID.GetValue()
	if old := a.frameworks[id]; old != nil && old.Equal(fw) {
		return
	}
	a.frameworks[id] = &fw
	if err := writeSynced(a.metaDir("frameworks"), id+".json", wire.MarshalJSON(&fw)); err != nil {
		a.log.Error("framework is not on disk; its tasks would be lost by a restart", "framework", id, "error", err)
	}
}

func (a *Agent) forgetFramework(id string) {
	delete(a.frameworks, id)
	if err := os.Remove(a.metaDir("frameworks", id+".json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.log.Warn("an ended framework stays on disk", "framework", id, "error", err)
	}
}

// journal is the log of a task's updates and acknowledgements: one line per
// record, each with its checksum. What follows a damaged line is ignored: it
// was being written when the machine stopped. Such a line is cut off before
// the next one is written, or all that follows would be lost with it. Its
// methods are safe for concurrent use; those on a nil journal do nothing.
type journal struct {
	mu   sync.Mutex
	file *os.File
	size int64 // of the whole lines
}

type record struct {
	Kind string `json:"k"` // "update", "ack", "kill", "remove"
	Data []byte `json:"d,omitempty"`
}

// openJournal opens the log of a task to write on after the first size bytes,
// which readJournal found whole.
func openJournal(dir string, size int64) (*journal, error) {
	f, err := os.OpenFile(filepath.Join(dir, "updates"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the update log: %w", err)
	}
	if err := f.Truncate(size); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("cut the damaged end off the update log: %w", err)
	}
	return &journal{file: f, size: size}, nil
}

func (j *journal) append(r record, sync bool) error {
	if j == nil {
		return errNoJournal
	}
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	line := fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE(body), body)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return os.ErrClosed
	}
	if _, err := j.file.Write(line); err != nil {
		return errors.Join(err, j.file.Truncate(j.size))
	}
	j.size += int64(len(line))
	if sync {
		return j.file.Sync()
	}
	return nil
}

// update is on disk when it returns.
func (j *journal) update(s mesos.TaskStatus) error {
	data, err := s.Marshal()
	if err != nil {
		return err
	}
	return j.append(record{"update", data}, true)
}

// ack, kill and remove are not synced: after a crash of the machine they would
// at worst be done again.
func (j *journal) ack(uuid []byte) { _ = j.append(record{"ack", uuid}, false) }
func (j *journal) kill()           { _ = j.append(record{"kill", nil}, false) }
func (j *journal) remove()         { _ = j.append(record{"remove", nil}, false) }

func (j *journal) close() {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file != nil {
		_ = j.file.Close()
		j.file = nil
	}
}

// readJournal returns the records of a task's log, and how many bytes of it
// are whole lines.
func readJournal(dir string) (out []record, size int64, err error) {
	data, err := os.ReadFile(filepath.Join(dir, "updates"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read the update log: %w", err)
	}
	for {
		line, rest, whole := bytes.Cut(data, []byte{'\n'})
		r, ok := parseRecord(line)
		if !whole || !ok {
			return out, size, nil
		}
		out = append(out, r)
		size += int64(len(line)) + 1
		data = rest
	}
}

func parseRecord(line []byte) (r record, ok bool) {
	sum, body, _ := bytes.Cut(line, []byte{' '})
	want, err := strconv.ParseUint(string(sum), 16, 32)
	ok = err == nil && crc32.ChecksumIEEE(body) == uint32(want) && json.Unmarshal(body, &r) == nil
	return r, ok
}
