package registry

import (
	"fmt"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/txn"
)

// Group is how a Group is declared. Only the name is required; the rest has defaults that never surprise a load-balancer
// owner: every Host must prove a change, and what was declared was meant.
type Group struct {
	Name string
	// Policy says how many Hosts may be missing from a Commit.
	Policy txn.Policy
	// Admit says who makes a Host that a source announces a member. Empty is AdmitDeclared.
	Admit Admit
	// Drift says what a Host does about a difference between its proxy and what is committed. Empty is DriftRepair.
	Drift Drift
}

// Admit says who makes an announced Host a member of the View.
type Admit string

// The ways of admission.
const (
	// AdmitDeclared: a Host of the hosts file is a member once it is synced; others wait for an operator.
	AdmitDeclared Admit = "declared"
	// AdmitAnnounced: a Host that any source announces, the Consul catalog too, is a member once it is synced.
	AdmitAnnounced Admit = "announced"
	// AdmitOperator: every Host waits for `cutover lb admit`.
	AdmitOperator Admit = "operator"
)

// ParseAdmit reads an Admit; the empty text is AdmitDeclared.
func ParseAdmit(text string) (Admit, error) {
	switch a := Admit(text); a {
	case "":
		return AdmitDeclared, nil
	case AdmitDeclared, AdmitAnnounced, AdmitOperator:
		return a, nil
	}
	return "", fmt.Errorf("admit %q: want %s, %s or %s", text, AdmitDeclared, AdmitAnnounced, AdmitOperator)
}

// Drift says what a Host does about differences that nobody ordered through Cutover.
type Drift string

// The ways to treat drift.
const (
	// DriftRepair: the Host puts the committed state back.
	DriftRepair Drift = "repair"
	// DriftReport: the Host says what differs, and leaves it.
	DriftReport Drift = "report"
)

// policy is the word for it in the protocol.
func (d Drift) policy() lbagentv1.DriftPolicy {
	if d == DriftReport {
		return lbagentv1.DriftPolicy_DRIFT_POLICY_REPORT
	}
	return lbagentv1.DriftPolicy_DRIFT_POLICY_REPAIR
}

// ParseDrift reads a Drift; the empty text is DriftRepair.
func ParseDrift(text string) (Drift, error) {
	switch d := Drift(text); d {
	case "":
		return DriftRepair, nil
	case DriftRepair, DriftReport:
		return d, nil
	}
	return "", fmt.Errorf("drift %q: want %s or %s", text, DriftReport, DriftRepair)
}
