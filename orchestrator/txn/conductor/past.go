package conductor

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// pastTxns are the newest ended transactions, so that Outcome knows them. Beyond the bound stay those that are not drained,
// whose upstreams are still watched, the newest Commit of each App, from which the App can be rebuilt, and those whose end is not
// recorded yet.
type pastTxns struct {
	keep   int
	byID   map[string]endedRecord
	order  []string          // oldest first
	newest map[string]string // the newest Commit by App
	pinned map[string]int    // ends that are not recorded yet: the store may still call these open
}

func newPastTxns(keep int) pastTxns {
	return pastTxns{keep: keep, byID: map[string]endedRecord{}, newest: map[string]string{}, pinned: map[string]int{}}
}

func (p *pastTxns) has(id string) bool { _, ok := p.byID[id]; return ok }

func (p *pastTxns) get(id string) (endedRecord, bool) { r, ok := p.byID[id]; return r, ok }

func (p *pastTxns) put(id string, r endedRecord) {
	if !p.has(id) {
		p.order = append(p.order, id)
	}
	p.byID[id] = r
	if newest, ok := p.newest[r.App]; r.Status.Phase == txn.Committed && (!ok || r.Status.Order >= p.byID[newest].Status.Order) {
		p.newest[r.App] = id
	}
}

// overflow removes and returns the oldest one beyond the bound that may go, and the transaction that carried it with others
// if it was the last of those. open are not past yet, whatever else the store says: killed between the writes of an end, it has both.
func (p *pastTxns) overflow(open func(id string) bool) (id, joint string, ok bool) {
	if len(p.order)-len(p.newest) <= p.keep {
		return "", "", false
	}
	for i, id := range p.order {
		r := p.byID[id]
		if !r.Drained || p.newest[r.App] == id || p.pinned[id] > 0 || open(id) {
			continue
		}
		p.order = append(p.order[:i:i], p.order[i+1:]...)
		delete(p.byID, id)
		for _, other := range p.byID {
			if other.Joint == r.Joint {
				return id, "", true
			}
		}
		return id, r.Joint, true
	}
	return "", "", false
}

// endedPart is how one proposal ended.
type endedPart struct {
	id     string
	record endedRecord
}

// unended is the end of a transaction that is not recorded yet.
type unended struct {
	id    string
	parts []string
	// writes are its Commits, in order: how each proposal ended, and after all of them that it is open no longer.
	writes [][]store.Op
	// dropped are those of the past that the last one forgets.
	dropped []string
	flying  bool
}

// endTxn keeps how the proposals of a transaction ended, drops its open records, and the oldest of the past.
func (c *Conductor) endTxn(id string, recorded bool, parts ...endedPart) {
	u := c.unended[id]
	if u == nil {
		u = &unended{id: id}
		c.unended[id] = u
	}
	var ops []store.Op
	size := 0
	for _, p := range parts {
		c.past.put(p.id, p.record)
		c.past.pinned[p.id]++
		u.parts = append(u.parts, p.id)
		op := store.Op{Kind: store.Put, Key: prefixEnded + p.id, Value: encode(p.record)}
		if n := len(op.Key) + len(op.Value); size+n > maxEnded && len(ops) > 0 {
			u.writes, ops, size = append(u.writes, ops), nil, 0
		}
		ops, size = append(ops, op), size+len(op.Key)+len(op.Value)
	}
	if recorded {
		ops = append(ops, store.Op{Kind: store.Delete, Key: prefixTxn + id}, store.Op{Kind: store.Delete, Key: prefixMark + id})
	}
	for {
		drop, joint, overflow := c.past.overflow(func(id string) bool { return c.parts[id] != nil })
		if !overflow {
			break
		}
		for _, old := range []string{drop, joint} {
			switch {
			case old == "":
			case len(ops)+2 <= store.MaxOps:
				u.dropped = append(u.dropped, old)
				ops = append(ops, store.Op{Kind: store.Delete, Key: prefixEnded + old}, store.Op{Kind: store.Delete, Key: prefixDecision + old})
			default:
				c.dropPast(old)
			}
		}
	}
	if len(ops) > 0 {
		u.writes = append(u.writes, ops)
	}
	c.recordEnd(u)
}

// maxEnded is how many bytes of one Commit hold how proposals ended.
const maxEnded = store.MaxCommitBytes / 2

// recordEnd writes the end of a transaction, until all of it is written. Before that nothing of it is forgotten: a record that it is
// open, without its decision, would be an abort for the next leader (ALL-OR-OLD).
func (c *Conductor) recordEnd(u *unended) {
	if u.flying {
		return
	}
	if len(u.writes) == 0 {
		delete(c.unended, u.id)
		for _, p := range u.parts {
			if c.past.pinned[p]--; c.past.pinned[p] == 0 {
				delete(c.past.pinned, p)
			}
		}
		for _, old := range u.dropped {
			c.dropEvidence(old)
		}
		return
	}
	keys := []txn.SectionKey{txnKey(u.id)}
	for _, p := range u.parts {
		if p != u.id {
			keys = append(keys, txnKey(p))
		}
	}
	u.flying = true
	c.submit(write{
		what: "ended",
		keys: keys,
		ops:  func() ([]store.Op, error) { return u.writes[0], nil },
		done: func(_ store.Revision, err error) {
			u.flying = false
			if err != nil {
				c.log.Warn("the end of a transaction was not recorded: it is tried again", "txn", u.id, "error", err)
				return // by the sweep
			}
			u.writes = u.writes[1:]
			c.recordEnd(u)
		},
	})
}

