package hosttest

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cutover/cutover/internal/servertest"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
	"github.com/cutover/cutover/proto/gen/cutover/lbagent/v1/lbagentv1connect"
)

// Host is one scripted Host. Safe for concurrent use.
type Host struct {
	Name, Group, URL string

	addr string

	mu       sync.Mutex
	server   *http.Server
	serving  sync.WaitGroup
	thawed   chan struct{} // closed unless frozen
	changed  chan struct{} // closed and replaced at each change
	epoch    uint64
	pid      int64
	reload   bool
	problems []string
	sections map[string]*section
	open     map[string]*openTxn
	outcomes map[string]bool // true: committed
	bend     map[string]func(n int) *lbagentv1.Refusal
	guilty   map[string]guilt // by App
	slow     map[string]bool  // calls that are not answered before their sender gives up
	calls    map[string]int
	log      []string
	lie      bool
	order    lbagentv1.TrafficOrder

	tombstones uint32
	clients    uint32
	quiet      time.Time // since when there are no clients
}

type section struct {
	committed *lbagentv1.CommittedSection
	draining  []*lbagentv1.Upstream
	drained   map[string]bool
	passed    uint64
}

// guilt is a call that is refused whenever its transaction changes the App.
type guilt struct {
	call  string
	named bool
}

type openTxn struct {
	id       string
	order    uint64
	phase    lbagentv1.TxnPhase
	changes  []*lbagentv1.Change
	fallback bool
}

// Start starts a Host on a free loopback port; it ends with the test.
func Start(t testing.TB, name, group string) *Host {
	t.Helper()
	h := &Host{
		Name: name, Group: group, pid: 1000, thawed: make(chan struct{}), changed: make(chan struct{}),
		sections: map[string]*section{}, open: map[string]*openTxn{}, outcomes: map[string]bool{},
		bend: map[string]func(int) *lbagentv1.Refusal{}, guilty: map[string]guilt{}, slow: map[string]bool{}, calls: map[string]int{},
	}
	close(h.thawed)
	l, err := net.Listen("tcp", servertest.Loopback()+":0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = l.Addr().String()
	h.URL = "http://" + h.addr
	h.serve(l)
	t.Cleanup(h.Kill)
	return h
}

func (h *Host) serve(l net.Listener) {
	mux := http.NewServeMux()
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	mux.Handle(lbagentv1connect.NewHostServiceHandler(&handler{h, srv}))
	h.mu.Lock()
	h.server = srv
	h.mu.Unlock()
	h.serving.Go(func() { _ = srv.Serve(l) })
}

// Kill ends the agent as kill -9 does: connections are cut, the journal stays.
func (h *Host) Kill() {
	h.mu.Lock()
	srv := h.server
	h.server = nil
	h.mu.Unlock()
	if srv != nil {
		_ = srv.Close()
		h.serving.Wait()
	}
	h.Thaw()
}

// Restart starts a killed agent again. Transactions that were not Verified are restored by itself, as an agent may.
func (h *Host) Restart(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", h.addr) // the address is this Host's alone
	if err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	for id, o := range h.open {
		if o.phase != lbagentv1.TxnPhase_TXN_PHASE_VERIFIED {
			h.close(id, o, false)
		}
	}
	h.mu.Unlock()
	h.serve(l)
}

// Freeze makes the agent silent as SIGSTOP does, until Thaw.
func (h *Host) Freeze() {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.thawed:
		h.thawed = make(chan struct{})
	default:
	}
}

// Thaw ends a Freeze.
func (h *Host) Thaw() {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.thawed:
	default:
		close(h.thawed)
	}
}

// Bend sets what a call ("prepare", "activate", "verify", "commit", "abort", "amend", "sync") answers instead of the
// model; n counts the calls of that kind from 1. nil, or a nil Refusal, means the model.
func (h *Host) Bend(call string, answer func(n int) *lbagentv1.Refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bend[call] = answer
}

// Refuse bends a call to always answer this reason.
func (h *Host) Refuse(call string, reason lbagentv1.RefusalReason, message string) {
	h.Bend(call, func(int) *lbagentv1.Refusal { return &lbagentv1.Refusal{Reason: reason, Message: message} })
}

// Blame refuses the call ("prepare" or "activate") of every transaction that changes the App, as a proxy's checker does that
// finds a fault in one of several changes; named: the refusal says which App.
func (h *Host) Blame(app, call string, named bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guilty[app] = guilt{call: call, named: named}
}

// Slow makes the Host take a call from now on and not answer it until its sender gives it up.
func (h *Host) Slow(call string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slow[call] = true
}

// blame is the refusal of a call because of one of the changes, or nil. h.mu must be held.
func (h *Host) blame(call string, changes []*lbagentv1.Change) *lbagentv1.Refusal {
	for _, ch := range changes {
		if g, ok := h.guilty[ch.GetApp()]; ok && g.call == call {
			no := refuse(lbagentv1.RefusalReason_REFUSAL_REASON_INVALID_CONFIG, "the checker does not like it")
			if g.named {
				no.App = ch.GetApp()
			}
			return no
		}
	}
	return nil
}

