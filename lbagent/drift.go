package lbagent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cutover/cutover/internal/linediff"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// How long a look at everything on disk may take, and how much is told.
const (
	surveyTimeout  = 30 * time.Second
	mendTimeout    = 60 * time.Second
	maxDrifts      = 128      // of one Survey, in memory
	maxDiff        = 16 << 10 // bytes of one diff
	maxSectionDiff = 2 << 10  // of one diff in a Watch, at most maxShortDrifts of an App
	maxHostDiff    = 512      // the same of no App, which travels with every message
	maxShortDrifts = 4
)

// surveyLoop compares disk and journal, now and then and when a Mend has ended.
func (a *Agent) surveyLoop(ctx context.Context) {
	a.contract.begun(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-a.lookAgain:
		}
		began := time.Now()
		if err := a.survey(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("the files of the proxy could not be compared", "err", err)
		}
		timer.Reset(allPause(time.Since(began)))
	}
}

// survey makes one Survey and lets the machine see it.
func (a *Agent) survey(ctx context.Context) error {
	c, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	started := time.Now()
	found, err := a.opts.Driver.Survey(c)
	if err != nil {
		return err
	}
	a.m.surveys.Observe(time.Since(started).Seconds())
	ev := participant.Surveyed{Started: started}
	for _, d := range found {
		if len(ev.Drifts) == maxDrifts {
			ev.More = len(found) - maxDrifts
			break
		}
		ev.Drifts = append(ev.Drifts, driftOf(d))
	}
	a.sendAndWait(c, ev)
	return nil
}

// driftOf words a difference that a driver found.
func driftOf(d driver.Difference) participant.Drift {
	out := participant.Drift{App: d.App, Place: d.Place, Cause: participant.ForeignCommand, Manual: d.Base}
	switch {
	case d.File && d.Base:
		out.Cause, out.Summary = participant.ChangedBase, firstLine(d.Found)
		out.Diff = "+" + d.Found
		return out
	case d.Base:
		out.Cause, out.Summary = participant.EditedFile, firstLine(d.Found)
		out.Diff = "+" + d.Found
		return out
	case d.File && d.Missing:
		out.Cause, out.Summary = participant.EditedFile, "the file is missing"
	case d.File && d.Absent:
		out.Cause, out.Summary = participant.EditedFile, "the file is not Cutover's"
	case d.File:
		out.Cause, out.Summary = participant.EditedFile, "the file was changed"
	default:
		out.Summary = firstLine(d.Found)
	}
	if d.Loaded && d.File {
		out.Summary += ", and the running proxy may have loaded it so"
	}
	out.Diff = linediff.Unified(d.Place+" (wanted)", text(d.Wanted), d.Place+" (found)", text(d.Found), maxDiff)
	return out
}

func firstLine(s string) string {
	for i := range len(s) {
		if s[i] == '\n' {
			return text(s[:i])
		}
	}
	return text(s)
}

// mend lets the driver put right what the last Survey found, and looks again.
func (a *Agent) mend(ctx context.Context) {
	a.spawn(func() {
		c, cancel := context.WithTimeout(ctx, mendTimeout)
		begin := time.Now()
		err := a.opts.Driver.Mend(c)
		cancel()
		a.m.work.WithLabelValues("mend").Observe(time.Since(begin).Seconds())
		if err != nil && ctx.Err() == nil {
			a.m.workErrors.WithLabelValues("mend").Inc()
			a.log.Error("what somebody else changed cannot be put right", "err", err)
		}
		if a.send(ctx, input{event: participant.Mended{Err: err}}) {
			select {
			case a.lookAgain <- struct{}{}:
			default:
			}
		}
	})
}

