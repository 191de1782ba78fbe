package agent

import (
	"os"
	"path/filepath"
	"testing"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestJournalTornTail: whatever a crash leaves of the last line, the lines
// before it count and the rest does not.
func TestJournalTornTail(t *testing.T) {
	dir := t.TempDir()
	j, err := openJournal(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []mesos.TaskState{mesos.TASK_STARTING, mesos.TASK_RUNNING} {
		if err := j.update(mesos.TaskStatus{TaskID: mesos.TaskID{Value: "t"}, State: s.Enum(), UUID: newUUIDBytes()}); err != nil {
			t.Fatal(err)
		}
	}
	j.ack([]byte("0123456789abcdef"))
	j.close()
	whole, err := os.ReadFile(filepath.Join(dir, "updates"))
	if err != nil {
		t.Fatal(err)
	}
	last := -1
	for n := range len(whole) + 1 {
		if err := os.WriteFile(filepath.Join(dir, "updates"), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		got, size, err := readJournal(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) < last {
			t.Fatalf("%d bytes give %d records, fewer than before", n, len(got))
		}
		last = len(got)
		// What is written next must survive the torn line before it.
		if j, err = openJournal(dir, size); err != nil {
			t.Fatal(err)
		}
		j.kill()
		j.close()
		if got, _, err = readJournal(dir); err != nil || len(got) != last+1 || got[last].Kind != "kill" {
			t.Fatalf("%d bytes, then one more record: %v %v", n, got, err)
		}
	}
	if last != 3 {
		t.Fatalf("%d records, want 3", last)
	}
	whole[len(whole)/2] ^= 1 // a flipped bit ends the log there
	if err := os.WriteFile(filepath.Join(dir, "updates"), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := readJournal(dir); len(got) == 3 {
		t.Fatal("a damaged line was believed")
	}
}
