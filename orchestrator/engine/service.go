package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/spec"
	"github.com/cutover/cutover/orchestrator/store"
)

// This file is what users can ask for: the changing half of the API's Service. A request is refused before anything is
// changed, or durable when it is answered.

var _ api.Service = (*Engine)(nil)

func invalid(problems ...deploy.Problem) *deploy.Refusal {
	detail := "the Spec was refused; nothing was changed"
	return &deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: detail, Problems: problems}
}

func refused(kind deploy.RefusalKind, format string, args ...any) *deploy.Refusal {
	return &deploy.Refusal{Kind: kind, Detail: fmt.Sprintf(format, args...)}
}

// refuse turns the engine's own errors into refusals.
func (e *Engine) refuse(err error) error {
	var r *deploy.Refusal
	switch {
	case err == nil, errors.As(err, &r), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	r = refused(deploy.RefusedUnavailable, "the orchestrator cannot answer now (%v): check that it runs, and try again", err)
	if errors.Is(err, ErrStopped) {
		r.RetryAfter = time.Second // the next term is on its way
	}
	return r
}

// Submit starts a Deploy of the Spec in source; of several, one for each in lock-step, and the View is of the whole.
func (e *Engine) Submit(ctx context.Context, source []byte, meta api.Meta) (deploy.View, error) {
	specs, problems := spec.ParseAll(source) // outside the loop: it may be large
	if len(problems) > 0 {
		return deploy.View{}, invalid(problems...)
	}
	if len(specs) > 1 {
		return e.requestAny(ctx, meta, func() (string, error) { return e.submitTogether(specs, meta) })
	}
	sp := specs[0]
	return e.request(ctx, meta, func() (*deployRecord, error) {
		if err := e.admissible(sp); err != nil {
			return nil, err
		}
		a := e.s.apps[sp.Name]
		if a == nil {
			if len(e.s.apps) >= e.opts.MaxApps {
				return nil, refused(deploy.RefusedState, "there are %d Apps already, which is the limit", len(e.s.apps))
			}
			a = &appRecord{Name: sp.Name, Kind: sp.Kind}
		}
		if err := e.lock(a); err != nil {
			return nil, err
		}
		if have, ok := e.s.specs.get(a.Name, a.Committed); ok && a.Committed != 0 && have.Digest() == sp.Digest() {
			return e.unchanged(a, deploy.KindDeploy, meta), nil
		}
		e.s.apps[a.Name] = a
		return e.newRevision(a, deploy.KindDeploy, sp, meta), nil
	})
}

// Validate checks a Spec as Submit would, and starts nothing.
func (e *Engine) Validate(ctx context.Context, source []byte) error {
	specs, problems := spec.ParseAll(source)
	if len(problems) > 0 {
		return invalid(problems...)
	}
	return e.refuse(e.do(ctx, func() error {
		if err := e.distinct(specs); err != nil {
			return err
		}
		for _, sp := range specs {
			if err := e.admissible(sp); err != nil {
				return err
			}
		}
		return nil
	}))
}

// Scale starts a Deploy of the committed Spec with another number of instances.
func (e *Engine) Scale(ctx context.Context, app string, instances int, meta api.Meta) (deploy.View, error) {
	if instances < 0 || instances > spec.MaxInstances {
		return deploy.View{}, refused(deploy.RefusedInvalid, "instances is %d: it must be from 0 to %d", instances, spec.MaxInstances)
	}
	return e.request(ctx, meta, func() (*deployRecord, error) {
		a, err := e.findApp(app)
		if err != nil {
			return nil, err
		}
		if err := e.lock(a); err != nil {
			return nil, err
		}
		sp, ok := e.s.specs.get(a.Name, a.Committed)
		if !ok || a.Committed == 0 {
			return nil, refused(deploy.RefusedState, "App %s has no committed Spec to scale: deploy or rollback brings it up", app)
		}
		if sp.Instances == instances {
			return e.unchanged(a, deploy.KindScale, meta), nil
		}
		return e.newRevision(a, deploy.KindScale, sp.WithInstances(instances), meta), nil
	})
}

// StopApp starts a Deploy that removes the App's Sections and routes and ends its tasks.
func (e *Engine) StopApp(ctx context.Context, app string, meta api.Meta) (deploy.View, error) {
	return e.request(ctx, meta, func() (*deployRecord, error) {
		a, err := e.findApp(app)
		if err != nil {
			return nil, err
		}
		if err := e.lock(a); err != nil {
			return nil, err
		}
		if a.Committed == 0 {
			if a.Stopped {
				return e.unchanged(a, deploy.KindStop, meta), nil
			}
			return nil, refused(deploy.RefusedState, "App %s was never deployed: there is nothing to stop", app)
		}
		sp, _ := e.s.specs.get(a.Name, a.Committed)
		d := e.newDeploy(a, deploy.KindStop, 0, sp, meta)
		e.open(a, d)
		return d, nil
	})
}

// Rollback goes to the Spec committed before the current one, or to the given one. While a Deploy is open it is its abort.
func (e *Engine) Rollback(ctx context.Context, app string, to uint64, meta api.Meta) (deploy.View, error) {
	return e.request(ctx, meta, func() (*deployRecord, error) {
		a, err := e.findApp(app)
		if err != nil {
			return nil, err
		}
		if a.Open != "" && (to == 0 || to == a.Committed) {
			return e.abort(a, deploy.Ask{Actor: meta.Actor, Reason: because(meta, "rollback"), Outcome: deploy.Aborted}), nil
		}
		target := to
		if target == 0 {
			if target = before(a); target == 0 {
				return nil, refused(deploy.RefusedInvalid, "App %s has no earlier committed Spec to roll back to", app)
			}
		}
		sp, ok := e.s.specs.get(a.Name, target)
		if !ok || !slices.Contains(a.History, target) {
			return nil, refused(deploy.RefusedInvalid, "spec %d of App %s was never committed, or is no longer kept", target, app)
		}
		if a.Open == "" && target == a.Committed {
			return e.unchanged(a, deploy.KindRollback, meta), nil
		}
		if err := e.routesFree(sp); err != nil {
			return nil, err
		}
		d := e.newDeploy(a, deploy.KindRollback, target, sp, meta)
		if a.Open == "" {
			e.open(a, d)
			return d, nil
		}
		e.behind(a, d, meta)
		return d, nil
	})
}

// before is the Spec committed before the current one, whatever made it; 0 if there is none.
func before(a *appRecord) uint64 {
	for i := len(a.History) - 1; i >= 0; i-- {
		if rev := a.History[i]; rev != 0 && rev != a.Committed {
			return rev
		}
	}
	return 0
}

// behind records a rollback that another Deploy is in the way of, and supersedes that one (ROLLBACK-IS-FREE).
func (e *Engine) behind(a *appRecord, d *deployRecord, meta api.Meta) {
	superseded := deploy.Ask{Actor: "rollback " + d.ID, Reason: because(meta, "rollback"), Outcome: deploy.Superseded}
	if a.Waiting != "" {
		w := e.s.deploys.get(a.Waiting)
		a.Waiting = ""
		e.feed(w, deploy.AbortAsked{Ask: superseded})
	}
	d.Behind, a.Waiting = a.Open, d.ID
	e.batch.apps[a.Name] = true
	e.feed(d, deploy.Start{})
	e.abortPeers(e.s.deploys.get(a.Open), superseded)
	e.feed(e.s.deploys.get(a.Open), deploy.AbortAsked{Ask: superseded})
}

// Abort takes a deploy id or the name of an App with an open Deploy.
func (e *Engine) Abort(ctx context.Context, ref string, meta api.Meta) (deploy.View, error) {
	return e.request(ctx, meta, func() (*deployRecord, error) {
		a := e.s.apps[ref]
		if a == nil {
			d, err := e.anyOf(ref)
			if err != nil {
				return nil, refused(deploy.RefusedNotFound, "there is no App and no Deploy %q", clip(ref))
			}
			a = e.s.apps[d.App]
			switch {
			case d.State == deploy.Succeeded:
				return nil, refused(deploy.RefusedState, "Deploy %s already succeeded, use rollback: cutover rollback %s", d.ID, d.App)
			case !d.Open():
				return nil, refused(deploy.RefusedState, "Deploy %s is %s already", d.ID, d.State)
			case d.ID == a.Waiting:
				a.Waiting = ""
				e.batch.apps[a.Name] = true
				e.feed(d, deploy.AbortAsked{Ask: deploy.Ask{Actor: meta.Actor, Reason: meta.Reason, Outcome: deploy.Aborted}})
				return d, nil
			}
		}
		if a.Open == "" {
			return nil, refused(deploy.RefusedState, "App %s has no open Deploy; to go back to the Spec before: cutover rollback %s", a.Name, a.Name)
		}
		return e.abort(a, deploy.Ask{Actor: meta.Actor, Reason: meta.Reason, Outcome: deploy.Aborted}), nil
	})
}

// abort gives up the open Deploy, and a rollback that waits behind it.
func (e *Engine) abort(a *appRecord, ask deploy.Ask) *deployRecord {
	if a.Waiting != "" {
		w := e.s.deploys.get(a.Waiting)
		a.Waiting = ""
		e.batch.apps[a.Name] = true
		e.feed(w, deploy.AbortAsked{Ask: ask})
	}
	d := e.s.deploys.get(a.Open)
	e.feed(d, deploy.AbortAsked{Ask: ask})
	e.abortPeers(d, ask)
	return d
}

func because(meta api.Meta, fallback string) string {
	if meta.Reason != "" {
		return meta.Reason
	}
	return fallback
}

// request runs a changing request once per idempotency key, and answers with the Deploy's View when all is durable.
func (e *Engine) request(ctx context.Context, meta api.Meta, f func() (*deployRecord, error)) (deploy.View, error) {
	return e.requestAny(ctx, meta, func() (string, error) {
		d, err := f()
		if err != nil {
			return "", err
		}
		return d.ID, nil
	})
}

// requestAny is request for what answers with a Deploy or with a lock-step.
func (e *Engine) requestAny(ctx context.Context, meta api.Meta, f func() (string, error)) (deploy.View, error) {
	var view deploy.View
	if e.frozen {
		return view, errFrozen()
	}
	err := e.do(ctx, func() error {
		key := ""
		if meta.IdempotencyKey != "" {
			sum := sha256.Sum256([]byte(meta.IdempotencyKey))
			key = hex.EncodeToString(sum[:])
			if rec, ok := e.s.idem[key]; ok {
				if rec.Digest != meta.BodyDigest {
					return refused(deploy.RefusedIdempotency, "the idempotency key was used for another request: choose a new key, or send the same body")
				}
				if v, ok := e.viewOf(rec.Deploy); ok {
					view = v
					return nil
				}
			}
		}
		id, err := f()
		if err != nil {
			return err
		}
		if key != "" {
			e.remember(key, idemRecord{Digest: meta.BodyDigest, Deploy: id, At: e.batch.now})
		}
		view, _ = e.viewOf(id)
		return nil
	})
	return view, e.refuse(err)
}

// remember keeps an idempotency key, and forgets the oldest of too many.
func (e *Engine) remember(key string, rec idemRecord) {
	e.s.idem[key] = rec
	e.batch.idem[key] = true
	for len(e.s.idem) > keepKeys {
		oldest, at := "", time.Time{}
		for k, r := range e.s.idem {
			if oldest == "" || r.At.Before(at) {
				oldest, at = k, r.At
			}
		}
		delete(e.s.idem, oldest)
		e.batch.idem[oldest] = true
	}
}

// anyOf is a Deploy by its id, or one of a lock-step: an open one if there is any.
func (e *Engine) anyOf(id string) (*deployRecord, error) {
	peers := e.peers(id)
	for _, d := range peers {
		if d.Open() {
			return d, nil
		}
	}
	if len(peers) > 0 {
		return peers[0], nil
	}
	return e.findDeploy(id)
}

func (e *Engine) findApp(name string) (*appRecord, error) {
	if a := e.s.apps[name]; a != nil {
		return a, nil
	}
	return nil, refused(deploy.RefusedNotFound, "there is no App %q", clip(name))
}

func (e *Engine) findDeploy(id string) (*deployRecord, error) {
	if d := e.s.deploys.get(id); d != nil {
		return d, nil
	}
	return nil, refused(deploy.RefusedNotFound, "there is no Deploy %q, or it is no longer kept", clip(id))
}

// lock refuses a second Deploy of an App, naming the open one.
func (e *Engine) lock(a *appRecord) error {
	if a.Open == "" {
		return nil
	}
	r := refused(deploy.RefusedLocked, "Deploy %s of App %s is in progress: wait for it, or abort it with: cutover abort %s", a.Open, a.Name, a.Open)
	r.OpenDeploy = a.Open
	return r
}

// admissible checks what a Spec alone cannot know: Groups and other Apps' routes.
func (e *Engine) admissible(sp spec.Spec) error {
	known := e.ports.Coordinator.Groups()
	var problems []deploy.Problem
	for _, g := range sp.Groups() {
		if !slices.Contains(known, g) {
			names := slices.Sorted(slices.Values(known))
			problems = append(problems, deploy.Problem{
				Field: "routes", Reason: fmt.Sprintf("there is no group %q: known are %s", g, strings.Join(names, ", ")),
			})
		}
	}
	if len(problems) > 0 {
		return invalid(problems...)
	}
	return e.routesFree(sp)
}

// routesFree refuses routes that another App has, committed or in an open Deploy.
func (e *Engine) routesFree(sp spec.Spec) error {
	want := map[string]spec.Route{}
	for _, r := range sp.Routes {
		want[r.Key()] = r
	}
	var problems []deploy.Problem
	check := func(a *appRecord, rev uint64) {
		other, ok := e.s.specs.get(a.Name, rev)
		if !ok || rev == 0 {
			return
		}
		for _, r := range other.Routes {
			if _, clash := want[r.Key()]; clash {
				delete(want, r.Key())
				problems = append(problems, deploy.Problem{
					Field: "routes", Reason: fmt.Sprintf("route %s of App %s belongs to App %s (spec %d)", r, sp.Name, a.Name, rev),
				})
			}
		}
	}
	for _, name := range sortedKeys(e.s.apps) {
		a := e.s.apps[name]
		if name == sp.Name {
			continue
		}
		check(a, a.Committed)
		for _, id := range []string{a.Open, a.Waiting} {
			if d := e.s.deploys.get(id); d != nil {
				check(a, d.Spec)
			}
		}
	}
	if len(problems) > 0 {
		return invalid(problems...)
	}
	return nil
}

// newRevision stores a Spec as the App's next revision and starts a Deploy of it.
func (e *Engine) newRevision(a *appRecord, kind deploy.Kind, sp spec.Spec, meta api.Meta) *deployRecord {
	d := e.record(a, kind, sp, sp, meta)
	e.open(a, d)
	return d
}

// record stores a Spec as the App's next revision and a pending Deploy of it, under the policy of another Spec.
func (e *Engine) record(a *appRecord, kind deploy.Kind, sp, policy spec.Spec, meta api.Meta) *deployRecord {
	a.LastSpec++
	e.s.specs.put(a.Name, a.LastSpec, sp)
	e.batch.early = append(e.batch.early, store.Op{Kind: store.Put, Key: keySpec(a.Name, a.LastSpec), Value: sp.Canonical()})
	return e.newDeploy(a, kind, a.LastSpec, policy, meta)
}

// newDeploy records a pending Deploy.
func (e *Engine) newDeploy(a *appRecord, kind deploy.Kind, rev uint64, sp spec.Spec, meta api.Meta) *deployRecord {
	now := e.batch.now
	d := &deployRecord{Deploy: deploy.Deploy{
		ID: e.newID(), App: a.Name, Kind: kind, Spec: rev, FromSpec: a.Committed, Version: sp.Version, Actor: meta.Actor, Why: meta.Reason,
		Policy: deploy.Policy{
			Deadline: time.Duration(sp.Deploy.Deadline), Drain: time.Duration(sp.Deploy.Drain), KillGrace: time.Duration(sp.Kill.Grace),
			Check: sp.Health.String(),
		},
		Step: deploy.StepPending, State: deploy.Running, Code: deploy.CodeRunning, Reason: "accepted",
		StartedAt: now, StepAt: now, Deadline: now.Add(time.Duration(sp.Deploy.Deadline)),
		Steps: []deploy.StepRecord{{Step: string(deploy.StepPending), At: now}},
	}}
	e.s.deploys.put(d)
	e.s.active[d.ID] = true
	e.batch.deploys[d.ID] = true
	a.Deploys = append(a.Deploys, d.ID)
	a.UpdatedAt = now
	e.batch.apps[a.Name] = true
	view := e.view(d)
	e.emit(d, deploy.Event{Type: "step", Step: string(deploy.StepPending), Msg: fmt.Sprintf("%s of %s accepted from %s", kind, a.Name, meta.Actor)}, &view)
	return d
}

// open makes the Deploy the App's open one and starts it.
func (e *Engine) open(a *appRecord, d *deployRecord) {
	a.Open = d.ID
	e.retarget(a, d)
	e.feed(d, deploy.Start{})
}

// unchanged records a Deploy that is done as it is made: the committed state, with its proof, is what was asked for. Its
// reason is the bare word that scripts look for.
func (e *Engine) unchanged(a *appRecord, kind deploy.Kind, meta api.Meta) *deployRecord {
	sp, _ := e.s.specs.get(a.Name, a.Committed)
	d := e.newDeploy(a, kind, a.Committed, sp, meta)
	d.Step, d.State, d.Code, d.Reason = deploy.StepDone, deploy.Succeeded, deploy.CodeUnchanged, string(deploy.CodeUnchanged)
	d.FinishedAt, d.OldGone = e.batch.now, true
	if by := e.s.deploys.get(a.CommittedBy); by != nil {
		d.Txn, d.Generation, d.Hosts, d.CommittedAt = by.Txn, by.Generation, by.Hosts, by.CommittedAt
	}
	d.Steps = append(d.Steps, deploy.StepRecord{Step: string(deploy.StepDone), At: e.batch.now})
	delete(e.s.active, d.ID)
	view := e.view(d)
	e.emit(d, deploy.Event{Type: "end", Step: string(deploy.StepDone), Code: string(d.Code), Msg: "unchanged: what is committed is what was asked for"}, &view)
	e.metrics.ended(d.Deploy)
	return d
}

func clip(s string) string {
	if len(s) > 100 {
		s = s[:100] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
