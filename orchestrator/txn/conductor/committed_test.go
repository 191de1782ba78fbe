package conductor

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// The newest Commit of each App outlives any number of later ones of other Apps, through restarts: from it the App can be
// rebuilt. What is neither among the newest of all nor of its App goes.
func TestNewestCommitOfEachAppIsKept(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.keep = 2
	cl.restart()
	cl.up()
	cl.commit("t-shop", "a")
	cl.heard.until(t, "the drain", func() bool {
		return slices.ContainsFunc(cl.heard.drained, func(d txn.Drained) bool { return d.Txn == "t-shop" && d.Done })
	})
	worker := func(n int) {
		t.Helper()
		id := fmt.Sprintf("t-batch-%d", n)
		cl.begin(txn.Proposal{ID: id, Deploy: "d-" + id, App: "batch", Deadline: time.Now().Add(20 * time.Second), Actor: "kim", Reason: "test",
			Record: fmt.Appendf(nil, "note %d", n)})
		cl.heard.end(t, id, txn.Committed)
	}
	for n := range 6 {
		worker(n)
	}
	check := func() {
		t.Helper()
		apps, err := cl.Committed(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, a := range apps {
			got[a.App] = fmt.Sprint(a.Txn, " ", slices.Sorted(maps.Keys(a.Sections)))
		}
		if diff := cmp.Diff(map[string]string{"shop": "t-shop [public]", "batch": "t-batch-5 []"}, got); diff != "" {
			t.Errorf("committed (-want +got):\n%s", diff)
		}
		d, ok, err := cl.Decision(t.Context(), "t-batch-5")
		if err != nil || !ok || string(d.Record) != "note 5" || d.Deploy != "d-t-batch-5" || d.App != "batch" || d.CommittedAt.IsZero() {
			t.Errorf("the decision of t-batch-5: %+v %t %v", d, ok, err)
		}
		if _, ok, err := cl.Decision(t.Context(), "t-shop"); err != nil || !ok {
			t.Errorf("the decision of t-shop: %t %v", ok, err)
		}
	}
	check()
	eventually(t, "the oldest decisions to go", func() bool {
		_, err := cl.store.Get(t.Context(), prefixDecision+"t-batch-0")
		return errors.Is(err, store.ErrNotFound)
	})
	if _, ok, err := cl.Decision(t.Context(), "t-batch-0"); err != nil || ok {
		t.Errorf("a decision that is not kept: %t %v", ok, err)
	}
	cl.restart()
	cl.up()
	check()
	worker(6)
	cl.commit("t-shop-2", "b")
	apps, err := cl.Committed(t.Context())
	if err != nil || len(apps) != 2 || apps[0].Txn != "t-batch-6" || apps[1].Txn != "t-shop-2" || apps[1].Sections["public"].GetUpstreams()[0].GetName() != "b" {
		t.Errorf("committed after more: %+v %v", apps, err)
	}
}
