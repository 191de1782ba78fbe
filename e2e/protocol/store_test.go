package protocol

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// commit is a Commit of the store: the fence, the preconditions, the writes. A refused fence ends the term.
func (w *world) commit(l *leader, ops ...op) error {
	s := &w.store
	if l.epoch < s.epoch {
		w.say("the store refuses a write of epoch %d: the term is over", l.epoch)
		w.leaderDied(l)
		return store.ErrFenced
	}
	plain := make([]store.Op, len(ops))
	for i, o := range ops {
		plain[i] = o.Op
	}
	err := store.Conflict(plain, func(key string) store.Revision {
		if r := s.get(key); r != nil {
			return store.Revision(r.rev)
		}
		return 0
	})
	if err != nil {
		return err
	}
	s.epoch = l.epoch
	s.rev++
	recs := slices.Clone(s.recs)
	for _, o := range ops {
		if o.Kind == store.Check {
			continue
		}
		at, found := slices.BinarySearchFunc(recs, o.Key, func(r record, k string) int { return strings.Compare(r.key, k) })
		switch {
		case o.Kind == store.Delete && found:
			recs = slices.Delete(recs, at, at+1)
		case o.Kind == store.Delete:
		case found:
			recs[at] = record{o.Key, s.rev, o.val, o.txt}
		default:
			recs = slices.Insert(recs, at, record{o.Key, s.rev, o.val, o.txt})
		}
	}
	s.recs = recs
	return nil
}

// op is one operation, with its value as it is.
type op struct {
	store.Op
	val any
	txt string
}

func put(kind store.OpKind, key string, val any, txt string) op {
	return op{Op: store.Op{Kind: kind, Key: key}, val: val, txt: txt}
}

func (l *leader) putSection(app int, next *lbagentv1.CommittedSection) op {
	o := put(store.Replace, "section/"+apps[app], next, sectionText(next))
	o.Expect = store.Revision(l.secs[app].rev)
	return o
}

// loadSection reads the committed Section.
func (l *leader) loadSection(w *world, app int) {
	r := w.store.get("section/" + apps[app])
	l.secs[app] = committed{r.val.(*lbagentv1.CommittedSection), r.rev}
}

func sectionText(s *lbagentv1.CommittedSection) string {
	return fmt.Sprint(s.GetVersion().GetTxn(), s.GetVersion().GetAmendments(), upstreamNames(s.GetSection()))
}

func upstreamNames(s *lbagentv1.Section) []string {
	var out []string
	for _, u := range s.GetUpstreams() {
		out = append(out, u.GetName())
	}
	return out
}

// txnRecord is txn/<id>.
type txnRecord struct {
	order    uint64
	units    []unit
	changes  []change
	hosts    []string // of the pinned Views
	deadline time.Time
	aborted  *txn.Found
}

func (r txnRecord) text() string {
	out := fmt.Sprint(r.order, r.hosts)
	for _, u := range r.units {
		out += u.id()
	}
	for _, c := range r.changes {
		out += fmt.Sprint(upstreamNames(c.target))
	}
	if r.aborted != nil {
		out += fmt.Sprint(r.aborted.Cause, r.aborted.Activate)
	}
	return out
}

// decision is decision/<id>: the Commit record.
type decision struct {
	at       time.Time
	retired  [2][]string // by App
	unproven []string
	order    uint64
}

func (d decision) text() string { return fmt.Sprint(d.retired, d.unproven) }
