package redistest_test

import (
	"testing"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/servertest/redistest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestServerLosesOnlyWhatItIsToldToLose(t *testing.T) {
	s := redistest.Start(t, redistest.Options{})
	s.Do(t, "SET", "kept", "1")
	backup := s.Backup(t)
	s.Do(t, "SET", "lost", "1")
	s.Kill()
	s.Start()
	if got := s.Do(t, "EXISTS", "kept", "lost"); got != int64(2) {
		t.Errorf("%v of 2 keys are there after kill -9", got)
	}
	s.Rollback(t, backup)
	if got := s.Do(t, "EXISTS", "lost"); got != int64(0) {
		t.Error("a key that came after the backup is there")
	}
	if got := s.Do(t, "EXISTS", "kept"); got != int64(1) {
		t.Error("a key from before the backup is lost")
	}
}

func TestReplicaTakesOver(t *testing.T) {
	primary := redistest.Start(t, redistest.Options{AppendFsync: "always"})
	primary.Do(t, "SET", "k", "1")
	replica := redistest.Start(t, redistest.Options{ReplicaOf: primary})
	primary.Kill()
	replica.Promote(t)
	replica.Do(t, "SET", "k", "2")
	if got := replica.Do(t, "GET", "k"); got != "2" {
		t.Errorf("k = %v", got)
	}
}
