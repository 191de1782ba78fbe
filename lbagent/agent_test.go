package lbagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

func TestDeployAndDrain(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1", "a2"))
	h.proxy.with(func() { h.proxy.sessions["a1"] = 3 })
	h.mustPrepare("t2", 2, 1, pbSection("shop", "b1", "b2"))
	h.expect("shop", map[string]driver.Mode{"a1": driver.Serving, "a2": driver.Serving, "b1": driver.Warm, "b2": driver.Warm})
	v := h.mustActivate("t2", 2)
	if len(v.GetEvidence()) != 1 || v.GetEvidence()[0].GetProcess().GetWorkerPid() != 1000 || v.GetEvidence()[0].GetOrder() != 2 {
		t.Errorf("evidence: %v", v)
	}
	for _, u := range v.GetEvidence()[0].GetUpstreams() {
		if strings.HasPrefix(u.GetName(), "b") && (!u.GetHealthy() || !u.GetRegistered() || u.GetTaskId() != "task-"+u.GetName()) {
			t.Errorf("row: %v", u)
		}
	}
	if a := h.verify("t2"); a.GetVerified() == nil {
		t.Fatal(a)
	}
	if r := h.commit("t2", 2); r.GetCommitted() == nil {
		t.Fatal(r)
	}
	h.expect("shop", map[string]driver.Mode{"a1": driver.Draining, "b1": driver.Serving, "b2": driver.Serving})
	h.proxy.with(func() { h.proxy.sessions["a1"] = 0 })
	h.expect("shop", map[string]driver.Mode{"b1": driver.Serving, "b2": driver.Serving})
	h.eventually("a1 is reported drained and gone", func() bool {
		for _, u := range h.show("shop").GetRunning().GetUpstreams() {
			if u.GetName() == "a1" {
				return u.GetDrained() && !u.GetForced() && !u.GetRegistered()
			}
		}
		return false
	})
	h.eventually("journal, files and proxy agree", func() bool { return h.show("shop").GetAgrees() })
	// A stop.
	h.deploy("t3", 3, 2, nil)
	h.expect("shop", map[string]driver.Mode{})
	if s := h.show("shop"); !s.GetCommitted().GetRemoved() || s.GetCommitted().GetVersion().GetTxn() != 3 {
		t.Error(s)
	}
}

func (h *host) show(app string) *lbagentv1.SectionShow {
	h.t.Helper()
	r, err := h.client.Show(h.ctx(), connect.NewRequest(&lbagentv1.ShowRequest{Apps: []string{app}}))
	if err != nil {
		h.t.Fatal(err)
	}
	if len(r.Msg.GetSections()) != 1 || r.Msg.GetHost().GetName() != "lb1" {
		h.t.Fatalf("show: %v", r.Msg)
	}
	return r.Msg.GetSections()[0]
}

func TestAbortRestores(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	before := h.show("shop")
	h.mustPrepare("t2", 2, 1, pbSection("shop", "b1"))
	h.mustActivate("t2", 2)
	r := h.abort("t2", 2)
	if r.GetAborted() == nil || r.GetAborted().GetNeverActivated() || len(r.GetAborted().GetEvidence()) != 1 {
		t.Fatal(r)
	}
	if got, want := r.GetAborted().GetEvidence()[0].GetDigest(), before.GetRunning().GetDigest(); got != want {
		t.Errorf("digest after the restore is %s, before it was %s", got, want)
	}
	if r := h.abort("t2", 2); r.GetAborted() == nil {
		t.Errorf("again: %v", r)
	}
	if r := h.activate("t2", 2); r.GetRefusal().GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_ABORTED {
		t.Errorf("a late Activate: %v", r)
	}
	h.expect("shop", map[string]driver.Mode{"a1": driver.Serving})
}

