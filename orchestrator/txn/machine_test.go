package txn

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"google.golang.org/protobuf/types/known/timestamppb"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

var epochStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// story drives one machine by the verbs of a script.
type story struct {
	rules  Rules
	state  State
	now    time.Time
	sent   map[string]time.Time // by host and call: when the newest was sent
	marked bool
	phase  Phase
}

// TestStories runs the scripts in testdata/machine. Each command prints the effects and, when it changes, the phase.
// Only commit a changed script if you understand what changed it, and want it.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/machine", func(t *testing.T, path string) {
		s := &story{rules: DefaultRules(), now: epochStart, sent: map[string]time.Time{}}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			return s.run(t, d)
		})
	})
}

func (s *story) run(t *testing.T, d *datadriven.TestData) string {
	arg := func(i int) string {
		if i >= len(d.CmdArgs) {
			t.Fatalf("%s: %s needs another argument", d.Pos, d.Cmd)
		}
		return d.CmdArgs[i].Key
	}
	option := func(key, def string) string {
		for _, a := range d.CmdArgs {
			if a.Key == key && len(a.Vals) > 0 {
				return a.Vals[0]
			}
		}
		return def
	}
	switch d.Cmd {
	case "begin": // begin HOST... [deadline=30s] [policy=all-but(1)]
		deadline, err := time.ParseDuration(option("deadline", "30s"))
		if err != nil {
			t.Fatal(err)
		}
		var hosts []Host
		for _, a := range d.CmdArgs {
			if len(a.Vals) == 0 {
				hosts = append(hosts, Host{Name: a.Key, Group: "public", Connected: true, CaughtUp: true})
			}
		}
		s.state = NewState("t1", "d1", s.now.Add(deadline), hosts, s.now)
		s.phase = s.state.Phase
		policy, err := ParsePolicy(option("policy", "all"))
		if err != nil {
			t.Fatal(err)
		}
		s.state.Policies = map[string]Policy{"public": policy}
		return s.state.Phase.String() + "\n"
	case "grant":
		return s.step(Granted{Order: 7})
	case "vote": // vote HOST CALL yes|no [reason=BUSY] [pid=1]
		call := s.call(arg(1))
		a := Answer{Host: arg(0), Call: call, SentAt: s.sent[arg(0)+arg(1)]}
		if arg(2) == "no" {
			a.Refusal = &lbagentv1.Refusal{Message: "as the script says",
				Reason: lbagentv1.RefusalReason(lbagentv1.RefusalReason_value["REFUSAL_REASON_"+option("reason", "UPSTREAM_NOT_GREEN")])}
		} else {
			a.Evidence = []*lbagentv1.Evidence{{App: "shop", ReadAt: timestamppb.New(s.now), Process: &lbagentv1.Process{WorkerPid: s.number(t, option("pid", "1"))}}}
		}
		return s.step(a)
	case "lose": // lose HOST: the outstanding call is not answered
		for _, h := range s.state.Hosts {
			if h.Name == arg(0) {
				return s.step(NoAnswer{Host: h.Name, Call: h.Call, Attempt: h.Attempt, Err: "connection reset"})
			}
		}
		t.Fatalf("%s: no such host", d.Pos)
	case "link": // link HOST up|down
		return s.step(HostLink{Host: arg(0), Connected: arg(1) == "up"})
	case "behind": // behind HOST yes|no
		return s.step(HostCaughtUp{Host: arg(0), OK: arg(1) == "no", Behind: "it does not hold the committed version yet"})
	case "report": // report HOST PHASE|fallback
		r := Reported{Host: arg(0), Fallback: arg(1) == "fallback"}
		r.Phase = lbagentv1.TxnPhase(lbagentv1.TxnPhase_value["TXN_PHASE_"+strings.ToUpper(arg(1))])
		return s.step(r)
	case "process": // process HOST PID
		return s.step(ProcessSeen{Host: arg(0), PID: s.number(t, arg(1)), At: s.now})
	case "mark":
		s.marked = true
		return s.step(MarkWritten{})
	case "decision": // decision written|refused
		if arg(0) == "written" {
			return s.step(DecisionWritten{At: s.now})
		}
		return s.step(WriteRefused{Cause: CauseBaseMismatch, Reason: "the committed state moved on"})
	case "abort":
		return s.step(AbortAsked{Cause: CauseAsked, Reason: "kim asked"})
	case "exclude": // exclude HOST [gone]
		return s.step(HostExcluded{Host: arg(0), Gone: d.HasArg("gone")})
	case "replaced":
		return s.step(Replaced{})
	case "tick": // tick DURATION
		by, err := time.ParseDuration(arg(0))
		if err != nil {
			t.Fatal(err)
		}
		s.now = s.now.Add(by)
		return s.step(Tick{})
	case "recover": // crash coordinator, and the next leader: recover [decided] [cause=host-refused]
		f := Found{Marked: s.marked, Decided: d.HasArg("decided"), CommittedAt: s.now}
		if c := option("cause", ""); c != "" {
			f.Aborted, f.Cause, f.Reason, f.Activate = true, Cause(c), "as saved", s.marked
		}
		old := s.state
		s.state = NewState(old.ID, old.Deploy, old.Deadline, old.Hosts, s.now)
		s.state.Order, s.state.Policies = old.Order, old.Policies
		s.state = s.rules.Recover(s.state, f, s.now)
		s.phase = 0
		return s.step(Tick{})
	case "status":
		return s.status()
	default:
		t.Fatalf("%s: unknown verb %q", d.Pos, d.Cmd)
	}
	return ""
}

