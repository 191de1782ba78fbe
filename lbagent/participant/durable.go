package participant

import (
	"maps"
	"slices"
	"time"
)

// Durable is what a Host remembers over a restart. It changes only by Apply; values that it points to are never changed
// in place, so an older Durable stays what it was.
type Durable struct {
	Epoch uint64 `json:"epoch"`
	View  uint64 `json:"view"`
	// Floor: order numbers at or below it have passed for every Section that has no transaction open.
	Floor uint64 `json:"floor,omitempty"`
	// Drift is the Group's policy; "" is PolicyRepair.
	Drift    Policy                   `json:"drift,omitempty"`
	Sections map[string]*SectionState `json:"sections,omitempty"`
	// Txns are the open transactions from STAGED on, by id.
	Txns map[string]*Txn `json:"txns,omitempty"`
	// Outcomes are the last closed transactions, oldest first, so that a repeated message gets its answer.
	Outcomes []Outcome `json:"outcomes,omitempty"`
	// Traffic is whether this Host may get client traffic.
	Traffic Traffic `json:"traffic,omitzero"`
}

// SectionState is one App as the journal knows it.
type SectionState struct {
	App       string  `json:"app"`
	Committed Section `json:"committed"`
	Version   Version `json:"version"`
	// Removed: transaction Version.Txn removed the Section; the order number stays behind.
	Removed bool `json:"removed,omitempty"`
	// Passed is the highest order number that this Section has acted upon.
	Passed   uint64     `json:"passed,omitempty"`
	Draining []Draining `json:"draining,omitempty"`
	// Drained are upstreams that left since the last Commit, kept so that the answer can be given again.
	Drained []Drained `json:"drained,omitempty"`
	// Unsettled: a change was journaled whose outcome (read back from the proxy) is not journaled yet.
	Unsettled bool `json:"unsettled,omitempty"`
	// Stray: the proxy may hold something for this App that no journaled message put there. It is left alone
	// (FAIL-STATIC) until a Sync says what should be.
	Stray bool `json:"stray,omitempty"`
	// Died: it has no upstream because the last one was removed as dead, not because anybody asked for none.
	Died bool `json:"died,omitempty"`
	// Published is the driver's digest of the files when the Section was last settled.
	Published string `json:"published,omitempty"`
}

// Draining is an upstream that a Commit, a retirement or a Sync took out of the committed Section.
type Draining struct {
	Upstream Upstream `json:"upstream"`
	// Running: the drain clock runs and ends at Until. Otherwise Left is what remains of it.
	Running bool          `json:"running,omitempty"`
	Until   time.Time     `json:"until,omitzero"`
	Left    time.Duration `json:"left,omitempty"`
	// Held: it still serves, because no upstream of the committed Section is green here yet (NEVER-ZERO).
	Held bool `json:"held,omitempty"`
}

// Drained is an upstream that has left.
type Drained struct {
	Upstream Upstream `json:"upstream"`
	Forced   bool     `json:"forced,omitempty"`
}

// Txn is an open transaction, or an Amendment that inserts (then Amend is set and it decides for itself).
type Txn struct {
	ID       string    `json:"id"`
	Order    uint64    `json:"order"`
	Phase    Phase     `json:"phase"`
	Origin   Origin    `json:"origin"`
	Deadline time.Time `json:"deadline"`
	// Budget is the whole time that the transaction was given; it bounds the deadline after a restart on another clock.
	Budget    time.Duration `json:"budget"`
	Changes   []TxnChange   `json:"changes"`
	Activated bool          `json:"activated,omitempty"`
	// Fallback: no upstream of the target can serve here, so the old ones serve until the decision is known.
	Fallback bool     `json:"fallback,omitempty"`
	Refusal  *Refusal `json:"refusal,omitempty"`
	Amend    *AmendOp `json:"amend,omitempty"`
}

// TxnChange is what a transaction does to one Section.
type TxnChange struct {
	App    string  `json:"app"`
	Target Section `json:"target"`
	Remove bool    `json:"remove,omitempty"`
	// Stop: the target has no upstream because the message says so, not because they died.
	Stop bool `json:"stop,omitempty"`
	Undo Undo `json:"undo"`
	// Replacements came with the Abort: they join the restored Section.
	Replacements []Upstream `json:"replacements,omitempty"`
}

// Undo is the snapshot taken before the first runtime command. The Section to go back to is the committed one, which no
// open transaction changes; these digests prove that it was reached.
type Undo struct {
	// Running is the digest of the running set, equal to the digest of what the journal wanted then.
	Running string `json:"running,omitempty"`
	// Published is the driver's digest of the files.
	Published string `json:"published,omitempty"`
	// Serving counts the upstreams that the Section had, so that "had none" and "all died" differ. Died: they had died
	// before the snapshot already.
	Serving int  `json:"serving,omitempty"`
	Died    bool `json:"died,omitempty"`
}

// AmendOp marks a Txn as an Amendment with insertions.
type AmendOp struct {
	Retire []string `json:"retire,omitempty"`
	// Counted: a removal in the same message has raised Version.Amendments already.
	Counted bool `json:"counted,omitempty"`
}