func TestRefusals(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	h.proxy.with(func() {
		h.proxy.stageErr["shop"] = &driver.RefusedError{Checker: "haproxy -c", Output: "line 7: what?", Err: errors.New("exit status 1")}
	})
	r := h.prepare("t2", 2, 1, pbSection("shop", "b1"))
	if no := r.GetRefusal(); no.GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_INVALID_CONFIG || no.GetOutput() != "line 7: what?" {
		t.Errorf("staged: %v", r)
	}
	h.proxy.with(func() { delete(h.proxy.stageErr, "shop") })
	if r := h.prepare("t3", 3, 9, pbSection("shop", "b1")); r.GetRefusal().GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_BASE_MISMATCH {
		t.Errorf("base: %v", r)
	}
	h.epoch = 0
	if r := h.prepare("t4", 4, 1, pbSection("shop", "b1")); r.GetRefusal().GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_STALE_EPOCH ||
		r.GetRefusal().GetMaxEpoch() != 1 {
		t.Errorf("epoch: %v", r)
	}
	h.epoch = 1
	h.mustPrepare("t5", 5, 1, pbSection("shop", "b1"))
	if r := h.prepare("t6", 6, 1, pbSection("shop", "c1")); r.GetRefusal().GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_BUSY {
		t.Errorf("busy: %v", r)
	}
	for name, s := range map[string]*lbagentv1.Section{
		"name":  pbSection("shop", "no such name"),
		"route": {App: "shop", Routes: []*lbagentv1.Route{{Host: "*", Path: "/a b; server evil"}}},
		"twice": pbSection("shop", "x", "x"),
	} {
		_, err := h.client.Prepare(h.ctx(), h.prepareReq("t7", 7, 1, s))
		if connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCallerGoesAway: the work of a call is not the caller's, and a repeated call joins it.
func TestCallerGoesAway(t *testing.T) {
	h := newHost(t).start()
	gate := make(chan struct{})
	h.proxy.with(func() { h.proxy.gate = gate })
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() {
		_, err := h.client.Prepare(ctx, h.prepareReq("t1", 1, 0, pbSection("shop", "a1")))
		first <- err
	}()
	h.eventually("converge is under way", func() bool {
		busy := false
		h.proxy.with(func() { busy = h.proxy.busy["shop"] && h.agent.state.Load().Durable.Txns["t1"] != nil })
		return busy
	})
	cancel()
	if err := <-first; err == nil {
		t.Fatal("the call ended well although it was cancelled")
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			r, err := h.client.Prepare(h.ctx(), h.prepareReq("t1", 1, 0, pbSection("shop", "a1")))
			if err != nil || r.Msg.GetReady() == nil {
				t.Errorf("joined: %v %v", r, err)
			}
		})
	}
	close(gate)
	wg.Wait()
	h.mustActivate("t1", 1)
	h.mustActivate("t1", 1)
}

func TestRestartOfTheAgent(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	h.mustPrepare("t2", 2, 1, pbSection("shop", "b1"))
	h.stop()
	h.start()
	h.mustPrepare("t2", 2, 1, pbSection("shop", "b1"))
	h.mustActivate("t2", 2)
	h.stop()
	h.start()
	if a := h.verify("t2"); a.GetVerified() == nil {
		t.Fatalf("verified before, and after the restart: %v", a)
	}
	h.expect("shop", map[string]driver.Mode{"a1": driver.Draining, "b1": driver.Serving})
	if r := h.commit("t2", 2); r.GetCommitted() == nil {
		t.Fatal(r)
	}
	h.stop()
	h.start()
	if r := h.commit("t2", 2); r.GetCommitted() == nil {
		t.Fatalf("again, after a restart: %v", r)
	}
	h.expect("shop", map[string]driver.Mode{"b1": driver.Serving})
}

// TestReadingOfAllHoldsNobodyUp: a transaction is proved while a reading of all Apps is under way.
func TestReadingOfAllHoldsNobodyUp(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	gate := make(chan struct{})
	h.proxy.with(func() { h.proxy.allGate = gate })
	h.eventually("a reading of all is under way", func() (waits bool) {
		h.proxy.with(func() { waits = h.proxy.allWaits })
		return waits
	})
	begin := time.Now()
	h.deploy("t2", 2, 1, pbSection("shop", "b1"))
	if took := time.Since(begin); took > readTimeout {
		t.Errorf("the deploy took %s, as long as the reading of all", took)
	}
	close(gate)
	h.expect("shop", map[string]driver.Mode{"b1": driver.Serving})
}