// Lie makes Verified answers claim success with evidence that shows an unhealthy upstream.
func (h *Host) Lie() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lie = true
}

// ReloadPerChange sets the capability.
func (h *Host) ReloadPerChange() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reload = true
}

// Clients sets how many client connections the Host counts; 0: there has been none for a long time.
func (h *Host) Clients(n uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clients, h.quiet = n, time.Now().Add(-time.Hour)
	h.touch()
}

// Tombstones sets how many removed upstreams the Host's proxy remembers. Collect takes them away.
func (h *Host) Tombstones(n uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tombstones = n
	h.touch()
}

// Order is what the Host was last told about its traffic.
func (h *Host) Order() lbagentv1.TrafficOrder {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.order
}

func (h *Host) traffic() *lbagentv1.Traffic {
	t := &lbagentv1.Traffic{Order: h.order, Ready: h.order == lbagentv1.TrafficOrder_TRAFFIC_ORDER_IN}
	if h.order == lbagentv1.TrafficOrder_TRAFFIC_ORDER_OUT {
		t.Counted, t.Sessions = true, h.clients
		if h.clients == 0 && !h.quiet.IsZero() {
			t.QuietSince = timestamppb.New(h.quiet)
		}
	}
	return t
}

// Lapse reports the transaction as Lapsed.
func (h *Host) Lapse(id string) {
	h.update(id, func(o *openTxn) { o.phase = lbagentv1.TxnPhase_TXN_PHASE_LAPSED })
}

// FallBack reports that the old upstreams serve again.
func (h *Host) FallBack(id string) { h.update(id, func(o *openTxn) { o.fallback = true }) }

func (h *Host) update(id string, f func(*openTxn)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o := h.open[id]; o != nil {
		f(o)
		h.touch()
	}
}

// ReplaceProxy gives the proxy another process.
func (h *Host) ReplaceProxy() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pid++
	h.touch()
}

// Drain reports every draining upstream of the App as drained and gone from the proxy.
func (h *Host) Drain(app string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sections[app]; s != nil {
		for _, u := range s.draining {
			s.drained[u.GetName()] = true
		}
		h.touch()
	}
}

// Tamper changes what the Host holds as committed, behind the back of the protocol.
func (h *Host) Tamper(app string, f func(*lbagentv1.CommittedSection)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.section(app)
	f(s.committed)
	h.touch()
}

// Wipe forgets everything, as a Host that was installed anew.
func (h *Host) Wipe() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sections, h.open, h.outcomes = map[string]*section{}, map[string]*openTxn{}, map[string]bool{}
	h.touch()
}

// Committed returns the names of the committed upstreams of the App, sorted, and the Version.
func (h *Host) Committed(app string) ([]string, *lbagentv1.Version) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sections[app]
	if s == nil {
		return nil, nil
	}
	var names []string
	for _, u := range s.committed.GetSection().GetUpstreams() {
		names = append(names, u.GetName())
	}
	slices.Sort(names)
	return names, proto.CloneOf(s.committed.GetVersion())
}

// Open returns the ids of the open transactions, sorted.
func (h *Host) Open() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ids []string
	for id := range h.open {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Calls returns how often a call came in.
func (h *Host) Calls(call string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls[call]
}

// Log returns all calls so far in order, as "call id".
func (h *Host) Log() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.log)
}

// touch wakes the streams. h.mu must be held.
func (h *Host) touch() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// section returns the App's section, made if there is none. h.mu must be held.
func (h *Host) section(app string) *section {
	s := h.sections[app]
	if s == nil {
		s = &section{committed: &lbagentv1.CommittedSection{Section: &lbagentv1.Section{App: app}, Version: &lbagentv1.Version{}, Removed: true},
			drained: map[string]bool{}}
		h.sections[app] = s
	}
	return s
}

// openOn returns the transaction that is open on the App. h.mu must be held.
func (h *Host) openOn(app string) (*openTxn, *lbagentv1.Change) {
	for _, o := range h.open {
		for _, ch := range o.changes {
			if ch.GetApp() == app {
				return o, ch
			}
		}
	}
	return nil, nil
}

// close ends an open transaction. h.mu must be held.
func (h *Host) close(id string, o *openTxn, commit bool) {
	delete(h.open, id)
	h.outcomes[id] = commit
	for _, ch := range o.changes {
		s := h.section(ch.GetApp())
		s.passed = max(s.passed, o.order)
		if commit {
			h.replace(s, ch.GetTarget())
			s.committed.Version = &lbagentv1.Version{Txn: o.order}
			s.committed.Removed = ch.GetTarget() == nil
		}
	}
	h.touch()
}