// tellDrift logs and counts what the machine noticed or saw put right.
func (a *Agent) tellDrift(d participant.Drift, repaired bool) {
	attrs := []any{"app", d.App, "place", d.Place, "cause", d.Cause.String(), "difference", d.Summary}
	if repaired {
		a.m.repaired.WithLabelValues(d.Cause.String()).Inc()
		a.log.Info("a difference is gone", append(attrs, "after", d.Repaired.Sub(d.Since).String())...)
		return
	}
	a.log.Warn("this host differs from its journal", attrs...)
}

// driftGauge is the number of differences that stand, by cause, for /metrics.
func (a *Agent) driftGauge() map[string]float64 {
	out := map[string]float64{}
	for c := participant.EditedFile; c <= participant.Refused; c++ {
		out[c.String()] = 0
	}
	for _, d := range a.state.Load().Drifts() {
		out[d.Cause.String()]++
	}
	return out
}

// driftTo translates a difference, its diff cut at limit bytes.
func driftTo(d participant.Drift, limit int) *lbagentv1.Drift {
	out := &lbagentv1.Drift{App: d.App, Cause: lbagentv1.DriftCause(d.Cause), Since: timestamppb.New(d.Since), Place: text(d.Place),
		Summary: clipText(d.Summary, 1<<10), Diff: clipText(d.Diff, limit), Left: d.Left, Manual: d.Manual}
	if !d.Repaired.IsZero() {
		out.RepairedAt = timestamppb.New(d.Repaired)
	}
	return out
}

// shortDrifts are the first few of a list for a Watch.
func shortDrifts(list []participant.Drift, limit int) []*lbagentv1.Drift {
	var out []*lbagentv1.Drift
	for _, d := range list[:min(len(list), maxShortDrifts)] {
		out = append(out, driftTo(d, limit))
	}
	return out
}

func clipText(s string, limit int) string {
	if len(s) > limit {
		return text(s[:limit]) + fmt.Sprintf("\n(%d bytes are left out)\n", len(s)-limit)
	}
	return text(s)
}

func policyTo(p participant.Policy) lbagentv1.DriftPolicy {
	if p == participant.PolicyReport {
		return lbagentv1.DriftPolicy_DRIFT_POLICY_REPORT
	}
	return lbagentv1.DriftPolicy_DRIFT_POLICY_REPAIR
}

// policyOf reads the policy of a message; "" is no word on it.
func policyOf(p lbagentv1.DriftPolicy) (participant.Policy, error) {
	switch p {
	case lbagentv1.DriftPolicy_DRIFT_POLICY_UNSPECIFIED:
		return "", nil
	case lbagentv1.DriftPolicy_DRIFT_POLICY_REPAIR:
		return participant.PolicyRepair, nil
	case lbagentv1.DriftPolicy_DRIFT_POLICY_REPORT:
		return participant.PolicyReport, nil
	}
	return "", invalidf("drift policy %d is not known", p)
}

// showDrift looks at everything, for one caller: the proxy, and what is on disk.
func (a *Agent) showDrift(ctx context.Context) *lbagentv1.ShowResponse {
	readErr := a.readNow(ctx, nil)
	surveyErr := a.survey(ctx)
	st := a.state.Load()
	out := &lbagentv1.ShowResponse{Host: a.hostState(st), Policy: policyTo(st.Policy()), LeftOut: uint32(st.DriftsLeftOut())}
	for _, err := range []error{readErr, surveyErr} {
		told := func(problem string) bool { return strings.Contains(problem, text(err.Error())) }
		if err != nil && !slices.ContainsFunc(out.Host.Problems, told) {
			out.Host.Problems = append(out.Host.Problems, text(err.Error()))
		}
	}
	for _, d := range st.Drifts() {
		if len(out.Drifts) == 2*maxDrifts {
			out.LeftOut++
			continue
		}
		out.Drifts = append(out.Drifts, driftTo(d, maxDiff))
	}
	for _, d := range st.RecentRepairs() {
		out.Repaired = append(out.Repaired, driftTo(d, maxDiff))
	}
	return out
}
