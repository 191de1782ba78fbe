package registry

import (
	"fmt"
	"strings"
	"time"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/txn"
)

// quietFor is how long a drained Host must have had no client connection to be proven out of traffic. Upstream balancers
// probe every few seconds, and do not open connections to a Host that they see red.
const quietFor = 5 * time.Second

// Seen is what is known of a Host's traffic at the moment of a decision.
type Seen struct {
	Connected bool
	// Traffic is the Host's newest report; nil if it never said. SentAt is when it was sent, by the Host's clock.
	Traffic *lbagentv1.Traffic
	SentAt  time.Time
	// Others are the Members of the Group that are in traffic, this Host apart.
	Others int
}

// proof says why the Host gets no traffic, or what is missing for that. One that may be in traffic has no proof, whatever it
// reported last: that may be of the time before it was let in again.
func (s Seen) proof(ask txn.MemberAsk, inTraffic bool) (*Proof, string) {
	if ask.Sure {
		return &Proof{Kind: ProofDeclared, Text: ask.Actor + " knows that it gets no traffic: " + ask.Reason}, ""
	}
	t := s.Traffic
	quiet := time.Duration(0)
	if t.GetQuietSince() != nil {
		quiet = s.SentAt.Sub(t.GetQuietSince().AsTime())
	}
	switch {
	case !s.Connected:
		return nil, "it does not answer, so it cannot say that it gets no traffic"
	case inTraffic, t.GetOrder() != lbagentv1.TrafficOrder_TRAFFIC_ORDER_OUT || t.GetReady():
		return nil, "it is in traffic as far as is known: it was not drained"
	case !t.GetCounted():
		return nil, "it cannot count its client connections: its lbagent lacks the capability CAP_NET_ADMIN, or its log says why"
	case t.GetSessions() > 0:
		return nil, fmt.Sprintf("it is drained and still has %d client connections", t.GetSessions())
	case quiet < quietFor:
		return nil, fmt.Sprintf("it is drained and has had no client connection for %v: that proves it after %v", quiet.Round(time.Second), quietFor)
	}
	return &Proof{Kind: ProofReport, Text: fmt.Sprintf("drained since %s, no client connection since %s",
		t.GetOrderedAt().AsTime().Format(time.RFC3339), t.GetQuietSince().AsTime().Format(time.RFC3339))}, ""
}

func memberRefused(kind txn.MemberRefusalKind, format string, args ...any) error {
	return &txn.MemberRefusal{Kind: kind, Text: fmt.Sprintf(format, args...)}
}

// Decide is what becomes of a Host's Membership by an ask; old is nil for a Host that nobody knows. changed is false if it is
// so already. An error is a *txn.MemberRefusal.
func Decide(ask txn.MemberAsk, old *Membership, seen Seen, now time.Time) (m Membership, changed bool, err error) {
	if strings.TrimSpace(ask.Reason) == "" {
		return m, false, memberRefused(txn.MemberInvalid, "say why: --reason TEXT is kept in the audit record")
	}
	if ask.Verb == txn.Admit {
		m, changed, err = admit(ask, old)
	} else if old == nil {
		return m, false, memberRefused(txn.MemberUnknown, "there is no host %q: cutover lb hosts lists them", ask.Host)
	} else {
		m, changed, err = change(ask, *old, seen)
	}
	if changed {
		m.Last = Change{Actor: ask.Actor, Reason: ask.Reason, At: now}
	}
	return m, changed, err
}