// TestFailedReadingOfAll: one reading that took long and failed does not keep a Host out of traffic for as long as it is
// until everything is read again.
func TestFailedReadingOfAll(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	gate := make(chan struct{})
	h.proxy.with(func() { h.proxy.allGate = gate })
	h.eventually("a reading of all is under way", func() (waits bool) {
		h.proxy.with(func() { waits = h.proxy.allWaits })
		return waits
	})
	time.Sleep(allEveryMax / allShare)
	h.proxy.with(func() { h.proxy.down, h.proxy.allGate = true, nil })
	close(gate)
	problems := func() int { return len(h.agent.state.Load().Problems()) }
	h.eventually("it is told that the proxy cannot be read", func() bool { return problems() > 0 })
	h.proxy.with(func() { h.proxy.down = false })
	begin := time.Now()
	h.eventually("the proxy can be read", func() bool { return problems() == 0 })
	if took := time.Since(begin); took > allEveryMax/2 {
		t.Errorf("for %s the proxy could be read, and was not", took)
	}
}

// TestLateReadingOfAll: a reading of all that looked at the proxy before it was restarted, and is told after another reading
// has told of the new process, does not bring the old one back.
func TestLateReadingOfAll(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	gate := make(chan struct{})
	h.proxy.with(func() { h.proxy.heldGate = gate })
	h.eventually("a reading of all has looked", func() (waits bool) {
		h.proxy.with(func() { waits = h.proxy.heldWaits > 0 })
		return waits
	})
	old := h.agent.state.Load().Process
	h.proxy.restart()
	h.eventually("the new process is seen", func() bool { return h.agent.state.Load().Process.WorkerPID == old.WorkerPID+1 })
	close(gate)
	for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); time.Sleep(50 * time.Microsecond) {
		if p := h.agent.state.Load().Process; p.WorkerPID == old.WorkerPID {
			t.Fatalf("worker %d, which has gone, is back", p.WorkerPID)
		}
	}
}

// TestALookForACallerIsAtWhatRuns: a caller whose look was at a process that is gone when it is told gets another look, and
// hears it if that one fails.
func TestALookForACallerIsAtWhatRuns(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	gate := make(chan struct{})
	h.proxy.with(func() { h.proxy.heldGate = gate })
	looked := func(n int) {
		t.Helper()
		h.eventually(fmt.Sprintf("%d readings of all have looked", n), func() (waits bool) {
			h.proxy.with(func() { waits = h.proxy.heldWaits >= n })
			return waits
		})
	}
	looked(1) // the reader's own, which goes on one at a time
	answer := make(chan error, 1)
	go func() { answer <- h.agent.readNow(t.Context(), nil) }()
	looked(2)
	old := h.agent.state.Load().Process
	h.proxy.restart()
	h.eventually("the new process is seen", func() bool { return h.agent.state.Load().Process.WorkerPID == old.WorkerPID+1 })
	h.proxy.with(func() { h.proxy.down = true })
	close(gate)
	if err := <-answer; !errors.Is(err, driver.ErrProxyDown) {
		t.Errorf("the proxy cannot be read, and the caller is told: %v", err)
	}
}

// TestOlderReadingsOfAnotherProcessArePassedOver: what was read of a process that has gone since does not bring it back.
func TestOlderReadingsOfAnotherProcessArePassedOver(t *testing.T) {
	old, next := driver.Process{MasterPID: 1, WorkerPID: 2}, driver.Process{MasterPID: 1, WorkerPID: 3}
	now := time.Now()
	a := &Agent{inbox: make(chan input, 8)}
	deliver := func(p driver.Process, began time.Time) bool {
		return a.deliver(t.Context(), p, began, input{})
	}
	if !deliver(old, now) || !deliver(next, time.Now()) || !deliver(next, now) {
		t.Error("a reading is passed over for nothing")
	}
	if deliver(old, now) {
		t.Error("a reading that began before another process was told of brings back the one of before")
	}
	if !deliver(driver.Process{}, time.Time{}) {
		t.Error("that the proxy could not be read is passed over")
	}
	before := time.Now()
	a.delivered.gone()
	if deliver(next, before) {
		t.Error("a reading that began before the end of its process brings it back")
	}
	if !deliver(next, time.Now()) {
		t.Error("a newer reading is passed over")
	}
	again := next
	again.StartedAt = again.StartedAt.Add(time.Millisecond) // start times are told with little precision
	if !deliver(again, before) {
		t.Error("a reading of the same process is passed over")
	}
}

