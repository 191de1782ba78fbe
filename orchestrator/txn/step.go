package txn

import (
	"fmt"
	"slices"
	"strings"
	"time"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// step is one Step in progress.
type step struct {
	State
	rules   Rules
	now     time.Time
	effects []Effect
	changed bool
}

func (s *step) emit(e Effect) { s.effects = append(s.effects, e) }

func (s *step) host(name string) *Host {
	for i := range s.Hosts {
		if s.Hosts[i].Name == name {
			return &s.Hosts[i]
		}
	}
	return nil
}

// undecided: an abort is still possible.
func (s *step) undecided() bool {
	return s.Phase == Waiting || s.Phase == Preparing || s.Phase == Activating
}

func (s *step) apply(ev Event) {
	switch ev := ev.(type) {
	case Granted:
		if s.Phase == Waiting {
			s.Order = ev.Order
			if len(s.Hosts) == 0 {
				s.becomeDeciding()
			} else {
				s.becomePreparing()
			}
		}
	case AbortAsked:
		if s.undecided() {
			s.becomeAborting(ev.Cause, ev.Reason)
		} else if s.Phase == Deciding {
			s.doubt(ev.Cause, ev.Reason)
		}
	case HostExcluded:
		if h := s.host(ev.Host); h != nil && (!h.Excluded || ev.Gone && !h.Done) {
			h.Excluded = true
			h.Done = h.Done || ev.Gone
			s.changed = true
		}
	case Replaced:
		if s.aborted() {
			s.abortAgain()
		}
	case MarkWritten:
		if s.Phase == Preparing && s.Marking {
			s.Marking, s.Marked = false, true // advance goes on, if all are still Ready
		}
	case DecisionWritten:
		if s.Phase == Deciding {
			s.becomeCommitted(ev.At)
		}
	case WriteRefused:
		// Only when the store said that nothing was written: an unknown outcome ends the term instead.
		if s.Phase == Deciding || (s.Phase == Preparing && s.Marking) {
			s.becomeAborting(ev.Cause, ev.Reason)
		}
	case HostLink:
		if h := s.host(ev.Host); h != nil {
			s.link(h, ev.Connected)
		}
	case HostTrouble:
		if h := s.host(ev.Host); h != nil && h.Trouble != ev.Trouble {
			h.Trouble = ev.Trouble
			if ev.Why != "" && !h.Connected {
				h.Reason = ev.Why
			}
			s.changed = s.changed || s.Phase == StuckRestoring
		}
	case HostRetry:
		if h := s.host(ev.Host); h != nil && !h.Done && (s.aborted() || s.Phase == Committed) {
			h.Call, h.Tries, h.RetryAt = CallNone, 0, time.Time{}
		}
	case HostCaughtUp:
		if h := s.host(ev.Host); h != nil {
			h.CaughtUp, h.Behind = ev.OK, ev.Behind
		}
	case Answer:
		if h := s.host(ev.Host); h != nil {
			s.answer(h, ev)
		}
	case NoAnswer:
		if h := s.host(ev.Host); h != nil && h.Call == ev.Call && h.Attempt == ev.Attempt {
			h.Reason = fmt.Sprintf("%s was not answered: %s", ev.Call, ev.Err)
			s.retry(h)
		}
	case Reported:
		if h := s.host(ev.Host); h != nil {
			s.reported(h, ev)
		}
	case ProcessSeen:
		if h := s.host(ev.Host); h != nil && ev.PID != 0 && ev.At.After(h.SeenAt) {
			h.SeenPID, h.SeenAt = ev.PID, ev.At
			if h.Vote == VoteVerified && s.otherProcess(h) {
				s.stale(h)
			}
		}
	}
}

// otherProcess: the proxy that the newest Verified speaks of has been replaced since. What it reported does not count.
func (s *step) otherProcess(h *Host) bool {
	return h.SeenPID != 0 && h.SeenPID != h.PID && h.SeenAt.After(h.ReadAt)
}

// link notes that the Watch stream of h stands or fell. After a new one everything outstanding is sent again: calls are
// idempotent, and the agent may be another process that never got them.
func (s *step) link(h *Host, connected bool) {
	if h.Connected == connected {
		return
	}
	h.Connected = connected
	if !connected {
		return
	}
	if h.Trouble != TroubleNone {
		h.Trouble = TroubleNone
		s.changed = s.changed || s.Phase == StuckRestoring
	}
	h.Call, h.Tries, h.RetryAt = CallNone, 0, time.Time{}
	switch {
	case s.Phase == Preparing && h.Vote == VoteReady:
		// Until Activate an agent that restarts may abort by itself: ask again instead of finding out with Activate.
		s.vote(h, VoteNone)
	case s.Phase == Activating && h.Vote == VoteVerified:
		s.stale(h)
	}
}

// stale: the newest Verified of h does not count any longer, nor does an answer that is still on its way.
func (s *step) stale(h *Host) {
	h.FreshAt, h.NotBefore = time.Time{}, s.now
	if h.Call == CallVerify {
		h.Call, h.Tries, h.RetryAt = CallNone, 0, time.Time{}
	}
}

func (s *step) vote(h *Host, v Vote) {
	h.Vote = v
	s.changed = true
}

// answer takes what h answered. Answers of an earlier phase are late and say nothing about this one.
func (s *step) answer(h *Host, a Answer) {
	if h.Call == a.Call {
		h.Call = CallNone
	}
	if h.Unproven && s.undecided() {
		return // it was given up: the Commit does without it
	}
	if a.Refusal != nil {
		s.refused(h, a)
		return
	}
	h.Tries, h.RetryAt = 0, time.Time{}
	switch {
	case a.Call == CallPrepare && s.Phase == Preparing:
		h.DownSince = time.Time{}
		if h.Vote == VoteNone {
			h.Reason, h.Refusal, h.Evidence = "", nil, a.Evidence
			s.vote(h, VoteReady)
		}
	case (a.Call == CallActivate || a.Call == CallVerify) && s.Phase == Activating:
		if a.SentAt.Before(h.NotBefore) {
			return
		}
		if h.Vote != VoteVerified {
			s.vote(h, VoteVerified)
		}
		if a.SentAt.After(h.FreshAt) {
			h.FreshAt = a.SentAt
			h.Reason, h.Refusal, h.Evidence = "", nil, a.Evidence
			h.PID, h.ReadAt = 0, time.Time{}
			for _, e := range a.Evidence {
				h.PID = e.GetProcess().GetWorkerPid()
				if at := e.GetReadAt().AsTime(); at.After(h.ReadAt) {
					h.ReadAt = at
				}
			}
			if s.otherProcess(h) {
				s.stale(h) // the report has overtaken this answer
			}
		}
	case a.Call == CallCommit && s.Phase == Committed:
		h.Done, h.Reason, h.Refusal = true, "", nil
	case a.Call == CallAbort && s.aborted():
		if !h.Done {
			h.Done, h.Reason = true, ""
			if h.Vote == VoteFailed {
				// The vote that explains the outcome stays; the evidence is of the restored Sections.
				h.Reason = refusalText(h.Refusal)
			} else {
				h.Vote = VoteAborted
			}
			h.Evidence = a.Evidence
			s.changed = true
		}
	}
}

func (s *step) aborted() bool {
	return s.Phase == Restoring || s.Phase == StuckRestoring || s.Phase == RolledBack
}

// refused takes a typed no.
func (s *step) refused(h *Host, a Answer) {
	text := refusalText(a.Refusal)
	busy := a.Refusal.GetReason() == lbagentv1.RefusalReason_REFUSAL_REASON_BUSY
	switch {
	case (a.Call == CallPrepare && s.Phase == Preparing) || ((a.Call == CallActivate || a.Call == CallVerify) && s.Phase == Activating):
		h.Refusal, h.Reason = a.Refusal, text
		if busy {
			// A Host's lock is only a check: it never fails a transaction, the deadline does.
			s.retry(h)
			return
		}
		if a.Call == CallPrepare && s.proxyMayComeBack(h, a.Refusal) {
			s.retry(h)
			return
		}
		if a.SentAt.Before(h.NotBefore) {
			return // The question is about to be asked again.
		}
		cause, verb := CauseHostRefused, map[Call]string{CallPrepare: "refused to prepare", CallActivate: "failed to activate"}[a.Call]
		if a.Call == CallVerify {
			cause, verb = CauseHostLapsed, "was verified and is no longer"
		}
		h.Vote, h.Evidence = VoteFailed, a.Evidence
		s.becomeAborting(cause, fmt.Sprintf("host %s %s: %s", h.Name, verb, text))
	case (a.Call == CallCommit && s.Phase == Committed) || (a.Call == CallAbort && s.aborted()):
		if h.Done {
			return
		}
		if h.Reason != text {
			h.Reason = text
			s.changed = true
		}
		h.Unrestored = a.Refusal // apart from the one that explains the abort
		s.retry(h)
	}
}

// proxyMayComeBack: the Host cannot prepare since its proxy is down, which is no fault of the transaction, and not for long yet.
func (s *step) proxyMayComeBack(h *Host, r *lbagentv1.Refusal) bool {
	if r.GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_PROXY_DOWN {
		return false
	}
	if h.DownSince.IsZero() {
		h.DownSince = s.now
	}
	return s.now.Sub(h.DownSince) < s.rules.ProxyWait
}

// reported takes what the Host says of the transaction by itself.
func (s *step) reported(h *Host, r Reported) {
	if (s.Phase != Preparing && s.Phase != Activating && s.Phase != Deciding) || h.Unproven {
		return
	}
	fail := func(cause Cause, what string) {
		if s.Phase == Deciding {
			// The votes stay: the record may be on its way with them.
			s.doubt(cause, strings.TrimSuffix(fmt.Sprintf("host %s %s: %s", h.Name, what, refusalText(r.Refusal)), ": "))
			return
		}
		h.Vote, h.Refusal, h.Reason = VoteFailed, r.Refusal, refusalText(r.Refusal)
		if len(r.Evidence) > 0 {
			h.Evidence = r.Evidence
		}
		s.becomeAborting(cause, strings.TrimSuffix(fmt.Sprintf("host %s %s: %s", h.Name, what, h.Reason), ": "))
	}
	switch {
	case r.Fallback:
		fail(CauseHostFallback, "serves the old upstreams again, since none of the new ones can serve there")
	case r.Phase == lbagentv1.TxnPhase_TXN_PHASE_LAPSED:
		fail(CauseHostLapsed, "was verified and is no longer")
	case r.Phase == lbagentv1.TxnPhase_TXN_PHASE_FAILED:
		fail(CauseHostRefused, "failed to activate")
	case r.Phase == lbagentv1.TxnPhase_TXN_PHASE_RESTORING, r.Phase == lbagentv1.TxnPhase_TXN_PHASE_RESTORE_FAILED:
		fail(CauseHostRefused, "has begun to restore by itself")
	}
}

// doubt keeps the first reason.
func (s *step) doubt(cause Cause, reason string) {
	if s.Doubt.Cause == CauseNone {
		s.Doubt = Doubt{cause, reason}
	}
}

// retry holds back the next sending, longer each time.
func (s *step) retry(h *Host) {
	h.Call = CallNone
	pause := s.rules.RetryMax
	if h.Tries < 16 {
		pause = min(pause, s.rules.RetryMin<<h.Tries)
	}
	h.Tries++
	h.RetryAt = s.now.Add(pause)
}

func (s *step) become(p Phase) {
	s.Phase = p
	s.changed = true
	for i := range s.Hosts {
		h := &s.Hosts[i]
		h.Call, h.Tries, h.RetryAt = CallNone, 0, time.Time{}
	}
}

func (s *step) becomePreparing() { s.become(Preparing) }

func (s *step) becomeActivating() { s.become(Activating) }

func (s *step) becomeDeciding() {
	s.Doubt = Doubt{}
	s.become(Deciding)
	s.emit(WriteDecision{})
}

func (s *step) becomeCommitted(at time.Time) {
	s.CommittedAt = at
	for i := range s.Hosts {
		// One that never heard of the transaction has nothing to be told: it is synced past it.
		if h := &s.Hosts[i]; h.Unproven && !h.SentPrepare {
			h.Done = true
		}
	}
	s.become(Committed)
	s.emit(Unlock{})
}

// becomeAborting is the only way out before the decision. Hosts that were never told anything need not hear of it.
func (s *step) becomeAborting(cause Cause, reason string) {
	s.Cause, s.Reason, s.Marking = cause, reason, false
	told := false
	for i := range s.Hosts {
		h := &s.Hosts[i]
		h.Done = !h.SentPrepare
		told = told || h.SentPrepare
	}
	if told {
		s.emit(SaveAbort{})
	}
	s.RestoreBy = s.now.Add(s.rules.Restore)
	if slices.ContainsFunc(s.Hosts, func(h Host) bool { return h.SentPrepare && !h.SentActivate }) {
		s.TidyBy = s.now.Add(min(s.rules.Tidy, s.rules.Restore)) // it never makes a transaction stuck
	}
	if s.restored() {
		s.become(RolledBack)
		s.emit(Unlock{})
	} else {
		s.become(Restoring)
	}
}

// abortAgain makes every Host that has to restore and has not be told at once, with what the Abort carries now. The
// restore deadline stays: replacements that keep dying must not put it off for ever (EVERY-STATE-ENDS).
func (s *step) abortAgain() {
	for i := range s.Hosts {
		if h := &s.Hosts[i]; h.SentActivate && !h.Done {
			h.Call, h.Tries, h.RetryAt = CallNone, 0, time.Time{}
		}
	}
}

// restored: every Host that was sent Activate has answered Aborted, or is proven out of traffic (UNDO).
func (s *step) restored() bool {
	for _, h := range s.Hosts {
		if h.Done || h.Excluded {
			continue
		}
		if h.SentActivate || (h.SentPrepare && h.Connected && s.now.Before(s.TidyBy)) {
			return false
		}
	}
	return true
}

func (s *step) all(ok func(*Host) bool) bool {
	for i := range s.Hosts {
		if !ok(&s.Hosts[i]) {
			return false
		}
	}
	return true
}

// proved asks it of every Host that was not given up. Those are never all of a Group (Policy.Spares).
func (s *step) proved(ok func(*Host) bool) bool {
	return s.all(func(h *Host) bool { return h.Unproven || ok(h) })
}

// spare: the policy of the Host's Group permits that it is missing too.
func (s *step) spare(h *Host) bool {
	members, missing := 0, 0
	for _, o := range s.Hosts {
		if o.Group == h.Group {
			members++
			if o.Unproven {
				missing++
			}
		}
	}
	return missing < s.Policies[h.Group].Spares(members)
}

// advance does what the state calls for now: give up, go on, send.
func (s *step) advance() {
	s.watchAway()
	if s.undecided() && !s.now.Before(s.Deadline) {
		s.expire()
	}
	switch s.Phase {
	case Preparing:
		for i := range s.Hosts {
			h := &s.Hosts[i]
			if h.Vote == VoteNone && !h.Unproven && h.Connected && (h.CaughtUp || h.SentPrepare) {
				h.SentPrepare = s.want(h, CallPrepare) || h.SentPrepare
			}
		}
		ready := s.proved(func(h *Host) bool { return h.Vote == VoteReady && h.Connected })
		switch {
		case ready && s.Marked:
			s.becomeActivating()
			s.advanceActivating()
		case ready && !s.Marking:
			s.Marking = true
			s.emit(WriteMark{})
		}
	case Activating:
		s.advanceActivating()
	case Committed:
		for i := range s.Hosts {
			if h := &s.Hosts[i]; !h.Done {
				s.want(h, CallCommit)
			}
		}
		s.finishIfTold()
	case Restoring, StuckRestoring, RolledBack:
		if !s.now.Before(s.TidyBy) {
			s.TidyBy = time.Time{}
		}
		if s.Phase != RolledBack && s.restored() {
			s.become(RolledBack)
			s.emit(Unlock{})
		}
		if s.Phase == Restoring && !s.now.Before(s.RestoreBy) {
			s.become(StuckRestoring)
		}
		for i := range s.Hosts {
			if h := &s.Hosts[i]; !h.Done {
				s.want(h, CallAbort)
			}
		}
		if s.Phase == RolledBack {
			s.finishIfTold()
		}
	case Waiting, Deciding: // only an event moves it on
	}
}

func (s *step) advanceActivating() {
	if s.proved(func(h *Host) bool { return h.Vote == VoteVerified }) {
		if s.proved(func(h *Host) bool { return s.age(h) <= s.rules.Fresh }) {
			s.becomeDeciding()
			return
		}
		for i := range s.Hosts {
			// With one that is too old, also ask those that soon will be: then all answers of this round count together.
			if h := &s.Hosts[i]; !h.Unproven && s.age(h) > s.rules.Fresh/2 {
				s.want(h, CallVerify)
			}
		}
		return
	}
	for i := range s.Hosts {
		if h := &s.Hosts[i]; h.Vote == VoteReady && !h.Unproven {
			s.want(h, CallActivate)
			h.SentActivate = true
		}
	}
}

// age of the newest Verified that counts.
func (s *step) age(h *Host) time.Duration {
	if h.FreshAt.IsZero() {
		return time.Duration(1<<63 - 1)
	}
	return s.now.Sub(h.FreshAt)
}

func (s *step) finishIfTold() {
	if !s.Finished && s.all(func(h *Host) bool { return h.Done }) {
		s.Finished = true
		s.emit(Finish{})
	}
}

// want sends the call unless it is on its way or held back.
func (s *step) want(h *Host, c Call) bool {
	if h.Call == c || s.now.Before(h.RetryAt) {
		return false
	}
	h.Call, h.RetryAt = c, time.Time{}
	h.Attempt++
	s.emit(Send{Host: h.Name, Call: c, Attempt: h.Attempt})
	return true
}

// watchAway notes since when a Host is missed, and gives up on one that is missed for too long.
func (s *step) watchAway() {
	if s.Phase != Preparing && s.Phase != Activating {
		return
	}
	for i := range s.Hosts {
		h := &s.Hosts[i]
		if h.Unproven {
			continue
		}
		if h.Connected && (h.CaughtUp || h.SentPrepare) {
			h.AwaySince = time.Time{}
			continue
		}
		if h.AwaySince.IsZero() {
			h.AwaySince = s.now
		}
		switch {
		case s.now.Sub(h.AwaySince) < s.rules.HostWait:
		case s.spare(h):
			h.Unproven, h.Reason, h.AwaySince = true, s.missing(h), time.Time{}
			h.Call, h.Tries, h.RetryAt = CallNone, 0, time.Time{}
			s.changed = true
		default:
			s.becomeAborting(CauseHostMissing, s.missing(h))
			return
		}
	}
}

// expire aborts at the deadline and says who was waited for.
func (s *step) expire() {
	if s.Phase == Waiting {
		s.becomeAborting(CauseDeadline, "the deadline passed while an earlier transaction held the Section")
		return
	}
	var silent, busy []string
	for i := range s.Hosts {
		h := &s.Hosts[i]
		switch {
		case !h.AwaySince.IsZero():
			s.becomeAborting(CauseHostMissing, s.missing(h))
			return
		case h.Call != CallNone:
			silent = append(silent, h.Name)
		case h.Reason != "":
			busy = append(busy, h.Name+" ("+h.Reason+")")
		}
	}
	what := map[Phase]string{Preparing: "prepare", Activating: "activate"}[s.Phase]
	switch {
	case len(silent) > 0:
		s.becomeAborting(CauseHostMissing, fmt.Sprintf("the deadline passed and no answer to %s came from %s: see `cutover lb hosts`", what, strings.Join(silent, ", ")))
	case len(busy) > 0:
		s.becomeAborting(CauseDeadline, fmt.Sprintf("the deadline passed during %s; last heard: %s", what, strings.Join(busy, ", ")))
	default:
		s.becomeAborting(CauseDeadline, fmt.Sprintf("the deadline passed during %s", what))
	}
}

// missing says which Host is missed and what to run.
func (s *step) missing(h *Host) string {
	if h.Connected {
		return fmt.Sprintf("host %s of group %s is connected but not up to date: %s; see `cutover lb show %s`", h.Name, h.Group, h.Behind, h.Name)
	}
	return fmt.Sprintf("host %s of group %s is not connected: see `cutover lb hosts`, and start its lbagent with `%s`, or kill -9 it if it hangs", h.Name, h.Group, s.rules.StartCommand(h.Name))
}

// refusalText is a refusal in words: the reason, the upstream, what the Host said.
func refusalText(r *lbagentv1.Refusal) string {
	if r == nil {
		return ""
	}
	parts := []string{RefusalWord(r.GetReason())}
	for _, p := range []string{r.GetUpstream(), r.GetMessage()} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, ": ")
}

// RefusalWord is the reason in the words that users see, for example "upstream-not-green".
func RefusalWord(r lbagentv1.RefusalReason) string {
	word := strings.TrimPrefix(r.String(), "REFUSAL_REASON_")
	return strings.ToLower(strings.ReplaceAll(word, "_", "-"))
}