func admit(ask txn.MemberAsk, old *Membership) (Membership, bool, error) {
	// What is remembered of a Host that was removed is not where it is now.
	if old == nil || old.Standing == Removed && !old.Announced {
		h := Host{Name: ask.Host, Group: ask.Group, AgentURL: ask.AgentURL}
		if h.Group == "" || h.AgentURL == "" {
			return Membership{}, false, memberRefused(txn.MemberUnknown,
				"no source announces a host %q: declare it in the hosts file, let its lbagent announce it in Consul, or say --group and --agent-url", ask.Host)
		}
		if err := CheckHost(h); err != nil {
			return Membership{}, false, memberRefused(txn.MemberInvalid, "%v", err)
		}
		return Membership{Host: h.Name, Group: h.Group, AgentURL: h.AgentURL, Source: FromOperator, Standing: Joining}, true, nil
	}
	m := *old
	if m.Ambiguous && (ask.Group == "" || ask.AgentURL == "") {
		return m, false, memberRefused(txn.MemberState, "host %s: %s", m.Host, m.Notice)
	}
	if ask.Group != "" && ask.Group != m.Group {
		if m.Standing.linked() || m.Declared {
			return m, false, memberRefused(txn.MemberState, "host %s belongs to group %s: remove it there first", m.Host, m.Group)
		}
		if err := checkName("group", ask.Group); err != nil {
			return m, false, memberRefused(txn.MemberInvalid, "%v", err)
		}
		m.Group = ask.Group
	}
	if ask.AgentURL != "" && ask.AgentURL != m.AgentURL {
		if m.Standing.linked() {
			return m, false, memberRefused(txn.MemberState, "host %s is %s at %s: remove it first to bring it in at another address", m.Host, m.Standing, m.AgentURL)
		}
		if err := checkURL(ask.AgentURL); err != nil {
			return m, false, memberRefused(txn.MemberInvalid, "agent URL %q: %v", ask.AgentURL, err)
		}
		m.AgentURL, m.Source = ask.AgentURL, FromOperator
	}
	switch m.Standing {
	case Joining, Member:
		return m, false, nil
	case Excluded:
		return m, false, memberRefused(txn.MemberState, "host %s is excluded: cutover lb readmit %s brings it back", m.Host, m.Host)
	default:
		m.Standing, m.Proof, m.Drained = Joining, nil, false
		return m, true, nil
	}
}

// change decides about a Host that is known.
func change(ask txn.MemberAsk, m Membership, seen Seen) (Membership, bool, error) {
	switch ask.Verb {
	case txn.Admit: // admit decides
	case txn.Exclude, txn.Remove:
		to := map[txn.MemberVerb]Standing{txn.Exclude: Excluded, txn.Remove: Removed}[ask.Verb]
		switch {
		case m.Standing == to || m.Standing == Removed:
			return m, false, nil
		case m.Standing == Announced && to == Excluded:
			return m, false, memberRefused(txn.MemberState, "host %s was never admitted: there is nothing to exclude", m.Host)
		case m.Standing == Joining || m.Standing == Member:
			proof, missing := seen.proof(ask, m.InTraffic())
			if proof == nil {
				return m, false, memberRefused(txn.MemberNoProof, "host %s may get traffic: %s; take it out of traffic with `cutover lb drain %s --reason TEXT`, "+
					"or say --i-know-it-gets-no-traffic if you have taken it out by other means", m.Host, missing, m.Host)
			}
			m.Proof = proof
		}
		m.Standing = to
		return m, true, nil
	case txn.Readmit:
		switch {
		case m.Standing == Announced || m.Standing == Removed:
			return m, false, memberRefused(txn.MemberState, "host %s was never a member, or is no longer: cutover lb admit %s", m.Host, m.Host)
		case m.Standing == Excluded:
			m.Standing, m.Drained, m.Proof = Joining, false, nil
			return m, true, nil
		}
		was := m.Drained
		m.Drained = false
		return m, was, nil
	case txn.DrainHost:
		switch {
		case m.Standing == Announced || m.Standing == Removed:
			return m, false, memberRefused(txn.MemberState, "host %s is not admitted, so nobody tells it to be ready", m.Host)
		case m.Standing == Member && !m.Drained && seen.Others == 0 && !ask.Sure:
			return m, false, memberRefused(txn.MemberState, "host %s is the last of group %s in traffic: nothing would serve; readmit another one first, "+
				"or say --i-know-it-gets-no-traffic", m.Host, m.Group)
		}
		was := m.Drained
		m.Drained = true
		return m, !was, nil
	}
	return m, false, memberRefused(txn.MemberInvalid, "%q cannot be asked of a host", ask.Verb)
}