// TestCompaction: while changes go on, snapshots replace the journal's file, and a restart finds what was committed.
func TestCompaction(t *testing.T) {
	h := newHost(t).start()
	compacted := func() bool {
		old, err := filepath.Glob(filepath.Join(h.dir, "journal.*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(old) >= 3
	}
	var n uint64
	for ; !compacted(); n++ {
		if n == 200 {
			t.Fatal("200 deploys, and the journal has not been compacted three times")
		}
		h.deploy(fmt.Sprintf("t%d", n+1), n+1, n, pbSection("shop", fmt.Sprintf("a%d", n)))
	}
	h.stop()
	h.start()
	h.expect("shop", map[string]driver.Mode{fmt.Sprintf("a%d", n-1): driver.Serving})
	if v := h.show("shop").GetCommitted().GetVersion().GetTxn(); v != n {
		t.Errorf("transaction %d is committed after the restart, want %d", v, n)
	}
}

// TestSlowCheckAfterRestart: the first Check of a new agent (the proxy's checker on a large configuration) may take longer
// than a Verified transaction survives a proxy that does not answer. It must not lapse for that.
func TestSlowCheckAfterRestart(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a"))
	h.mustPrepare("t2", 2, 1, pbSection("shop", "b"))
	h.mustActivate("t2", 2)
	h.stop()
	gate := make(chan struct{})
	h.proxy.with(func() { h.proxy.checkGate = gate })
	h.start()
	<-time.After(1500 * time.Millisecond) // more than the patience with a proxy that is down
	if txn := h.agent.state.Load().Durable.Txns["t2"]; txn == nil || txn.Phase != participant.Verified {
		t.Errorf("t2 before the first Check has ended: %+v", txn)
	}
	close(gate)
	if ans := h.verify("t2"); ans.GetVerified() == nil {
		t.Errorf("t2 after it: %v", ans)
	}
	if r := h.commit("t2", 2); r.GetCommitted() == nil {
		t.Error(r)
	}
}

func TestRestartOfTheProxy(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	h.mustPrepare("t2", 2, 1, pbSection("shop", "b1"))
	h.proxy.restart() // the warm one is lost
	v := h.mustActivate("t2", 2)
	if v.GetEvidence()[0].GetProcess().GetWorkerPid() != 1001 {
		t.Errorf("evidence of another process: %v", v)
	}
	h.proxy.restart()
	a := h.verify("t2")
	if a.GetVerified() == nil || a.GetVerified().GetEvidence()[0].GetProcess().GetWorkerPid() != 1002 {
		t.Errorf("after the second restart: %v", a)
	}
	if r := h.abort("t2", 2); r.GetAborted() == nil {
		t.Error(r)
	}
	h.expect("shop", map[string]driver.Mode{"a1": driver.Serving})
}

func TestSyncAndAmend(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("old", "o1"))
	sync := func(order uint64) *lbagentv1.SyncResponse {
		r, err := h.client.Sync(h.ctx(), connect.NewRequest(&lbagentv1.SyncRequest{Fence: h.fence(), Order: order,
			Sections: []*lbagentv1.CommittedSection{{Section: pbSection("shop", "a1", "a2"), Version: &lbagentv1.Version{Txn: 5}}}}))
		if err != nil {
			t.Fatal(err)
		}
		return r.Msg
	}
	r := sync(6)
	if s := r.GetSynced(); s == nil || len(s.GetDeleted()) != 1 || s.GetDeleted()[0] != "old" {
		t.Fatal(r)
	}
	h.expect("old", map[string]driver.Mode{})
	am, err := h.client.Amend(h.ctx(), connect.NewRequest(&lbagentv1.AmendRequest{Fence: h.fence(), App: "shop", Order: 7, Remove: []string{"a1"}}))
	if err != nil || am.Msg.GetAmended().GetEvidence().GetVersion().GetAmendments() != 1 {
		t.Fatal(am, err)
	}
	am, err = h.client.Amend(h.ctx(), connect.NewRequest(&lbagentv1.AmendRequest{Fence: h.fence(), App: "shop", Order: 8,
		Base: &lbagentv1.Version{Txn: 5}, Insert: []*lbagentv1.Upstream{pbUpstream("n1")}, Retire: []string{"a2"}, Deadline: durationpb.New(10 * time.Second)}))
	if err != nil || am.Msg.GetAmended() == nil {
		t.Fatal(am, err)
	}
	h.expect("shop", map[string]driver.Mode{"n1": driver.Serving})
	if r := sync(7); r.GetRefusal().GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_STALE_ORDER {
		t.Error(r)
	}
}

func TestWatch(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	stream, err := h.client.Watch(h.ctx(), connect.NewRequest(&lbagentv1.WatchRequest{Fence: h.fence()}))
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() || !stream.Msg().GetComplete() || len(stream.Msg().GetSections()) != 1 || stream.Msg().GetHost().GetProxy() != "haproxy" {
		t.Fatalf("first: %v %v", stream.Msg(), stream.Err())
	}
	var deploy sync.WaitGroup
	deploy.Go(func() {
		if r := h.prepare("t2", 2, 1, pbSection("shop", "b1")); r.GetReady() == nil {
			t.Error(r)
		}
		if r := h.activate("t2", 2); r.GetVerified() == nil {
			t.Error(r)
		}
	})
	for stream.Receive() {
		if s := stream.Msg().GetSections(); len(s) == 1 && s[0].GetOpen().GetPhase() == lbagentv1.TxnPhase_TXN_PHASE_VERIFIED {
			break
		}
	}
	deploy.Wait()
	h.proxy.with(func() { h.proxy.red["b1"] = true })
	for stream.Receive() {
		if s := stream.Msg().GetSections(); len(s) == 1 && s[0].GetOpen().GetPhase() == lbagentv1.TxnPhase_TXN_PHASE_LAPSED &&
			s[0].GetOpen().GetFallback() {
			break
		}
	}
	beats := 0
	for beats < 2 && stream.Receive() { // nothing happens, and yet it speaks
		beats++
	}
	// A new leader: the stream of the old one ends.
	h.epoch = 2
	if a := h.verify("t2"); a.GetRefusal() == nil {
		t.Errorf("lapsed, and verified: %v", a)
	}
	for stream.Receive() {
	}
	if connect.CodeOf(stream.Err()) != connect.CodeFailedPrecondition {
		t.Errorf("the old stream ended with %v", stream.Err())
	}
	if err := stream.Close(); err != nil {
		t.Log(err)
	}
	h.epoch = 1
	stream, err = h.client.Watch(h.ctx(), connect.NewRequest(&lbagentv1.WatchRequest{Fence: h.fence()}))
	if err == nil {
		for stream.Receive() {
			t.Errorf("a stale epoch watches: %v", stream.Msg())
		}
		err = stream.Err()
		_ = stream.Close()
	}
	if connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Error(err)
	}
}

