package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/boltstore"
	"github.com/cutover/cutover/orchestrator/txn"
	"github.com/cutover/cutover/orchestrator/txn/conductor"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// benchEpoch is above the epoch of any orchestrator that led the Hosts before.
const benchEpoch = 1 << 20

// leader coordinates Hosts from the benchmark's process, with the coordinator of production (conductor, registry, bbolt
// store with its fsyncs). Its methods may be called concurrently for different Apps.
type leader struct {
	testing.TB
	*conductor.Conductor
	store *boltstore.Store
	hosts []registry.Host

	mu        sync.Mutex
	proposals int
	committed map[string]*lbagentv1.Section
	pending   map[string]*pending
}

// pending is one change under way.
type pending struct {
	mu      sync.Mutex
	story   []txn.Status
	ended   chan struct{} // closed when it is committed or undone
	drained chan struct{} // closed when every Host has released what it replaced
}

// lead takes the Hosts over, as a new leader does. The orchestrator must be gone.
func (c *benchCluster) lead() *leader {
	c.Helper()
	return newLeader(c.TB, c.declared(), nil)
}

// declared are the cluster's Hosts as an orchestrator knows them.
func (c *benchCluster) declared() []registry.Host {
	c.Helper()
	var hosts []registry.Host
	for _, h := range c.info.Hosts {
		hosts = append(hosts, registry.Host{Name: h.Name, Group: h.Group, AgentURL: h.AgentURL, TLS: c.tls()})
	}
	return hosts
}

// newLeader leads the Hosts, whose cluster is "dev" and whose Group is "public". committed are the Sections that the store
// holds when it begins: the Hosts are brought there before newLeader returns.
func newLeader(tb testing.TB, hosts []registry.Host, committed []*lbagentv1.Section) *leader {
	tb.Helper()
	l := &leader{TB: tb, hosts: hosts, committed: map[string]*lbagentv1.Section{}, pending: map[string]*pending{}}
	var err error
	l.store, err = boltstore.Open(filepath.Join(tb.TempDir(), "state.db"), boltstore.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.store.Close() })
	for _, s := range committed {
		value, err := proto.Marshal(&lbagentv1.CommittedSection{Section: s, Version: &lbagentv1.Version{Txn: 1}})
		if err == nil {
			_, err = l.store.Commit(tb.Context(), l.fence(), store.Op{Kind: store.Put, Key: "section/public/" + s.App, Value: value})
		}
		if err != nil {
			tb.Fatal(err)
		}
		l.committed[s.App] = s
	}
	l.start()
	tb.Cleanup(func() { l.Stop() })
	l.await("every Host is connected and holds what is committed", func() bool {
		for _, h := range l.Hosts() {
			if !h.Connected || h.Problem != "" || len(h.Sections) < len(committed) {
				return false
			}
			for _, s := range h.Sections {
				if len(s.GetEvidence().GetUpstreams()) == 0 || s.GetVersion().GetTxn() == 0 {
					return false
				}
			}
		}
		return true
	})
	return l
}

func (l *leader) fence() store.Fence { return store.Fence{Epoch: benchEpoch} }

// start is a term's begin on the store as it is.
func (l *leader) start() {
	l.Helper()
	log := slog.New(slog.DiscardHandler)
	reg, err := registry.New(l.Context(), registry.Options{Cluster: "dev", Hosts: l.hosts, Store: l.store, Fence: l.fence(), Logger: log})
	if err != nil {
		l.Fatal(err)
	}
	l.Conductor, err = conductor.New(conductor.Options{
		Registry: reg, Store: l.store, Fence: l.fence(), Listener: l, Logger: log,
		Fatal: func(err error) { l.Errorf("the term ended: %v", err) },
	})
	if err == nil {
		err = l.Start(l.Context())
	}
	if err != nil {
		l.Fatal(err)
	}
}

