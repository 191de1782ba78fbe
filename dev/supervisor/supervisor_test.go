package supervisor_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/dev/supervisor"
)

// The test binary is the supervisor too, so that it can be killed like one.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "run-supervisor" {
		c, err := supervisor.Load(os.Args[2])
		if err == nil {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			err = supervisor.Run(ctx, c, slog.New(slog.NewTextHandler(os.Stderr, nil)))
			stop()
		}
		if err != nil {
			println(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type host struct {
	t   *testing.T
	dir string
}

func newHost(t *testing.T, argv ...string) host {
	h := host{t: t, dir: t.TempDir()}
	c := supervisor.Config{Dir: h.dir, Processes: []supervisor.Process{{Name: "proxy", Argv: argv}}}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.launch()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := supervisor.Terminate(ctx, h.dir); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h host) launch() supervisor.Identity {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	id, err := supervisor.Launch(ctx, []string{os.Args[0], "run-supervisor"}, h.dir)
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

// proxy waits until the process runs and is not the given one.
func (h host) proxy(not supervisor.Identity) supervisor.Identity {
	h.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		if id, alive, err := supervisor.Read(h.dir, "proxy"); err == nil && alive && id != not {
			return id
		}
		<-time.After(2 * time.Millisecond)
	}
	h.t.Fatal("the process does not run")
	return supervisor.Identity{}
}

func TestAKilledProcessIsStartedAgainAndItsGroupIsGone(t *testing.T) {
	h := newHost(t, "sh", "-c", "sleep 600 & wait")
	h.launch()
	first := h.proxy(supervisor.Identity{})
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := h.proxy(first)
	deadline := time.Now().Add(30 * time.Second) // whoever inherits the orphans has to reap them
	for !errors.Is(syscall.Kill(-first.PID, 0), syscall.ESRCH) {
		if time.Now().After(deadline) {
			t.Fatal("the group of the killed process still runs")
		}
		<-time.After(2 * time.Millisecond)
	}
	if !second.Alive() {
		t.Error("not started again")
	}
}

func TestProcessesOutliveTheirSupervisorAndAreAdopted(t *testing.T) {
	h := newHost(t, "sleep", "600")
	sup := h.launch()
	before := h.proxy(supervisor.Identity{})
	if err := syscall.Kill(sup.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for sup.Alive() {
		<-time.After(time.Millisecond)
	}
	if !before.Alive() {
		t.Fatal("the process died with its supervisor")
	}
	if again := h.launch(); again == sup {
		t.Fatal("no new supervisor")
	}
	if after := h.proxy(supervisor.Identity{}); after != before {
		t.Fatalf("adopted %v, want %v", after, before)
	}
	// An adopted process is kept like any other.
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.proxy(before)
}

func TestASecondSupervisorIsRefused(t *testing.T) {
	h := newHost(t, "sleep", "600")
	h.launch()
	c, err := supervisor.Load(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := supervisor.Run(context.Background(), c, slog.New(slog.DiscardHandler)); !errors.Is(err, supervisor.ErrRunning) {
		t.Fatalf("got %v", err)
	}
}
