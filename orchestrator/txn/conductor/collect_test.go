package conductor

import (
	"testing"
	"time"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/txn"
)

// Hosts with many removed upstreams are reloaded while nothing is open in their Group, and what was held back goes on.
func TestTombstonesAreCollected(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2", "lb3").up()
	cl.commit("t1", "a")
	cl.hosts["lb1"].Bend("prepare", func(n int) *lbagentv1.Refusal {
		if n < 8 {
			return &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_BUSY}
		}
		return nil
	})
	cl.begin(txn.Proposal{ID: "t2", App: "shop", Deadline: time.Now().Add(time.Minute),
		Changes: []txn.GroupChange{{Group: "public", App: "shop", Target: target("shop", "b")}}})
	cl.hosts["lb1"].Tombstones(collectAbove + 1)
	cl.hosts["lb2"].Tombstones(collectWith + 1)
	cl.hosts["lb3"].Tombstones(collectWith)
	cl.heard.end(t, "t2", txn.Committed)
	eventually(t, "the hosts to be reloaded", func() bool {
		return cl.hosts["lb1"].Calls("collect") == 1 && cl.hosts["lb2"].Calls("collect") == 1
	})
	cl.commit("t3", "c")
	if n := cl.hosts["lb3"].Calls("collect"); n != 0 {
		t.Errorf("a host with few tombstones was asked %d times", n)
	}
}

// A Host on which something is open still is asked again; one that cannot be reloaded keeps the others from it, and gives
// the Group free.
func TestACollectionThatFailsEndsThere(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.hosts["lb1"].Bend("collect", func(n int) *lbagentv1.Refusal {
		if n < 3 {
			return &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_BUSY}
		}
		return &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_INVALID_CONFIG, Message: "the base is bad"}
	})
	cl.hosts["lb1"].Tombstones(collectAbove + 1)
	cl.hosts["lb2"].Tombstones(collectAbove + 1)
	eventually(t, "the first host to refuse", func() bool { return cl.hosts["lb1"].Calls("collect") >= 3 })
	cl.commit("t1", "a")
	if n := cl.hosts["lb2"].Calls("collect"); n != 0 {
		t.Errorf("the second host was reloaded after the first had failed (%d times)", n)
	}
}