// replaceDead adds what an Abort carries to the Sections that it goes back to. h.mu must be held.
func (h *Host) replaceDead(o *openTxn, replacements []*lbagentv1.Section) {
	for _, r := range replacements {
		if !slices.Contains(o.apps(), r.GetApp()) {
			continue
		}
		c := proto.CloneOf(h.section(r.GetApp()).committed)
		for _, u := range r.GetUpstreams() {
			if !slices.ContainsFunc(c.GetSection().GetUpstreams(), func(have *lbagentv1.Upstream) bool { return have.GetName() == u.GetName() }) {
				c.Section.Upstreams = append(c.Section.Upstreams, u)
			}
		}
		c.Version.Amendments++
		h.section(r.GetApp()).committed = c
	}
}

// nothingToRestore is an App whose target serves and whose old Section lost all that it had, or "": a Host stays at the
// target then (NEVER-ZERO). h.mu must be held.
func (h *Host) nothingToRestore(o *openTxn) string {
	for _, ch := range o.changes {
		old := h.section(ch.GetApp()).committed
		if o.phase >= lbagentv1.TxnPhase_TXN_PHASE_ACTIVATING && len(ch.GetTarget().GetUpstreams()) > 0 && !old.GetRemoved() && len(old.GetSection().GetUpstreams()) == 0 {
			return ch.GetApp()
		}
	}
	return ""
}

// replace installs the target as committed; what leaves drains.
func (h *Host) replace(s *section, target *lbagentv1.Section) {
	app := s.committed.GetSection().GetApp()
	stays := map[string]bool{}
	for _, u := range target.GetUpstreams() {
		stays[u.GetName()] = true
	}
	s.draining = slices.DeleteFunc(s.draining, func(u *lbagentv1.Upstream) bool { return stays[u.GetName()] })
	for _, u := range s.committed.GetSection().GetUpstreams() {
		if !stays[u.GetName()] {
			s.draining = append(s.draining, u)
		}
	}
	next := &lbagentv1.Section{App: app}
	if target != nil {
		next = proto.CloneOf(target)
	}
	s.committed = &lbagentv1.CommittedSection{Section: next, Version: s.committed.GetVersion(), Removed: s.committed.GetRemoved()}
}

// evidence is the reading of one App. h.mu must be held.
func (h *Host) evidence(app string) *lbagentv1.Evidence {
	s := h.section(app)
	e := &lbagentv1.Evidence{
		App: app, Process: &lbagentv1.Process{MasterPid: 1, WorkerPid: h.pid}, ReadAt: timestamppb.Now(),
		Version: proto.CloneOf(s.committed.GetVersion()),
	}
	row := func(u *lbagentv1.Upstream, mode lbagentv1.UpstreamMode) {
		drained := mode == lbagentv1.UpstreamMode_UPSTREAM_MODE_DRAINING && s.drained[u.GetName()]
		e.Upstreams = append(e.Upstreams, &lbagentv1.UpstreamStatus{
			Name: u.GetName(), Address: u.GetAddress(), Weight: u.GetWeight(), Mode: mode, Registered: !drained, Healthy: !h.lie, Drained: drained,
		})
	}
	serving := s.committed.GetSection()
	o, ch := h.openOn(app)
	active := o != nil && o.phase >= lbagentv1.TxnPhase_TXN_PHASE_ACTIVATING
	if o != nil {
		e.Order = o.order
	}
	if active {
		stays := map[string]bool{}
		for _, u := range ch.GetTarget().GetUpstreams() {
			stays[u.GetName()] = true
			row(u, lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING)
		}
		for _, u := range serving.GetUpstreams() {
			if !stays[u.GetName()] {
				row(u, lbagentv1.UpstreamMode_UPSTREAM_MODE_DRAINING)
			}
		}
	} else {
		for _, u := range serving.GetUpstreams() {
			row(u, lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING)
		}
	}
	for _, u := range s.draining {
		row(u, lbagentv1.UpstreamMode_UPSTREAM_MODE_DRAINING)
	}
	e.Digest = fmt.Sprint(len(e.Upstreams))
	return e
}

// report is a complete message of the Watch stream. h.mu must be held.
func (h *Host) report() *lbagentv1.WatchResponse {
	msg := &lbagentv1.WatchResponse{
		Host: &lbagentv1.HostState{Name: h.Name, Group: h.Group, Proxy: "haproxy", MaxEpoch: h.epoch, ReloadPerChange: h.reload,
			Process: &lbagentv1.Process{MasterPid: 1, WorkerPid: h.pid}, Problems: h.problems, Traffic: h.traffic(), Tombstones: h.tombstones},
		Complete: true, SentAt: timestamppb.Now(),
	}
	for app, s := range h.sections {
		r := &lbagentv1.SectionReport{App: app, Version: proto.CloneOf(s.committed.GetVersion()), Removed: s.committed.GetRemoved(), Evidence: h.evidence(app)}
		if o, _ := h.openOn(app); o != nil {
			r.Open = &lbagentv1.OpenTxn{TxnId: o.id, Order: o.order, Phase: o.phase, Fallback: o.fallback, Apps: o.apps()}
		}
		msg.Sections = append(msg.Sections, r)
	}
	return msg
}

func (o *openTxn) apps() []string {
	var out []string
	for _, ch := range o.changes {
		out = append(out, ch.GetApp())
	}
	return out
}
