package conductor

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/store/boltstore"
	"github.com/cutover/cutover/orchestrator/txn"
)

// TestManyTransactionsAtOnce: different Apps go side by side, on a store with real fsyncs, and every one ends.
func TestManyTransactionsAtOnce(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2", "lb3", "lb4")
	cl.Stop()
	bolt, err := boltstore.Open(filepath.Join(t.TempDir(), "state.db"), boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bolt.Close() })
	cl.store.Store = bolt
	cl.start()
	t.Cleanup(func() { cl.Stop() })
	cl.up()
	const apps = 20
	begun := time.Now()
	for i := range apps {
		app := fmt.Sprintf("app%d", i)
		cl.begin(txn.Proposal{ID: "t-" + app, App: app, Deadline: time.Now().Add(time.Minute),
			Changes: []txn.GroupChange{{Group: "public", App: app, Target: target(app, app+"-1", app+"-2")}}})
	}
	for i := range apps {
		cl.heard.end(t, fmt.Sprintf("t-app%d", i), txn.Committed)
	}
	t.Logf("%d transactions side by side on 4 hosts: %v", apps, time.Since(begun).Round(time.Millisecond))
	begun = time.Now()
	const rounds = 10
	for i := range rounds {
		cl.commit(fmt.Sprintf("r%d", i), fmt.Sprintf("u%d", i))
	}
	t.Logf("one after the other: %v each", (time.Since(begun) / rounds).Round(100*time.Microsecond))
}
