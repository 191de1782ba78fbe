package redistest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutover/cutover/internal/servertest"
)

// Options of Start. The zero value gives a primary that is as durable as production usually is.
type Options struct {
	// AppendFsync is Redis's setting of that name: everysec (the default), always or no.
	AppendFsync string
	// Policy is maxmemory-policy; noeviction by default.
	Policy string
	// ReplicaOf makes it a replica of another one.
	ReplicaOf *Server
}

// Server is a running Redis server. Kill, Stop, Freeze, Thaw and Start act on the process; data and port stay the same.
type Server struct {
	*servertest.Process
	// URL is what a client takes: redis://127.0.0.1:PORT.
	URL  string
	port int
	dir  string
}

// aof is the folder of the append-only file, below the data.
const aof = "appendonlydir"

// Start runs a new server. A replica has all of its primary's data when Start returns.
func Start(t testing.TB, opts Options) *Server {
	t.Helper()
	binary := servertest.Binary(t, "redis-server", "REDIS_BIN", "run `make setup`")
	dir, err := os.MkdirTemp("", "redis")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	port := servertest.FreePorts(t, 1)[0]
	s := &Server{URL: fmt.Sprintf("redis://127.0.0.1:%d", port), port: port, dir: dir}
	args := []string{
		"--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--dir", dir, "--daemonize", "no", "--save", "",
		"--appendonly", "yes", "--appenddirname", aof, "--appendfsync", cmp.Or(opts.AppendFsync, "everysec"),
		"--maxmemory-policy", cmp.Or(opts.Policy, "noeviction"), "--repl-diskless-sync-delay", "0",
	}
	if of := opts.ReplicaOf; of != nil {
		args = append(args, "--replicaof", "127.0.0.1", strconv.Itoa(of.port))
	}
	s.Process = servertest.Start(t, dir, binary, args, s.ready)
	return s
}

// ready is nil when the server has loaded its data, and has that of its primary.
func (s *Server) ready(ctx context.Context) error {
	client := s.client()
	defer client.Close()
	info, err := client.Info(ctx, "persistence", "replication").Result()
	switch {
	case err != nil:
		return err
	case !strings.Contains(info, "loading:0"):
		return errors.New("it is loading its data")
	case !strings.Contains(info, "aof_rewrite_in_progress:0") || !strings.Contains(info, "aof_rewrite_scheduled:0"):
		return errors.New("it is writing what it has got from its primary") // not in a Backup yet
	case strings.Contains(info, "role:slave") && !strings.Contains(info, "master_link_status:up"):
		return errors.New("it has not reached its primary")
	}
	return nil
}

func (s *Server) client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: fmt.Sprintf("127.0.0.1:%d", s.port), MaxRetries: -1, DialTimeout: time.Second, ReadTimeout: 5 * time.Second})
}

// Do runs one command and returns what it answered.
func (s *Server) Do(t testing.TB, args ...any) any {
	t.Helper()
	client := s.client()
	defer client.Close()
	out, err := client.Do(t.Context(), args...).Result()
	if err != nil {
		t.Fatalf("redis %v: %v", args, err)
	}
	return out
}

// Promote makes a replica a primary, as a failover does.
func (s *Server) Promote(t testing.TB) {
	t.Helper()
	s.Do(t, "REPLICAOF", "NO", "ONE")
}

// TakePlaceOf gives the data of s to the killed server old and starts that: clients find what s had at the address that
// they know, as after a failover behind a fixed name.
func (s *Server) TakePlaceOf(t testing.TB, old *Server) {
	t.Helper()
	backup := s.Backup(t)
	s.Kill()
	old.Rollback(t, backup)
}

// Backup copies what the server has, for Rollback.
func (s *Server) Backup(t testing.TB) string {
	t.Helper()
	// With everysec even the write to the file may come after the answer. This one does not return before all is there.
	fsync, _ := s.Do(t, "CONFIG", "GET", "appendfsync").(map[any]any)
	s.Do(t, "CONFIG", "SET", "appendfsync", "always")
	s.Do(t, "INCR", "redistest-backups")
	s.Do(t, "CONFIG", "SET", "appendfsync", fsync["appendfsync"])
	to := t.TempDir()
	if err := os.CopyFS(filepath.Join(to, aof), os.DirFS(filepath.Join(s.dir, aof))); err != nil {
		t.Fatal(err)
	}
	return to
}

// Rollback kills the server and starts it on what it had at the Backup: everything acknowledged since is lost, as after
// a power failure between two fsyncs.
func (s *Server) Rollback(t testing.TB, backup string) {
	t.Helper()
	s.Kill()
	if err := os.RemoveAll(filepath.Join(s.dir, aof)); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(s.dir, aof), os.DirFS(filepath.Join(backup, aof))); err != nil {
		t.Fatal(err)
	}
	s.Start()
}
