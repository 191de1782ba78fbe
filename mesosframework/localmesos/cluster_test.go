package localmesos

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func startCluster(t *testing.T, o Options) *Cluster {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		c.KillTasks(ctx)
		c.Stop()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStartStop(t *testing.T) {
	o := Options{Dir: t.TempDir(), Agents: DefaultAgents(3)}
	c := startCluster(t, o)
	if _, err := New(o); err == nil {
		t.Fatal("two clusters on one directory")
	}
	ids := map[string]bool{}
	for _, a := range c.Agents() {
		ids[a.ID] = true
	}
	c.Stop()
	again := startCluster(t, o)
	for _, a := range again.Agents() {
		if !ids[a.ID] {
			t.Fatalf("agent %s got the new id %s", a.Hostname, a.ID)
		}
	}
}
