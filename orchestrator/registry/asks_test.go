package registry

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// What a Host reported proves that it gets no traffic only while it is kept out of it: a report may be from before it was let
// in again.
func TestProofByReport(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	quiet := func(d time.Duration) Seen {
		return Seen{Connected: true, SentAt: now, Others: 1, Traffic: &lbagentv1.Traffic{
			Order: lbagentv1.TrafficOrder_TRAFFIC_ORDER_OUT, Counted: true, QuietSince: timestamppb.New(now.Add(-d)), OrderedAt: timestamppb.New(now.Add(-time.Hour)),
		}}
	}
	for _, tt := range []struct {
		name     string
		standing Standing
		drained  bool
		seen     Seen
		proven   bool
	}{
		{"drained and quiet", Member, true, quiet(quietFor), true},
		{"drained, not quiet for long enough", Member, true, quiet(quietFor - time.Second), false},
		{"let in again, and the report is from before", Member, false, quiet(quietFor), false},
		{"joining: it is kept out until it is a member", Joining, false, quiet(quietFor), true},
		{"drained, and it does not answer", Member, true, Seen{Traffic: quiet(quietFor).Traffic, SentAt: now}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			old := Membership{Host: "lb1", Group: "g", Standing: tt.standing, Drained: tt.drained}
			ask := txn.MemberAsk{Verb: txn.Exclude, Host: "lb1", Actor: "kim", Reason: "repair"}
			m, changed, err := Decide(ask, &old, tt.seen, now)
			var no *txn.MemberRefusal
			switch {
			case tt.proven && (err != nil || !changed || m.Standing != Excluded || m.Proof == nil || m.Proof.Kind != ProofReport):
				t.Errorf("got %+v, %v: want it excluded by its report", m, err)
			case !tt.proven && (!errors.As(err, &no) || no.Kind != txn.MemberNoProof):
				t.Errorf("got %+v, %v: want it refused without proof", m, err)
			}
		})
	}
}
