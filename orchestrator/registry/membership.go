package registry

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/store"
)

// Standing is where a Host stands in its Group.
type Standing string

// The standings. Only a Member is in the View: its vote is needed, and its word that it released an upstream.
const (
	// Announced: a source names the Host; nobody talks to it before somebody admits it.
	Announced Standing = "announced"
	// Joining: admitted. It becomes a Member when it holds the whole committed state, read back from its proxy.
	Joining Standing = "joining"
	// Member: it is in the View.
	Member Standing = "member"
	// Excluded: it is out of the View, since it is proven to get no traffic. It must be synced before it is a Member again.
	Excluded Standing = "excluded"
	// Removed: gone for good. Nobody talks to it; remembered, so that no source brings it back by itself.
	Removed Standing = "removed"
)

// linked: there is a connection to such a Host.
func (s Standing) linked() bool { return s == Joining || s == Member || s == Excluded }

// Source says where a Host is known from.
type Source string

// The sources.
const (
	FromFile     Source = "hosts-file"
	FromOperator Source = "operator"
	FromConsul   Source = "consul"
)

// text names the source for people.
func (s Source) text() string {
	switch s {
	case FromFile:
		return "the hosts file"
	case FromConsul:
		return "the Consul catalog"
	default:
		return "an operator"
	}
}

// ProofKind says who has proved that a Host gets no traffic.
type ProofKind string

// The proofs.
const (
	// ProofReport: the Host itself was drained and had no client connection for a while.
	ProofReport ProofKind = "host-report"
	// ProofDeclared: an operator said that he knows it.
	ProofDeclared ProofKind = "declared"
)

// Proof is why nothing is routed through a Host.
type Proof struct {
	Kind ProofKind `json:"kind"`
	// Text says what was seen, or who knows it.
	Text string `json:"text"`
}

// Change says who changed something, when and why.
type Change struct {
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// Membership is one Host as the store remembers it.
type Membership struct {
	Format   int      `json:"format"`
	Host     string   `json:"host"`
	Group    string   `json:"group"`
	AgentURL string   `json:"agent_url"`
	Source   Source   `json:"source"`
	Standing Standing `json:"standing"`
	// Drained: the Host is told to be out of traffic (lb drain), whatever its standing.
	Drained bool `json:"drained,omitempty"`
	// Last is who made it what it is.
	Last  Change `json:"last"`
	Proof *Proof `json:"proof,omitempty"` // of an exclusion or a removal
	// What sources say of it in this term; never stored. Declared: the hosts file names it. Announced: any source does.
	Declared  bool `json:"-"`
	Announced bool `json:"-"`
	// Notice is what a source says that is not followed, or says no longer; for people.
	Notice string `json:"-"`
	// Ambiguous: nobody is a member by it yet, and it is announced in more ways than one.
	Ambiguous bool `json:"-"`
}

// InTraffic says whether the Host's readiness endpoint may be green.
func (m Membership) InTraffic() bool { return m.Standing == Member && !m.Drained }

// AuditEntry is one change of membership, written in the same Commit as the change (NO-SILENT-CHANGE).
type AuditEntry struct {
	Format int    `json:"format"`
	Group  string `json:"group"`
	Host   string `json:"host"`
	// What was done: admit, join, exclude, readmit, drain, undrain, remove.
	What string `json:"what"`
	From string `json:"from"`
	To   string `json:"to"`
	View uint64 `json:"view"` // after it
	// AgentURL is where the Host is reached after it.
	AgentURL string `json:"agent_url,omitempty"`
	Change
	Proof *Proof `json:"proof,omitempty"`
}

// Keys of the records that this package owns.
const (
	prefixView  = "view/"        // view/<group>: the View; view/<group>/<host>: a Membership
	prefixAudit = "audit/views/" // what was changed, by time
	// membershipFormat is the version of the records.
	membershipFormat = 1
)

// ViewKey is the key of the record that holds a Group's View.
func ViewKey(group string) string { return prefixView + group }

func memberKey(group, host string) string { return prefixView + group + "/" + host }

// auditKey sorts by time. At is that of the change; the Host keeps two of the same nanosecond apart.
func auditKey(at time.Time, host string) string {
	return fmt.Sprintf("%s%020d-%s", prefixAudit, at.UnixNano(), host)
}

// errGroup: a Host cannot be in two Groups.
var errGroup = errors.New("a host cannot change its group")

// declared is the Membership of a Host that the hosts file names, and what to write down about it ("": nothing new). old is
// nil if the store has none; fresh: the Group has no View yet, so nothing is committed there that the Host had to be synced
// with, or its View names the Host already.
func declared(old *Membership, h Host, admit Admit, fresh bool, now time.Time) (m Membership, what string, err error) {
	why := Change{Actor: "cutover", Reason: "announced by " + FromFile.text(), At: now}
	if old == nil {
		m = Membership{Format: membershipFormat, Host: h.Name, Group: h.Group, AgentURL: h.AgentURL, Source: FromFile, Last: why, Declared: true, Announced: true}
		switch {
		case admit == AdmitOperator:
			m.Standing = Announced
		case fresh:
			m.Standing = Member
		default:
			m.Standing = Joining
		}
		return m, "announce", nil
	}
	m = *old
	m.Declared, m.Announced = true, true
	if m.Group != h.Group && !m.Standing.linked() { // nobody talks to it there
		m.Group, what = h.Group, "move"
	}
	if m.Group != h.Group {
		return m, "", fmt.Errorf("host %s is in group %s and declared in %s: %w; take it out first: cutover lb remove %s", h.Name, m.Group, h.Group, errGroup, h.Name)
	}
	if m.AgentURL != h.AgentURL {
		m.AgentURL, what = h.AgentURL, "move"
	}
	if m.Source != FromFile {
		m.Source, what = FromFile, cmp.Or(what, "announce")
	}
	if m.Standing == Announced && admit != AdmitOperator {
		m.Standing, m.Last, what = Joining, why, "announce"
	}
	return m, what, nil
}

// nextView is the View after the Membership is as m says: another number only if the members are others.
func nextView(v View, m Membership) (View, bool) {
	has := slices.Contains(v.Hosts, m.Host)
	switch want := m.Standing == Member; {
	case want && !has:
		v.Hosts = append(slices.Clone(v.Hosts), m.Host)
		slices.Sort(v.Hosts)
	case !want && has:
		v.Hosts = slices.DeleteFunc(slices.Clone(v.Hosts), func(h string) bool { return h == m.Host })
	default:
		return v, false
	}
	v.Number++
	return v, true
}

// viewOp writes the View against the record that is there.
func viewOp(v View) store.Op {
	op := store.Op{Kind: store.Create, Key: ViewKey(v.Group), Value: encode(v)}
	if v.Revision != 0 {
		op.Kind, op.Expect = store.Replace, v.Revision
	}
	return op
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("a record that cannot be written: %v", err)) // plain structs: always a bug
	}
	return b
}

// splitKey takes a key of prefixView apart; host is "" for a View.
func splitKey(key string) (group, host string) {
	group, host, _ = strings.Cut(strings.TrimPrefix(key, prefixView), "/")
	return group, host
}
