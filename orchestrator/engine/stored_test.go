package engine

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/spec"
	"github.com/cutover/cutover/orchestrator/store"
)

// Hosts say more of one App than a Commit can hold: the Deploy succeeds, and is the same after a restart.
func TestEvidenceBeyondOneCommit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.want(w.submit(yamlSpec("shop", 2)), deploy.Succeeded, deploy.StepDone)
		w.coord.set(func(c *fakeCoordinator) { c.rows = 3000 })
		v := w.want(w.submit(yamlSpec("shop", 2, "version: v2")), deploy.Succeeded, deploy.StepDone)
		if ev := v.Hosts[0].Evidence; len(ev.Others) != 3000 || ev.Omitted != 0 {
			t.Errorf("%d others are shown, %d left out", len(ev.Others), ev.Omitted)
		}
		w.restart()
		v = w.want(v, deploy.Succeeded, deploy.StepDone)
		for _, h := range v.Hosts {
			if h.Vote != deploy.VoteVerified || len(h.Evidence.Upstreams) != 2 || h.Evidence.Omitted != 3000 {
				t.Errorf("after a restart host %s: %s, %d upstreams, %d left out", h.Name, h.Vote, len(h.Evidence.Upstreams), h.Evidence.Omitted)
			}
		}
		w.want(w.submit(yamlSpec("shop", 2, "version: v3")), deploy.Succeeded, deploy.StepDone)
	})
}

// Whatever the number of Hosts, tasks and words, a Deploy is one record that a Commit can hold.
func TestStoredDeployFitsACommit(t *testing.T) {
	rows := func(n int) (out []deploy.UpstreamView) {
		for i := range n {
			out = append(out, deploy.UpstreamView{Name: fmt.Sprintf("%s.%d", strings.Repeat("n", 100), i), Address: "10.100.100.100:31000", Status: "UP", Mode: "serving"})
		}
		return out
	}
	d := &deployRecord{Deploy: deploy.Deploy{ID: "d"}}
	for i := range 60 {
		h := deploy.HostView{Name: fmt.Sprint("lb", i), Group: "public", Output: strings.Repeat("<&\n>", 4<<10), Reason: strings.Repeat("r", 3000)}
		h.Evidence = &deploy.EvidenceView{Upstreams: rows(100), Others: rows(100)}
		d.Hosts = append(d.Hosts, h)
		d.Stuck = append(d.Stuck, deploy.StuckView{Host: h.Name, What: h.Reason, Serves: []deploy.ServesView{{App: "a", Upstreams: rows(100)}}})
	}
	for i := range spec.MaxInstances {
		d.Members = append(d.Members, deploy.Member{Task: fmt.Sprintf("shop.100.%d.%s", i, strings.Repeat("u", 28)), Instance: i, State: deploy.MemberRunning, Why: strings.Repeat("w", 500)})
	}
	before, _ := json.Marshal(d)
	b, err := json.Marshal(d.stored())
	if err != nil || len(b) > store.MaxCommitBytes*9/10 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if after, _ := json.Marshal(d); string(after) != string(before) {
		t.Error("what is shown until a restart was cut too")
	}
	var back deployRecord
	if err := json.Unmarshal(b, &back); err != nil || len(back.Members) != spec.MaxInstances || len(back.Hosts) != 60 {
		t.Fatal(err)
	}
	if ev := back.Hosts[0].Evidence; len(ev.Upstreams) != 100 || ev.Omitted != 100 {
		t.Errorf("of the first host %d upstreams are kept, %d left out", len(ev.Upstreams), ev.Omitted)
	}
	if ev := back.Hosts[59].Evidence; len(ev.Upstreams) != 0 || ev.Omitted != 200 {
		t.Errorf("of the last host %d upstreams are kept, %d left out", len(ev.Upstreams), ev.Omitted)
	}
}