func TestContractAndReadiness(t *testing.T) {
	h := newHost(t)
	h.proxy.checkErr = errors.New("/etc/haproxy/haproxy.cfg has no stats socket: add one")
	h.start()
	h.eventually("readyz says what to change", func() bool {
		code, body := h.get("/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "add one")
	})
	if code, _ := h.get("/healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d", code)
	}
	if r := h.prepare("t1", 1, 0, pbSection("shop", "a1")); !strings.Contains(r.GetRefusal().GetMessage(), "add one") ||
		r.GetRefusal().GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_INVALID_CONFIG {
		t.Errorf("a base that is known to be bad must veto, and is not a proxy that is down: %v", r)
	}
	h.proxy.with(func() { h.proxy.checkErr = nil })
	h.traffic(lbagentv1.TrafficOrder_TRAFFIC_ORDER_IN)
	h.eventually("ready", func() bool { code, _ := h.get("/readyz"); return code == http.StatusOK })
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	if _, body := h.get("/metrics"); !strings.Contains(body, `cutover_lbagent_messages_total{answer="ok",method="Prepare"} 1`) {
		t.Errorf("metrics:\n%s", body)
	}
}

func (h *host) get(path string) (int, string) {
	h.t.Helper()
	c := &http.Client{Timeout: patience} // HTTP/1.1
	defer c.CloseIdleConnections()
	r, err := c.Get("http://" + h.agent.Addr().String() + path)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// TestHTTP1 calls over HTTP/1.1 in Connect's JSON, and finds the limit of a message.
func TestHTTP1(t *testing.T) {
	h := newHost(t).start()
	c := &http.Client{Timeout: patience}
	defer c.CloseIdleConnections()
	url := "http://" + h.agent.Addr().String() + "/cutover.lbagent.v1.HostService/Show"
	r, err := c.Post(url, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(r.Body)
	_ = r.Body.Close()
	if r.StatusCode != http.StatusOK || !strings.Contains(string(b), `"lb1"`) {
		t.Errorf("%d %s", r.StatusCode, b)
	}
	big := `{"apps":["` + strings.Repeat("a", maxMessage) + `"]}`
	r, err = c.Post(url, "application/json", strings.NewReader(big))
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode == http.StatusOK {
		t.Error("a message over the limit was taken")
	}
}

// TestDiskFull: no promise without memory, no effect either, and service again once the disk is.
func TestDiskFull(t *testing.T) {
	h := newHost(t)
	fs := &brokenFS{}
	h.fs = fs
	h.start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	h.mustPrepare("t2", 2, 1, pbSection("shop", "b1"))
	fs.set(true)
	if r := h.activate("t2", 2); r.GetRefusal().GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_JOURNAL {
		t.Errorf("activate on a full disk: %v", r)
	}
	h.expect("shop", map[string]driver.Mode{"a1": driver.Serving, "b1": driver.Warm})
	if r := h.commit("t1", 1); r.GetRefusal().GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_JOURNAL {
		t.Errorf("commit on a full disk: %v", r)
	}
	if p := h.agent.hostState(h.agent.state.Load()).GetProblems(); len(p) == 0 {
		t.Errorf("no problem on a full disk")
	}
	fs.set(false)
	h.eventually("the journal is open again", func() bool { return h.agent.state.Load().Broken == nil })
	if r := h.abort("t2", 2); r.GetAborted() == nil {
		t.Errorf("abort after the repair: %v", r)
	}
	h.expect("shop", map[string]driver.Mode{"a1": driver.Serving})
}

func TestOptions(t *testing.T) {
	good := Options{Name: "a", Group: "b", Cluster: "c", Dir: t.TempDir(), Listen: "127.0.0.1:0", Driver: newFakeProxy().driver()}
	for name, change := range map[string]func(*Options){
		"no name":            func(o *Options) { o.Name = "" },
		"no driver":          func(o *Options) { o.Driver = nil },
		"no dir":             func(o *Options) { o.Dir = "" },
		"dir does not exist": func(o *Options) { o.Dir = filepath.Join(o.Dir, "nope") },
		"clear text":         func(o *Options) { o.Listen = "0.0.0.0:0" },
		"host name":          func(o *Options) { o.Listen = "localhost:0" },
	} {
		o := good
		change(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	a, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(good); err == nil {
		t.Error("two agents on one directory")
	}
	if err := a.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestStray: a proxy that holds what the journal does not know is left alone until a Sync says what should be.
func TestStray(t *testing.T) {
	h := newHost(t).start()
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	h.stop()
	h.dir = t.TempDir() // the journal is lost
	h.start()
	h.eventually("read", func() bool { return h.agent.state.Load().Process.WorkerPID != 0 })
	if code, body := h.get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "no orchestrator") {
		t.Errorf("a host that knows nothing is ready: %d %s", code, body)
	}
	if r := h.abort("t9", 9); r.GetAborted() == nil {
		t.Error(r)
	}
	if r := h.prepare("t10", 10, 0, pbSection("shop", "b1")); r.GetRefusal().GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_SET_DIFFERS {
		t.Error(r)
	}
	h.expect("shop", map[string]driver.Mode{"a1": driver.Serving})
	if s := h.show("shop"); s.GetAgrees() {
		t.Error("an unknown App agrees with the journal")
	}
	r, err := h.client.Sync(h.ctx(), connect.NewRequest(&lbagentv1.SyncRequest{Fence: h.fence(), Order: 11}))
	if err != nil || len(r.Msg.GetSynced().GetDeleted()) != 1 {
		t.Fatal(r, err)
	}
	h.expect("shop", map[string]driver.Mode{})
}
