package conductor

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
)

// Keys of the records that this package owns.
const (
	prefixTxn      = "txn/"      // open transactions
	prefixMark     = "mark/"     // the `activating` marks
	prefixDecision = "decision/" // Commit records, write-once
	prefixEvidence = "evidence/" // large evidence of a decision, in chunks
	prefixEnded    = "ended/"    // how ended transactions ended
	prefixSection  = "section/"  // committed Sections
	prefixAmend    = "amend/"    // pending Amendments
)

// recordFormat is the version of the JSON records below.
const recordFormat = 1

func sectionKey(k txn.SectionKey) string { return prefixSection + k.Group + "/" + k.App }

func encodeOrder(n uint64) []byte { return strconv.AppendUint(nil, n, 10) }

// txnRecord is an open transaction.
type txnRecord struct {
	Format   int            `json:"format"`
	ID       string         `json:"id"`
	Deploy   string         `json:"deploy"`
	App      string         `json:"app"`
	Order    uint64         `json:"order"`
	Epoch    uint64         `json:"epoch"`
	Deadline time.Time      `json:"deadline"`
	Rollback bool           `json:"rollback,omitempty"`
	Actor    string         `json:"actor"`
	Reason   string         `json:"reason"`
	Record   []byte         `json:"record,omitempty"`
	Views    []viewRecord   `json:"views"`
	Changes  []changeRecord `json:"changes"`
	// Parts are the proposals of a transaction that carries several; one proposal is in the fields above.
	Parts []partRecord `json:"parts,omitempty"`
	// Aborted is set when the transaction was given up by the leader that began it.
	Aborted *abortRecord `json:"aborted,omitempty"`
}

// partRecord is one proposal of several. Those of one Unit belong together.
type partRecord struct {
	Unit     int              `json:"unit"`
	ID       string           `json:"id"`
	Deploy   string           `json:"deploy"`
	App      string           `json:"app"`
	Actor    string           `json:"actor"`
	Reason   string           `json:"reason"`
	Record   []byte           `json:"record,omitempty"`
	Deadline time.Time        `json:"deadline"`
	Keys     []txn.SectionKey `json:"keys"`
}

// joint: the record is of a transaction that carries several proposals, or did until it was taken apart.
func (r txnRecord) joint() bool { return strings.HasPrefix(r.ID, jointPrefix) }

// units are the proposals of the record.
func (r txnRecord) units() []*unit {
	if !r.joint() {
		p := &part{id: r.ID, deploy: r.Deploy, app: r.App, actor: r.Actor, reason: r.Reason, record: r.Record, deadline: r.Deadline}
		for _, ch := range r.Changes {
			p.keys = append(p.keys, txn.SectionKey{Group: ch.Group, App: ch.App})
		}
		return []*unit{{parts: []*part{p}, rollback: r.Rollback}}
	}
	var out []*unit
	for _, p := range r.Parts {
		for p.Unit >= len(out) {
			out = append(out, &unit{rollback: r.Rollback})
		}
		u := out[p.Unit]
		u.parts = append(u.parts, &part{id: p.ID, deploy: p.Deploy, app: p.App, actor: p.Actor, reason: p.Reason, record: p.Record, deadline: p.Deadline, keys: p.Keys})
	}
	return out
}

type viewRecord struct {
	Group  string   `json:"group"`
	Number uint64   `json:"number"`
	Hosts  []string `json:"hosts"`
}

// changeRecord is one change; a nil Target removes the Section.
type changeRecord struct {
	Group   string   `json:"group"`
	App     string   `json:"app"`
	BaseTxn uint64   `json:"base_txn"`
	Base    []string `json:"base"` // upstream names, committed when the locks were granted
	Target  []byte   `json:"target,omitempty"`
	Removes bool     `json:"removes,omitempty"`
}

type abortRecord struct {
	Cause    txn.Cause `json:"cause"`
	Reason   string    `json:"reason"`
	Activate bool      `json:"activate"` // Activate was sent to somebody
}

