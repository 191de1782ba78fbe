package lbagent

import (
	"context"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/cutover/cutover/lbagent/driver"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// tellPolicy opens a Watch that carries the policy, and ends it after its first message.
func (h *host) tellPolicy(p lbagentv1.DriftPolicy) *lbagentv1.WatchResponse {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.ctx())
	defer cancel()
	stream, err := h.client.Watch(ctx, connect.NewRequest(&lbagentv1.WatchRequest{Fence: h.fence(), Drift: p}))
	if err != nil {
		h.t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() {
		h.t.Fatal(stream.Err())
	}
	return stream.Msg()
}

func (h *host) drift() *lbagentv1.ShowResponse {
	h.t.Helper()
	r, err := h.client.Show(h.ctx(), connect.NewRequest(&lbagentv1.ShowRequest{Drift: true}))
	if err != nil {
		h.t.Fatal(err)
	}
	return r.Msg
}

// Somebody else changes the proxy and a file: told and left alone under report, also after a restart of the agent; put
// right under repair.
func TestDriftPolicies(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1", "a2"))
	h.tellPolicy(lbagentv1.DriftPolicy_DRIFT_POLICY_REPORT)
	if d := h.drift(); len(d.GetDrifts()) != 0 || d.GetPolicy() != lbagentv1.DriftPolicy_DRIFT_POLICY_REPORT {
		t.Fatalf("nothing was changed: %v", d)
	}
	h.proxy.with(func() {
		u := h.proxy.running["shop"].ups["a1"]
		u.Weight = 1
		h.proxy.running["shop"].ups["a1"] = u
		h.proxy.altered = []driver.Difference{{Place: "/d/frame.cfg", File: true, Wanted: "x\n", Found: "y\n"}}
	})
	left := func(d *lbagentv1.ShowResponse) bool {
		return len(d.GetDrifts()) == 2 && d.GetDrifts()[0].GetLeft() && d.GetDrifts()[1].GetLeft() &&
			d.GetDrifts()[0].GetCause() == lbagentv1.DriftCause_DRIFT_CAUSE_EDITED_FILE && strings.Contains(d.GetDrifts()[0].GetDiff(), "-x\n+y\n") &&
			d.GetDrifts()[1].GetCause() == lbagentv1.DriftCause_DRIFT_CAUSE_FOREIGN_COMMAND && strings.Contains(d.GetDrifts()[1].GetDiff(), "weight 1 ")
	}
	h.eventually("both are told and left alone", func() bool { return left(h.drift()) })
	h.stop()
	h.start()
	h.eventually("the policy survives the agent", func() bool { return left(h.drift()) })
	first := h.tellPolicy(lbagentv1.DriftPolicy_DRIFT_POLICY_UNSPECIFIED)
	if len(first.GetHost().GetDrifts()) != 1 || len(first.GetSections()) != 1 || len(first.GetSections()[0].GetDrifts()) != 1 {
		t.Errorf("the Watch does not tell the drift: %v", first)
	}
	h.proxy.with(func() {
		if h.proxy.mended != 0 || h.proxy.running["shop"].ups["a1"].Weight != 1 {
			t.Error("what is to be left alone was touched")
		}
	})
	h.tellPolicy(lbagentv1.DriftPolicy_DRIFT_POLICY_REPAIR)
	h.eventually("both are put right", func() bool {
		d := h.drift()
		return len(d.GetDrifts()) == 0 && len(d.GetRepaired()) == 2
	})
	h.proxy.with(func() {
		if h.proxy.mended != 1 || h.proxy.running["shop"].ups["a1"].Weight != 100 {
			t.Errorf("mended %d times, weight %d", h.proxy.mended, h.proxy.running["shop"].ups["a1"].Weight)
		}
	})
}