// await waits for something that has no event to wait on from outside.
func (l *leader) await(what string, ok func() bool) {
	l.Helper()
	for deadline := time.Now().Add(3 * generous); !ok(); {
		if time.Now().After(deadline) {
			l.Fatalf("not within %s: %s", 3*generous, what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// spent is where the time of a change went.
type spent struct {
	whole  time.Duration
	phases map[txn.Phase]time.Duration
}

// change commits the Section and waits until what it replaced is drained.
func (l *leader) change(target *lbagentv1.Section) spent {
	l.Helper()
	out, err := l.try(target)
	if err != nil {
		l.Fatal(err)
	}
	return out
}

// try commits the Section, and requires the proof that makes a Commit worth measuring. It returns when what was replaced
// is drained; that is not in the time.
func (l *leader) try(target *lbagentv1.Section) (spent, error) {
	p := &pending{ended: make(chan struct{}), drained: make(chan struct{})}
	l.mu.Lock()
	l.proposals++
	id := fmt.Sprintf("bench-%d", l.proposals)
	l.pending[id] = p
	before := l.committed[target.App]
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.pending, id)
	}()
	ctx, cancel := context.WithTimeout(l.Context(), generous)
	defer cancel()
	start := time.Now()
	err := l.Begin(ctx, txn.Proposal{
		ID: id, App: target.App, Changes: []txn.GroupChange{{Group: "public", App: target.App, Target: proto.CloneOf(target)}},
		Deadline: start.Add(generous), Actor: "bench", Reason: "benchmark",
	})
	if err != nil {
		return spent{}, err
	}
	select {
	case <-p.ended:
	case <-ctx.Done():
		return spent{}, fmt.Errorf("%s did not end", id)
	}
	out := spent{whole: time.Since(start), phases: map[txn.Phase]time.Duration{}}
	p.mu.Lock()
	story := p.story
	p.mu.Unlock()
	for i, s := range story {
		switch s.Phase {
		case txn.Committed:
			err = l.verified(s, before, target)
		case txn.RolledBack, txn.StuckRestoring:
			err = fmt.Errorf("%s ended %v: %s", id, s.Phase, s.Reason)
		default:
			if i+1 < len(story) {
				out.phases[s.Phase] += story[i+1].At.Sub(s.At)
			}
			continue
		}
		break
	}
	if err != nil {
		return out, err
	}
	l.mu.Lock()
	l.committed[target.App] = target
	l.mu.Unlock()
	select {
	case <-p.drained:
		return out, nil
	case <-ctx.Done():
		return out, fmt.Errorf("%s is committed and did not drain", id)
	}
}

// verified requires from each Host evidence that every upstream of the target serves, and that the new ones are healthy. A
// kept one may have a check in flight just then, and so be not proved healthy.
func (l *leader) verified(s txn.Status, before, target *lbagentv1.Section) error {
	if len(s.Hosts) != len(l.hosts) {
		return fmt.Errorf("%d Hosts voted", len(s.Hosts))
	}
	kept := map[string]bool{}
	for _, u := range before.GetUpstreams() {
		kept[u.Name] = true
	}
	var errs []error
	for _, h := range s.Hosts {
		ev := txn.EvidenceOf(h.Evidence, target.App)
		serving := map[string]*lbagentv1.UpstreamStatus{}
		for _, u := range ev.GetUpstreams() {
			if u.GetRegistered() && u.GetMode() == lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING {
				serving[u.GetName()] = u
			}
		}
		for _, u := range target.Upstreams {
			if row := serving[u.Name]; h.Vote != "verified" || row == nil || !kept[u.Name] && !row.GetHealthy() {
				errs = append(errs, fmt.Errorf("%s voted %s, and %s does not serve: %v", h.Host, h.Vote, u.Name, ev))
			}
		}
	}
	return errors.Join(errs...)
}

func (l *leader) of(id string) *pending {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pending[id]
}

// TxnChanged implements txn.Listener.
func (l *leader) TxnChanged(s txn.Status) {
	p := l.of(s.ID)
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.story = append(p.story, s)
	switch s.Phase {
	case txn.Committed, txn.RolledBack, txn.StuckRestoring:
		select {
		case <-p.ended:
		default:
			close(p.ended)
		}
	default:
	}
}

// TxnDrained implements txn.Listener.
func (l *leader) TxnDrained(d txn.Drained) {
	p := l.of(d.Txn)
	if p == nil || !d.Done {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.drained:
	default:
		close(p.drained)
	}
}

// Amended implements txn.Listener.
func (l *leader) Amended(txn.Amended) {}

// HostsChanged implements txn.Listener.
func (l *leader) HostsChanged() {}

var _ txn.Listener = (*leader)(nil)