// decisionRecord is the Commit record: its existence is the success.
type decisionRecord struct {
	Format      int          `json:"format"`
	ID          string       `json:"id"`
	Deploy      string       `json:"deploy"`
	App         string       `json:"app"`
	Order       uint64       `json:"order"`
	Epoch       uint64       `json:"epoch"`
	CommittedAt time.Time    `json:"committed_at"`
	Actor       string       `json:"actor"`
	Reason      string       `json:"reason"`
	Views       []viewRecord `json:"views"`
	Votes       []voteRecord `json:"votes"`
	// Excluded are the Hosts of these Groups that were out of their Views.
	Excluded []excludedRecord `json:"excluded,omitempty"`
	Changes  []retiredRecord  `json:"changes"`
	Record   []byte           `json:"record,omitempty"`
	// Joint is the transaction that carried this proposal together with others: its decision has the votes.
	Joint string `json:"joint,omitempty"`
	// Parts are the proposals that this one decides. Each has a decision of its own, written in the same Commit.
	Parts []string `json:"parts,omitempty"`
}

// voteUnproven is the vote of a Host that was missing, as the policy of its Group permits.
const voteUnproven = "unproven"

// excludedRecord is a Host that was out of the View at the decision, with the proof that it gets no traffic.
type excludedRecord struct {
	Host   string         `json:"host"`
	Group  string         `json:"group"`
	Proof  registry.Proof `json:"proof"`
	Actor  string         `json:"actor"`
	Reason string         `json:"reason"`
	At     time.Time      `json:"at"`
}

// voteRecord is the Verified of one Host. Digest is of the evidence, which is here or, when large, in Chunks records
// evidence/<txn>/<host>/<n> that were written first.
type voteRecord struct {
	Host     string `json:"host"`
	Group    string `json:"group"`
	Proxy    string `json:"proxy"`
	Vote     string `json:"vote"`
	PID      int64  `json:"pid"`
	Digest   string `json:"digest"`
	Evidence []byte `json:"evidence,omitempty"`
	Chunks   int    `json:"chunks,omitempty"`
}

// retiredRecord names what a committed change took out of the committed Section.
type retiredRecord struct {
	Group   string   `json:"group"`
	App     string   `json:"app"`
	Retired []string `json:"retired"`
}

// endedRecord is how a transaction ended.
type endedRecord struct {
	Format int          `json:"format"`
	Status statusRecord `json:"status"`
	// Drained: every Host reported Drained, so nothing is watched any more.
	Drained bool   `json:"drained"`
	Forced  bool   `json:"forced,omitempty"`
	App     string `json:"app"`
	// Joint is the transaction that carried this proposal together with others.
	Joint   string          `json:"joint,omitempty"`
	Changes []retiredRecord `json:"changes,omitempty"`
	Hosts   []viewRecord    `json:"views,omitempty"`
}

// statusRecord is a txn.Status without the evidence, which the decision holds.
type statusRecord struct {
	ID          string           `json:"id"`
	Deploy      string           `json:"deploy"`
	Order       uint64           `json:"order"`
	Phase       txn.Phase        `json:"phase"`
	Cause       txn.Cause        `json:"cause"`
	Reason      string           `json:"reason"`
	CommittedAt time.Time        `json:"committed_at"`
	At          time.Time        `json:"at"`
	Hosts       []hostVoteRecord `json:"hosts"`
}

type hostVoteRecord struct {
	Host         string `json:"host"`
	Group        string `json:"group"`
	Proxy        string `json:"proxy"`
	Vote         string `json:"vote"`
	Reason       string `json:"reason"`
	Refusal      []byte `json:"refusal,omitempty"`
	Evidence     []byte `json:"evidence,omitempty"`
	SentActivate bool   `json:"sent_activate"`
	Unproven     bool   `json:"unproven,omitempty"`
	Excluded     bool   `json:"excluded,omitempty"`
}

