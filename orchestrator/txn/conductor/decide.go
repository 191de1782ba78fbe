package conductor

import (
	"errors"
	"fmt"
	"slices"
	"time"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// decide writes the Commit record and the Sections that it commits, in one write-once Commit that also checks the views
// and the bases. Large evidence goes first, in chunks of which the record holds the digest: a record that exists always
// has its evidence.
func (c *Conductor) decide(o *transaction) {
	votes, chunks := c.votes(o)
	c.writeEvidence(o, votes, chunks)
}

// writeEvidence writes as many chunks as one Commit may hold, and so on, and the decision after the last one.
func (c *Conductor) writeEvidence(o *transaction, votes []voteRecord, chunks []store.Op) {
	if len(chunks) == 0 {
		c.writeDecision(o, votes)
		return
	}
	n, size := 0, 0
	for n < len(chunks) && n < store.MaxOps && (n == 0 || size+len(chunks[n].Value) <= evidenceChunk) {
		size += len(chunks[n].Value)
		n++
	}
	c.submit(write{
		what: "evidence",
		ops:  func() ([]store.Op, error) { return chunks[:n], nil },
		done: func(_ store.Revision, err error) {
			if err != nil {
				c.step(o, txn.WriteRefused{Cause: txn.CauseStore, Reason: fmt.Sprintf("the evidence could not be recorded: %v", err)})
				return
			}
			c.writeEvidence(o, votes, chunks[n:])
		},
	})
}

// doubtful: the decision is not tried, for what was heard since the last vote.
type doubtful struct{ txn.Doubt }

func (d doubtful) Error() string { return d.Reason }

// votes lists the Verified of every Host of the pinned views, with the evidence or its chunks.
func (c *Conductor) votes(o *transaction) (votes []voteRecord, chunks []store.Op) {
	total, size := 0, 0
	for _, u := range o.units {
		size += u.size // in the same Commit, and the records of it in base64
	}
	var encoded [][]byte
	for _, h := range o.state.Hosts {
		e := encodeEvidence(h.Evidence)
		encoded = append(encoded, e)
		total += len(e)
	}
	for i, h := range o.state.Hosts {
		v := voteRecord{Host: h.Name, Group: h.Group, Proxy: h.Proxy, Vote: h.Vote.String(), PID: h.PID, Digest: digest(encoded[i])}
		if h.Unproven {
			v.Vote = voteUnproven
		}
		if total <= maxInlineEvidence && total+size <= evidenceChunk {
			v.Evidence = encoded[i]
		} else {
			for part := range slices.Chunk(encoded[i], evidenceChunk) {
				chunks = append(chunks, store.Op{Kind: store.Put, Value: part,
					Key: fmt.Sprintf("%s%s/%s/%d", prefixEvidence, o.id(), h.Name, v.Chunks)})
				v.Chunks++
			}
		}
		votes = append(votes, v)
	}
	return votes, chunks
}

func (c *Conductor) writeDecision(o *transaction, votes []voteRecord) {
	keys := []txn.SectionKey{txnKey(o.id())}
	for _, ch := range o.changes {
		keys = append(keys, ch.key)
	}
	next := map[txn.SectionKey]*lbagentv1.CommittedSection{}
	var at time.Time
	var retired []retiredRecord
	c.submit(write{
		what: "decision",
		keys: keys,
		ops: func() ([]store.Op, error) {
			if o.state.Doubt.Cause != txn.CauseNone {
				return nil, doubtful{o.state.Doubt} // the last moment for it: what a Host has taken back is no vote (ALL-OR-OLD)
			}
			plan, err := o.commit(votes).Plan(func(key txn.SectionKey) *lbagentv1.CommittedSection { return c.sections[key].section() })
			if err != nil {
				return nil, err
			}
			at = time.Now().UTC()
			retired = nil
			rec := decisionRecord{
				Format: recordFormat, ID: o.id(), Deploy: o.record.Deploy, App: o.record.App, Order: o.state.Order,
				Epoch: c.opts.Fence.Epoch, CommittedAt: at, Actor: o.record.Actor, Reason: o.record.Reason,
				Views: o.record.Views, Votes: votes, Excluded: c.excludedFrom(o.views), Record: o.record.Record,
			}
			for _, p := range o.record.Parts {
				rec.Parts = append(rec.Parts, p.ID)
			}
			ops := []store.Op{{Kind: store.Create, Key: prefixDecision + o.id()}}
			for _, v := range o.views {
				ops = append(ops, store.Op{Kind: store.Check, Key: registry.ViewKey(v.Group), Expect: v.Revision})
			}
			for _, p := range plan {
				next[p.Key] = p.Next
				r := retiredRecord{Group: p.Key.Group, App: p.Key.App, Retired: p.Retired}
				retired = append(retired, r)
				rec.Changes = append(rec.Changes, r)
				ops = append(ops, c.sections[p.Key].put(p.Key, p.Next))
			}
			ops[0].Value = encode(rec)
			if !o.recorded {
				// No Host takes part, so nothing was recorded before. Now a new leader must find that the end is not recorded yet.
				ops = append(ops, store.Op{Kind: store.Put, Key: prefixTxn + o.id(), Value: encode(o.record)})
			}
			return append(ops, o.partDecisions(rec)...), nil
		},
		done: func(rev store.Revision, err error) {
			var conflict *store.ConflictError
			var doubt doubtful
			switch {
			case errors.As(err, &doubt):
				c.step(o, txn.WriteRefused{Cause: doubt.Cause, Reason: doubt.Reason})
			case errors.Is(err, txn.ErrBaseMoved), errors.As(err, &conflict):
				c.step(o, txn.WriteRefused{Cause: txn.CauseBaseMismatch, Reason: fmt.Sprintf("the committed state moved on: %v", err)})
			case err != nil:
				c.step(o, txn.WriteRefused{Cause: txn.CauseStore, Reason: fmt.Sprintf("the commit record was refused: %v", err)})
			default:
				o.recorded = true
				for key, s := range next {
					c.install(key, s, rev, o.state.Order)
				}
				c.trackCommit(o, retired)
				c.step(o, txn.DecisionWritten{At: at})
				for _, p := range o.parts() {
					c.watchDrain(c.drains[p.id])
				}
			}
		},
	})
}

// commit is the transaction as its Commit record answers for it.
func (o *transaction) commit(votes []voteRecord) txn.Commit {
	out := txn.Commit{ID: o.id(), Order: o.state.Order, Changes: o.planned(), Dead: o.dead, Hosts: map[string][]string{}, Voted: map[string]bool{}}
	for _, p := range o.parts() {
		out.Proposals = append(out.Proposals, txn.Named{ID: p.id, Keys: p.keys})
	}
	for group, v := range o.views {
		out.Hosts[group] = v.Hosts
	}
	for _, v := range votes {
		out.Voted[v.Host] = true
	}
	return out
}

// partDecisions are the decisions of the proposals that a transaction of several carries. They exist if and only if its own
// does, since one Commit writes all (ALL-OR-OLD).
func (o *transaction) partDecisions(rec decisionRecord) []store.Op {
	if !o.joint() {
		return nil
	}
	var ops []store.Op
	for _, p := range o.parts() {
		one := rec
		one.ID, one.Deploy, one.App, one.Actor, one.Reason, one.Record = p.id, p.deploy, p.app, p.actor, p.reason, p.record
		one.Joint, one.Parts, one.Votes = o.id(), nil, nil
		one.Changes = partsOf(p, rec.Changes, retiredRecord.key)
		one.Views = slices.DeleteFunc(slices.Clone(rec.Views), func(v viewRecord) bool { return !slices.Contains(p.groups(), v.Group) })
		ops = append(ops, store.Op{Kind: store.Create, Key: prefixDecision + p.id, Value: encode(one)})
	}
	return ops
}

func (r retiredRecord) key() txn.SectionKey { return txn.SectionKey{Group: r.Group, App: r.App} }

// excludedFrom lists the Hosts that are out of the Views, with the proofs.
func (c *Conductor) excludedFrom(views map[string]registry.View) []excludedRecord {
	var out []excludedRecord
	for _, m := range c.reg.Members() {
		if _, in := views[m.Group]; in && m.Standing == registry.Excluded && m.Proof != nil {
			out = append(out, excludedRecord{Host: m.Host, Group: m.Group, Proof: *m.Proof, Actor: m.Last.Actor, Reason: m.Last.Reason, At: m.Last.At})
		}
	}
	return out
}

// section is the committed one; nil if there never was one.
func (s *section) section() *lbagentv1.CommittedSection {
	if s == nil {
		return nil
	}
	return s.committed
}

func (s *section) version() *lbagentv1.Version {
	if s == nil {
		return nil
	}
	return s.committed.GetVersion()
}

func (s *section) upstreams() []*lbagentv1.Upstream {
	if s == nil {
		return nil
	}
	return s.committed.GetSection().GetUpstreams()
}

// put is the operation that replaces the Section; a conflict if anybody else wrote it.
func (s *section) put(key txn.SectionKey, next *lbagentv1.CommittedSection) store.Op {
	op := store.Op{Kind: store.Create, Key: sectionKey(key), Value: encodeProto(next)}
	if s != nil {
		op.Kind, op.Expect = store.Replace, s.revision
	}
	return op
}

// install makes a written Section the committed one.
func (c *Conductor) install(key txn.SectionKey, s *lbagentv1.CommittedSection, rev store.Revision, order uint64) {
	c.sections[key] = &section{committed: s, revision: rev}
	c.passed(key, order)
	for _, h := range c.hosts {
		if h.group == key.Group {
			h.suspects[key.App] = true
		}
	}
}