func (s *story) number(t *testing.T, v string) int64 {
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (s *story) call(word string) Call {
	for c := CallNone; c <= CallAbort; c++ {
		if c.String() == word {
			return c
		}
	}
	return CallNone
}

func (s *story) step(ev Event) string {
	var effects []Effect
	s.state, effects = s.rules.Step(s.state, ev, s.now)
	var b strings.Builder
	for _, e := range effects {
		switch e := e.(type) {
		case Changed:
		case Send:
			s.sent[e.Host+e.Call.String()] = s.now
			fmt.Fprintf(&b, "-> %s %s\n", e.Host, strings.ToUpper(e.Call.String()))
		default:
			fmt.Fprintf(&b, "do %s\n", strings.TrimPrefix(fmt.Sprintf("%T", e), "txn."))
		}
	}
	if s.state.Phase != s.phase {
		s.phase = s.state.Phase
		fmt.Fprintf(&b, "%s", s.phase)
		if s.state.Cause != CauseNone {
			fmt.Fprintf(&b, " (%s: %s)", s.state.Cause, s.state.Reason)
		}
		b.WriteByte('\n')
	}
	if wake := s.rules.NextWake(s.state); !wake.IsZero() && b.Len() > 0 {
		fmt.Fprintf(&b, "wake in %v\n", wake.Sub(s.now))
	}
	if b.Len() == 0 {
		return "nothing\n"
	}
	return b.String()
}

func (s *story) status() string {
	st := s.rules.Status(s.state)
	var b strings.Builder
	fmt.Fprintf(&b, "%s order=%d", st.Phase, st.Order)
	if st.Cause != "" {
		fmt.Fprintf(&b, " cause=%s", st.Cause)
	}
	b.WriteByte('\n')
	for _, h := range st.Hosts {
		fmt.Fprintf(&b, "  %s %s", h.Host, h.Vote)
		if h.SentActivate {
			b.WriteString(" sent-activate")
		}
		if h.Unproven {
			b.WriteString(" unproven")
		}
		if h.Excluded {
			b.WriteString(" excluded")
		}
		if h.Reason != "" {
			fmt.Fprintf(&b, " (%s)", h.Reason)
		}
		b.WriteByte('\n')
	}
	if st.Next != "" {
		fmt.Fprintf(&b, "next: %s\n", st.Next)
	}
	return b.String()
}