// Outcome is how a transaction ended here.
type Outcome struct {
	TxnID          string   `json:"txn_id"`
	Order          uint64   `json:"order"`
	Committed      bool     `json:"committed,omitempty"`
	NeverActivated bool     `json:"never_activated,omitempty"`
	Refusal        *Refusal `json:"refusal,omitempty"`
	Apps           []string `json:"apps,omitempty"`
}

// RecordKind says what a Record stands for.
type RecordKind string

// The kinds. The strings are the on-disk format: never change one.
const (
	KindEpoch      RecordKind = "epoch"
	KindStaged     RecordKind = "staged"
	KindWarm       RecordKind = "warm"
	KindActivating RecordKind = "activating"
	KindVerified   RecordKind = "verified"
	KindLapsed     RecordKind = "lapsed"
	KindFailed     RecordKind = "failed"
	KindFallback   RecordKind = "fallback"
	KindCommitted  RecordKind = "committed"
	KindRestoring  RecordKind = "restoring"
	KindRestoreNo  RecordKind = "restore-failed"
	KindAborted    RecordKind = "aborted"
	KindAmended    RecordKind = "amended"
	KindDrain      RecordKind = "drain"
	KindDrained    RecordKind = "drained"
	KindSynced     RecordKind = "synced"
	KindSettled    RecordKind = "settled"
	KindDrift      RecordKind = "drift"
	KindCollect    RecordKind = "collect"
	KindCollected  RecordKind = "collected"
	KindTraffic    RecordKind = "traffic"
)

// Record is one entry of the journal: why (Kind, Origin, Note), and the new values of all that it changes. Values
// rather than deltas, so that replay cannot come out differently from the live run.
type Record struct {
	Kind   RecordKind `json:"kind"`
	At     time.Time  `json:"at"`
	TxnID  string     `json:"txn_id,omitempty"`
	Order  uint64     `json:"order,omitempty"`
	Origin Origin     `json:"origin,omitzero"`
	Note   string     `json:"note,omitempty"`

	Epoch    uint64          `json:"epoch"`
	View     uint64          `json:"view"`
	Floor    uint64          `json:"floor,omitempty"`
	Drift    Policy          `json:"drift,omitempty"`
	Sections []*SectionState `json:"sections,omitempty"`
	Forget   []string        `json:"forget,omitempty"` // tombstones that were dropped
	Txn      *Txn            `json:"txn,omitempty"`
	Closed   *Outcome        `json:"closed,omitempty"` // the transaction that ended
	Traffic  *Traffic        `json:"traffic,omitempty"`
}

// Apply returns d after r. d is left alone.
func (d Durable) Apply(r Record) Durable {
	d.Epoch, d.View, d.Floor, d.Drift = r.Epoch, r.View, r.Floor, r.Drift
	if len(r.Sections) > 0 || len(r.Forget) > 0 {
		d.Sections = cloned(d.Sections)
		for _, s := range r.Sections {
			d.Sections[s.App] = s
		}
		for _, app := range r.Forget {
			delete(d.Sections, app)
		}
	}
	if r.Txn != nil {
		d.Txns = cloned(d.Txns)
		d.Txns[r.Txn.ID] = r.Txn
	}
	if r.Closed != nil {
		d.Txns = cloned(d.Txns)
		delete(d.Txns, r.Closed.TxnID)
		out := d.Outcomes
		if len(out) >= maxOutcomes {
			out = out[len(out)-maxOutcomes+1:]
		}
		d.Outcomes = append(slices.Clip(out), *r.Closed)
	}
	if r.Traffic != nil {
		d.Traffic = *r.Traffic
	}
	return d
}

// Outcome returns how the transaction ended here, if that is still remembered.
func (d Durable) Outcome(txnID string) (Outcome, bool) {
	for i := len(d.Outcomes) - 1; i >= 0; i-- {
		if d.Outcomes[i].TxnID == txnID {
			return d.Outcomes[i], true
		}
	}
	return Outcome{}, false
}

func cloned[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}

// names returns the apps of a transaction, in the order of its changes (sorted).
func (t *Txn) names() []string {
	out := make([]string, len(t.Changes))
	for i, c := range t.Changes {
		out[i] = c.App
	}
	return out
}

// change returns the change of app.
func (t *Txn) change(app string) *TxnChange {
	for i := range t.Changes {
		if t.Changes[i].App == app {
			return &t.Changes[i]
		}
	}
	return nil
}

// copy returns a Txn whose Changes can be written.
func (t *Txn) copy() *Txn {
	c := *t
	c.Changes = slices.Clone(t.Changes)
	return &c
}

// has reports whether the Section names the upstream.
func (s *Section) has(name string) bool { return s.find(name) != nil }

func (s *Section) find(name string) *Upstream {
	for i := range s.Upstreams {
		if s.Upstreams[i].Name == name {
			return &s.Upstreams[i]
		}
	}
	return nil
}

// without returns the upstreams less the named ones.
func without(ups []Upstream, names []string) []Upstream {
	return slices.DeleteFunc(slices.Clone(ups), func(u Upstream) bool { return slices.Contains(names, u.Name) })
}
