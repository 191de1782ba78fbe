package wire

import (
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// Membership is where a Host stands in its Group.
type Membership struct {
	Standing  string     `json:"standing" enum:"announced,joining,member,excluded,removed"`
	Drained   bool       `json:"drained,omitempty" doc:"told to be out of traffic by hand"`
	Source    string     `json:"source,omitempty" enum:"hosts-file,operator,consul" doc:"where the Host is known from"`
	Announced bool       `json:"announced" doc:"a source names it now"`
	Notice    string     `json:"notice,omitempty" doc:"what a source says of it that is not followed, or says no longer"`
	View      uint64     `json:"view" doc:"number of the Group's View"`
	Policy    string     `json:"policy" doc:"of the Group: how many Hosts may be missing from a Commit"`
	Actor     string     `json:"actor,omitempty" doc:"who changed it last"`
	Reason    string     `json:"reason,omitempty"`
	At        *time.Time `json:"at,omitempty"`
	Proof     string     `json:"proof,omitempty" doc:"of an exclusion: why the Host gets no traffic"`
	Waiting   string     `json:"waiting,omitempty" doc:"what a joining Host lacks to be a member"`
}

// Asked says whether the orchestrator talks to such a Host: neither to one that is only announced, nor to one that is removed.
func (m Membership) Asked() bool { return m.Standing != "announced" && m.Standing != "removed" }

// Source is a catalog that announces Hosts. What it says takes nobody out of a View.
type Source struct {
	Source  string     `json:"source" enum:"consul"`
	HeardAt *time.Time `json:"heard_at,omitempty" doc:"when it announced something new last; absent: it was not read since this orchestrator leads"`
	Hosts   int        `json:"hosts" doc:"how many it announces"`
	Refused []string   `json:"refused" doc:"its entries that are not taken, and why"`
	Problem string     `json:"problem,omitempty" doc:"why it cannot be read now; what it announced last holds"`
	Since   *time.Time `json:"since,omitempty" doc:"since when there is that problem"`
}

// Traffic is whether a Host gets client traffic, as it says itself.
type Traffic struct {
	Ordered    string     `json:"ordered" enum:"in,out,none" doc:"what the Host was told last"`
	Ready      bool       `json:"ready" doc:"its readiness endpoint is green"`
	Reasons    []string   `json:"reasons" doc:"why it is not"`
	Counted    bool       `json:"counted" doc:"client connections are counted while the Host is to be out of traffic"`
	Sessions   uint32     `json:"sessions"`
	QuietSince *time.Time `json:"quiet_since,omitempty" doc:"since when there has been no client connection"`
	// QuietSeconds is by the Host's own clock, to its newest report.
	QuietSeconds float64 `json:"quiet_seconds" doc:"for how long there has been no client connection"`
}

// AdmitBody admits a Host.
type AdmitBody struct {
	Group    string `json:"group,omitempty" maxLength:"63" doc:"of a Host that no source announces"`
	AgentURL string `json:"agent_url,omitempty" maxLength:"500" doc:"of a Host that no source announces"`
	Reason   string `json:"reason" minLength:"1" maxLength:"1000" doc:"why, kept in the audit record"`
}

// HostBody is the body of a request about a Host that needs nothing but a reason.
type HostBody struct {
	Reason string `json:"reason" minLength:"1" maxLength:"1000" doc:"why, kept in the audit record"`
}

// HostProofBody is the body of a request that needs proof that the Host gets no traffic.
type HostProofBody struct {
	Reason string `json:"reason" minLength:"1" maxLength:"1000" doc:"why, kept in the audit record"`
	Sure   bool   `json:"i_know_it_gets_no_traffic,omitempty" doc:"the asker's word in the place of the Host's own proof, kept in the audit record"`
}

// Resolution is what became of a request to settle what is stuck.
type Resolution struct {
	Resolved bool             `json:"resolved" doc:"nothing is left to do on any of the Hosts"`
	Hosts    []HostResolution `json:"hosts"`
}

// HostResolution is one Host of a Resolution.
type HostResolution struct {
	Name      string              `json:"name"`
	Resolved  bool                `json:"resolved"`
	Remaining []string            `json:"remaining" doc:"what is not settled, and why"`
	Fix       string              `json:"fix,omitempty" doc:"what to do about it"`
	Next      string              `json:"next_command,omitempty"`
	Serves    []deploy.ServesView `json:"serves" doc:"what the Host's proxy reported last about the Apps that are not settled"`
}

// HostChange is one change of a Host's membership.
type HostChange struct {
	At       time.Time `json:"at"`
	Host     string    `json:"host"`
	Group    string    `json:"group"`
	What     string    `json:"what"`
	From     string    `json:"from,omitempty"`
	To       string    `json:"to"`
	View     uint64    `json:"view" doc:"number of the Group's View after it"`
	AgentURL string    `json:"agent_url,omitempty" doc:"where it is reached after it"`
	Actor    string    `json:"actor"`
	Reason   string    `json:"reason"`
	Proof    string    `json:"proof,omitempty"`
}

// HostHistory lists changes of membership, newest first.
type HostHistory struct {
	Changes []HostChange `json:"changes"`
}
