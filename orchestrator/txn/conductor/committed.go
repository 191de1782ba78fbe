package conductor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// This file is the decision log as others are rebuilt from it. The newest Commit of each App is kept as long as there is no
// newer one, so that an engine whose own records are lost finds what every App consists of.

// Committed returns what is committed of every App, in order of name.
func (c *Conductor) Committed(ctx context.Context) ([]txn.CommittedApp, error) {
	var out []txn.CommittedApp
	err := c.ask(ctx, func() {
		byApp := map[string]*txn.CommittedApp{}
		of := func(app string) *txn.CommittedApp {
			if byApp[app] == nil {
				byApp[app] = &txn.CommittedApp{App: app, Sections: map[string]*lbagentv1.Section{}}
			}
			return byApp[app]
		}
		newest := func(app, id string, order uint64) {
			if a := of(app); a.Txn == "" || order > a.Order {
				a.Txn, a.Order = id, order
			}
		}
		for app, id := range c.past.newest {
			newest(app, id, c.past.byID[id].Status.Order)
		}
		for _, o := range c.txns {
			if o.state.Phase != txn.Committed {
				continue
			}
			for _, p := range o.parts() {
				newest(p.app, p.id, o.state.Order)
			}
		}
		for key, s := range c.sections {
			if s.committed.GetRemoved() {
				continue
			}
			of(key.App).Sections[key.Group] = s.committed.GetSection()
		}
		for _, app := range slices.Sorted(maps.Keys(byApp)) {
			if app != "" {
				out = append(out, *byApp[app])
			}
		}
	})
	return out, err
}

// Decision reads a Commit record; false: there is none.
func (c *Conductor) Decision(ctx context.Context, id string) (txn.Decision, bool, error) {
	rec, err := c.opts.Store.Get(ctx, prefixDecision+id)
	if errors.Is(err, store.ErrNotFound) {
		return txn.Decision{}, false, nil
	}
	if err != nil {
		return txn.Decision{}, false, fmt.Errorf("decision of %s: %w", id, err)
	}
	var d decisionRecord
	if err := decode(rec.Key, rec.Value, &d); err != nil {
		return txn.Decision{}, false, err
	}
	return txn.Decision{
		ID: d.ID, Deploy: d.Deploy, App: d.App, Order: d.Order, CommittedAt: d.CommittedAt, Actor: d.Actor, Reason: d.Reason, Record: d.Record,
	}, true, nil
}
