package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/cutover/cutover/orchestrator/spec"
	"github.com/cutover/cutover/orchestrator/store"
)

// This file reads the engine's part of the store at the begin of a term: with 1,000 Apps most of the time until open Deploys
// move again is spent here.

// load reads the state. Deploys that are done and tasks that are over are not decoded: see keptDeploys and keptTasks.
func load(ctx context.Context, st store.Store, log *slog.Logger) (*state, error) {
	s := newState(log)
	type revision struct {
		number uint64
		spec   spec.Spec
	}
	// Of these two either the record was read, or it is kept as it is stored.
	type deployOrValue struct {
		deploy *deployRecord
		value  []byte
	}
	type taskOrValue struct {
		task  *taskRecord
		value []byte
	}
	reading, ctx := errgroup.WithContext(ctx)
	return s, atOnce(reading,
		func() (func(), error) {
			return loadAll(ctx, st, prefixApp, decodeJSON[appRecord], func(_ string, a *appRecord) { s.apps[a.Name] = a })
		},
		func() (func(), error) {
			return loadAll(ctx, st, prefixSpec, func(key string, value []byte) (r revision, err error) {
				if r.number, err = strconv.ParseUint(key[strings.LastIndex(key, "/")+1:], 10, 64); err != nil {
					return r, err
				}
				return r, json.Unmarshal(value, &r.spec)
			}, func(_ string, r revision) { s.specs.put(r.spec.Name, r.number, r.spec) })
		},
		func() (func(), error) {
			return loadAll(ctx, st, prefixDeploy, func(_ string, value []byte) (d deployOrValue, err error) {
				d.deploy, err = readDeploy(value)
				d.value = value
				return d, err
			}, func(key string, d deployOrValue) {
				if d.deploy == nil {
					s.deploys.putStored(strings.TrimPrefix(key, prefixDeploy), d.value)
					return
				}
				s.deploys.put(d.deploy)
				s.active[d.deploy.ID] = true
			})
		},
		func() (func(), error) {
			return loadAll(ctx, st, prefixTask, func(key string, value []byte) (t taskOrValue, err error) {
				if isOver(value) {
					t.value = value
					return t, nil
				}
				t.task, err = decodeJSON[taskRecord](key, value)
				return t, err
			}, func(key string, t taskOrValue) {
				if t.task != nil {
					s.addTask(t.task)
					return
				}
				s.over.put(strings.TrimPrefix(key, prefixTask), t.value)
			})
		},
		func() (func(), error) {
			return loadAll(ctx, st, prefixAmend, decodeJSON[amendRecord], func(_ string, a *amendRecord) { s.amends[a.ID] = a })
		},
		func() (func(), error) {
			return loadAll(ctx, st, prefixStep, decodeJSON[lockstepRecord], func(_ string, l *lockstepRecord) { s.locksteps[l.ID] = l })
		},
		func() (func(), error) {
			return loadAll(ctx, st, prefixIdem, decodeJSON[idemRecord], func(key string, i *idemRecord) {
				s.idem[strings.TrimPrefix(key, prefixIdem)] = *i
			})
		},
	)
}

// atOnce runs the readers at once, since a store on another machine is waited for more than it works, and then puts what each
// has read, one after the other.
func atOnce(reading *errgroup.Group, readers ...func() (put func(), err error)) error {
	puts := make([]func(), len(readers))
	for i, read := range readers {
		reading.Go(func() (err error) {
			puts[i], err = read()
			return err
		})
	}
	if err := reading.Wait(); err != nil {
		return err
	}
	for _, put := range puts {
		put()
	}
	return nil
}

func decodeJSON[T any](_ string, value []byte) (*T, error) {
	var v T
	return &v, json.Unmarshal(value, &v)
}

// loadPage is how many records are read at once, and decoded by one processor.
const loadPage = 500

// loadAll reads the records below the prefix, and decodes them on all processors while the next ones are read. What it returns
// puts them, in the order of their keys.
func loadAll[T any](ctx context.Context, st store.Store, prefix string, decode func(key string, value []byte) (T, error), put func(key string, v T)) (func(), error) {
	type page struct {
		keys   []string
		values []T
	}
	var pages []*page
	decoding, ctx := errgroup.WithContext(ctx)
	decoding.SetLimit(runtime.GOMAXPROCS(0))
	after := ""
	for {
		records, err := st.List(ctx, prefix, after, loadPage)
		if err != nil {
			if failed := decoding.Wait(); failed != nil {
				return nil, failed // and ended what was read
			}
			return nil, err
		}
		p := &page{keys: make([]string, len(records)), values: make([]T, len(records))}
		pages = append(pages, p)
		decoding.Go(func() (err error) {
			for i, r := range records {
				p.keys[i] = r.Key
				if p.values[i], err = decode(r.Key, r.Value); err != nil {
					return fmt.Errorf("record %s: %w", r.Key, err)
				}
			}
			return nil
		})
		if len(records) < loadPage {
			break
		}
		after = records[len(records)-1].Key
	}
	if err := decoding.Wait(); err != nil {
		return nil, err
	}
	return func() {
		for _, p := range pages {
			for i, key := range p.keys {
				put(key, p.values[i])
			}
		}
	}, nil
}