// recordEnds tries again what could not be recorded.
func (c *Conductor) recordEnds() {
	for _, id := range sortedKeys(c.unended) {
		c.recordEnd(c.unended[id])
	}
}

// dropPast forgets a transaction of which nobody can ask any longer.
func (c *Conductor) dropPast(id string) {
	c.submit(write{
		what: "forgotten",
		keys: []txn.SectionKey{txnKey(id)},
		ops: func() ([]store.Op, error) {
			return []store.Op{{Kind: store.Delete, Key: prefixEnded + id}, {Kind: store.Delete, Key: prefixDecision + id}}, nil
		},
		done: func(_ store.Revision, err error) {
			if err != nil {
				c.log.Warn("a past transaction was not forgotten", "txn", id, "error", err)
				return
			}
			c.dropEvidence(id)
		},
	})
}

// dropEvidence deletes the chunks of a decision that nobody can ask for any longer.
func (c *Conductor) dropEvidence(id string) {
	c.work.Go(func() {
		records, err := c.opts.Store.List(c.ctx, prefixEvidence+id+"/", "", store.MaxOps)
		if err != nil || len(records) == 0 {
			return
		}
		var ops []store.Op
		for _, r := range records {
			ops = append(ops, store.Op{Kind: store.Delete, Key: r.Key})
		}
		if _, err := c.commit(ops); err != nil && !errors.Is(err, errAbandoned) {
			c.log.Warn("old evidence was not deleted", "txn", id, "error", err)
		}
	})
}

// Outcome returns how a transaction stands: open, ended in this term, or as the store has it. False: it never began, or
// ended so long ago that nothing is kept. For a committed one the Listener is told of its draining again, so that one
// who was restarted goes on from there.
func (c *Conductor) Outcome(ctx context.Context, id string) (txn.Status, bool, error) {
	var status txn.Status
	var found bool
	err := c.ask(ctx, func() {
		if o := c.parts[id]; o != nil {
			u := o.unitOf(id)
			at := slices.IndexFunc(u.parts, func(p *part) bool { return p.id == id })
			status, found = c.statusOf(o, u, u.parts[at]), true
			if d := c.drains[id]; d != nil {
				c.tellDrain(d, c.waitingFor(d))
			}
			return
		}
		past, ok := c.past.get(id)
		if !ok {
			return
		}
		status, found = past.Status.status(), true
		if d := c.drains[id]; d != nil {
			c.tellDrain(d, c.waitingFor(d))
		} else if status.Phase == txn.Committed {
			d := pastDrain(id, past)
			c.tellDrain(d, c.waitingFor(d))
		}
	})
	if err != nil || found {
		return status, found, err
	}
	rec, err := c.opts.Store.Get(ctx, prefixDecision+id)
	if errors.Is(err, store.ErrNotFound) {
		return txn.Status{}, false, nil
	}
	if err != nil {
		return txn.Status{}, false, fmt.Errorf("decision of %s: %w", id, err)
	}
	var d decisionRecord
	if err := decode(rec.Key, rec.Value, &d); err != nil {
		return txn.Status{}, false, err
	}
	status = d.status()
	if d.Joint != "" {
		// The votes are in the decision that it was part of. It is kept as long as any of its parts, but may go at the same time.
		if all, err := c.opts.Store.Get(ctx, prefixDecision+d.Joint); err == nil {
			var joint decisionRecord
			if err := decode(all.Key, all.Value, &joint); err != nil {
				return txn.Status{}, false, err
			}
			status.Hosts = slices.DeleteFunc(joint.status().Hosts, func(h txn.HostVote) bool {
				return !slices.ContainsFunc(d.Views, func(v viewRecord) bool { return v.Group == h.Group })
			})
		}
	}
	return status, true, nil
}

// status is what a decision says by itself.
func (d decisionRecord) status() txn.Status {
	s := txn.Status{ID: d.ID, Deploy: d.Deploy, Order: d.Order, Phase: txn.Committed, CommittedAt: d.CommittedAt, At: d.CommittedAt}
	for _, v := range d.Votes {
		vote := txn.HostVote{Host: v.Host, Group: v.Group, Proxy: v.Proxy, Vote: v.Vote, Evidence: decodeEvidence(v.Evidence), SentActivate: true}
		if v.Vote == voteUnproven {
			vote.Vote, vote.Unproven = txn.VoteNone.String(), true
		}
		s.Hosts = append(s.Hosts, vote)
	}
	return s
}
