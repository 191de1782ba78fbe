package txn

import "time"

// MemberVerb is what can be asked about a Host's membership.
type MemberVerb string

// The verbs.
const (
	// Admit makes an announced Host a member, once it holds the committed state; with Group and AgentURL also one that no
	// source announces.
	Admit MemberVerb = "admit"
	// Exclude takes a Host out of the View. It needs proof that the Host gets no traffic.
	Exclude MemberVerb = "exclude"
	// Readmit brings back a Host that is excluded or drained.
	Readmit MemberVerb = "readmit"
	// DrainHost tells a Host to turn its readiness endpoint red. It stays a member.
	DrainHost MemberVerb = "drain"
	// Remove takes a Host out for good, and releases what was kept for it. It needs the proof that Exclude needs.
	Remove MemberVerb = "remove"
)

// MemberAsk is a request about a Host's membership.
type MemberAsk struct {
	Verb MemberVerb
	Host string
	// Group and AgentURL are for the admission of a Host that no source announces.
	Group, AgentURL string
	// Sure: the asker knows that the Host gets no traffic. It stands for proof, and is written down as his word.
	Sure          bool
	Actor, Reason string
}

// MemberRefusalKind says why a MemberAsk was refused.
type MemberRefusalKind uint8

// The kinds.
const (
	MemberUnknown MemberRefusalKind = iota + 1 // there is no such Host
	MemberInvalid                              // the ask is not valid in itself
	MemberState                                // it does not fit the Host's standing
	MemberNoProof                              // the Host may get traffic
	MemberWaiting                              // transactions of the Group are undecided: ask again
)

// MemberRefusal is a MemberAsk that was refused; nothing was changed. Text says why, and what to run instead.
type MemberRefusal struct {
	Kind MemberRefusalKind
	Text string
}

// Error is Text.
func (r *MemberRefusal) Error() string { return r.Text }

// Membership is where a Host stands, for people.
type Membership struct {
	// Standing: announced, joining, member, excluded or removed.
	Standing string
	// Drained: it was told to be out of traffic by hand.
	Drained bool
	// Announced: a source (the hosts file, Consul) names it.
	Announced bool
	Source    string
	// Notice is what a source says of it that is not followed, or says no longer.
	Notice string
	// View is the number of its Group's View.
	View uint64
	// Policy of its Group.
	Policy string
	// Actor, Reason and At are of the last change.
	Actor, Reason string
	At            time.Time
	// Proof that it gets no traffic, of an exclusion.
	Proof string
	// Waiting: what a joining Host lacks to become a member.
	Waiting string
}

// MemberChange is one entry of the audit record of membership.
type MemberChange struct {
	At                          time.Time
	Host, Group, What, From, To string
	View                        uint64
	AgentURL                    string // after it
	Actor, Reason, Proof        string
}

// SourceInfo is what is known of a catalog that announces Hosts.
type SourceInfo struct {
	Source string
	// HeardAt is when it announced something new last; zero: it was not read in this term. Hosts is how many it announces.
	HeardAt time.Time
	Hosts   int
	// Refused says which of its entries are not taken, and why.
	Refused []string
	// Problem says why it cannot be read, Since when; what it announced last holds.
	Problem string
	Since   time.Time
}