// amendRecord is a pending Amendment.
type amendRecord struct {
	Format   int       `json:"format"`
	ID       string    `json:"id"`
	Group    string    `json:"group"`
	App      string    `json:"app"`
	Remove   []string  `json:"remove,omitempty"`
	Insert   [][]byte  `json:"insert,omitempty"`
	Retire   []string  `json:"retire,omitempty"`
	Spec     uint64    `json:"spec,omitempty"`
	Actor    string    `json:"actor"`
	Reason   string    `json:"reason"`
	Deadline time.Time `json:"deadline"`
	// Undo is the transaction whose Abort carries the inserts.
	Undo string `json:"undo,omitempty"`
	// Applied: the committed Section holds the inserts. Undone: it held them and does not any longer. Retired are the
	// upstreams that Retire took out, to put back when the inserts are given up.
	Applied bool     `json:"applied,omitempty"`
	Undone  bool     `json:"undone,omitempty"`
	Failure string   `json:"failure,omitempty"`
	Retired [][]byte `json:"retired,omitempty"`
	// Ended: it is settled how it ended, as Failure says; only the release of the names is still watched.
	Ended bool `json:"ended,omitempty"`
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("a record that cannot be written: %v", err)) // plain structs: always a bug
	}
	return b
}

func decode(key string, b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("record %q is damaged: %w", key, err)
	}
	return nil
}

// deterministic gives equal messages equal bytes, so their digests can be compared.
var deterministic = proto.MarshalOptions{Deterministic: true}

func encodeProto(m proto.Message) []byte {
	b, err := deterministic.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("a message that cannot be written: %v", err)) // only invalid UTF-8, which is checked at the door
	}
	return b
}

// encodeEvidence packs the evidence of one Host.
func encodeEvidence(evidence []*lbagentv1.Evidence) []byte {
	if len(evidence) == 0 {
		return nil
	}
	return encodeProto(&lbagentv1.Verified{Evidence: evidence})
}

func decodeEvidence(b []byte) []*lbagentv1.Evidence {
	var v lbagentv1.Verified
	if len(b) == 0 || proto.Unmarshal(b, &v) != nil {
		return nil
	}
	return v.GetEvidence()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// maxInlineEvidence bounds the evidence inside one record, all Hosts together; evidenceChunk the size of one chunk.
const (
	maxInlineEvidence = 96 << 10
	evidenceChunk     = 256 << 10
)

// encodeStatus is the Status with as much of what Hosts said as fits into room bytes: refusals before evidence, which the
// decision has whole.
func encodeStatus(s txn.Status, room int) statusRecord {
	out := statusRecord{
		ID: s.ID, Deploy: s.Deploy, Order: s.Order, Phase: s.Phase, Cause: s.Cause, Reason: s.Reason,
		CommittedAt: s.CommittedAt, At: s.At,
	}
	for _, h := range s.Hosts {
		r := hostVoteRecord{Host: h.Host, Group: h.Group, Proxy: h.Proxy, Vote: h.Vote, Reason: clip(h.Reason, maxReason), SentActivate: h.SentActivate,
			Unproven: h.Unproven, Excluded: h.Excluded}
		if h.Refusal != nil {
			r.Refusal = encodeProto(h.Refusal)
			if len(r.Refusal) > room {
				short := proto.CloneOf(h.Refusal)
				short.Output, short.Message = "", clip(short.GetMessage(), maxReason)
				r.Refusal = encodeProto(short)
			}
			room -= len(r.Refusal)
		}
		out.Hosts = append(out.Hosts, r)
	}
	for i, h := range s.Hosts {
		if e := encodeEvidence(h.Evidence); len(e) <= room {
			out.Hosts[i].Evidence = e
			room -= len(e)
		}
	}
	return out
}

func (r statusRecord) status() txn.Status {
	s := txn.Status{
		ID: r.ID, Deploy: r.Deploy, Order: r.Order, Phase: r.Phase, Cause: r.Cause, Reason: r.Reason,
		CommittedAt: r.CommittedAt, At: r.At,
	}
	for _, h := range r.Hosts {
		v := txn.HostVote{Host: h.Host, Group: h.Group, Proxy: h.Proxy, Vote: h.Vote, Reason: h.Reason, SentActivate: h.SentActivate,
			Unproven: h.Unproven, Excluded: h.Excluded, Evidence: decodeEvidence(h.Evidence)}
		if len(h.Refusal) > 0 {
			var refusal lbagentv1.Refusal
			if proto.Unmarshal(h.Refusal, &refusal) == nil {
				v.Refusal = &refusal
			}
		}
		s.Hosts = append(s.Hosts, v)
	}
	return s
}

// sortedKeys returns the keys of m in order, so that nothing depends on the order of a map.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
