package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// fanout shows live events to readers. A reader that does not keep up is cut off, and asks again from its last number.
type fanout struct {
	mu      sync.Mutex
	closed  bool
	readers map[string]map[*reader]bool // by Deploy
}

// reader is one follower of one Deploy. Its channel is closed by fanout only.
type reader struct{ ch chan deploy.Event }

// readerQueue is how many events a follower may be behind.
const readerQueue = 256

// maxReaders bounds the followers of one Deploy.
const maxReaders = 1000

func newFanout() *fanout { return &fanout{readers: map[string]map[*reader]bool{}} }

func (f *fanout) add(id string) (*reader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, ErrStopped
	case len(f.readers[id]) >= maxReaders:
		return nil, &deploy.Refusal{Kind: deploy.RefusedUnavailable, Detail: fmt.Sprintf("%d readers follow this Deploy already: try again later", maxReaders)}
	}
	r := &reader{ch: make(chan deploy.Event, readerQueue)}
	if f.readers[id] == nil {
		f.readers[id] = map[*reader]bool{}
	}
	f.readers[id][r] = true
	return r, nil
}

func (f *fanout) remove(id string, r *reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readers[id][r] {
		close(r.ch)
		delete(f.readers[id], r)
	}
	if len(f.readers[id]) == 0 {
		delete(f.readers, id)
	}
}

func (f *fanout) send(id string, ev deploy.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for r := range f.readers[id] {
		select {
		case r.ch <- ev:
			continue
		default:
		}
		close(r.ch)
		delete(f.readers[id], r)
	}
}

func (f *fanout) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for id, readers := range f.readers {
		for r := range readers {
			close(r.ch)
		}
		delete(f.readers, id)
	}
}

// Events returns the Deploy's events after the given number, then live ones. Stored events carry no View, to keep the store
// small: of those that are replayed, the newest carries the present one. The channel is closed after the event of type
// "end", when ctx ends, when the engine stops, or when the reader is too slow.
func (e *Engine) Events(ctx context.Context, id string, after uint64) (<-chan deploy.Event, error) {
	var live *reader
	var view deploy.View
	var seq uint64
	var done bool
	err := e.do(ctx, func() error {
		v, ok := e.viewOf(id)
		if !ok {
			_, err := e.findDeploy(id)
			return err
		}
		view, done = v, v.Step == string(deploy.StepDone)
		if l := e.s.locksteps[id]; l != nil {
			seq = l.Seq
		} else {
			seq = e.s.deploys.get(id).Seq
		}
		if done {
			return nil
		}
		var err error
		live, err = e.fan.add(id)
		return err
	})
	if err != nil {
		if live != nil {
			e.fan.remove(id, live)
		}
		return nil, e.refuse(err)
	}
	replay, err := e.replay(ctx, id, after, seq)
	if err != nil {
		if live != nil {
			e.fan.remove(id, live)
		}
		return nil, e.refuse(err)
	}
	if n := len(replay); n > 0 {
		replay[n-1].View = &view
	}
	out := make(chan deploy.Event)
	go func() {
		defer close(out)
		if live != nil {
			defer e.fan.remove(id, live)
		}
		send := func(ev deploy.Event) bool {
			select {
			case out <- ev:
				return ev.Type != "end"
			case <-ctx.Done():
			case <-e.ctx.Done():
			}
			return false
		}
		for _, ev := range replay {
			if !send(ev) {
				return
			}
		}
		if live == nil {
			return
		}
		for {
			select {
			case ev, ok := <-live.ch:
				if !ok || ev.Seq > seq && !send(ev) {
					return
				}
			case <-ctx.Done():
				return
			case <-e.ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// replay reads stored events with after < seq <= until.
func (e *Engine) replay(ctx context.Context, id string, after, until uint64) ([]deploy.Event, error) {
	var out []deploy.Event
	records, err := e.opts.Store.List(ctx, prefixEvent+id+"/", keyEvent(id, after), 0)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		var ev deploy.Event
		if err := json.Unmarshal(r.Value, &ev); err != nil {
			return nil, fmt.Errorf("record %s: %w", r.Key, err)
		}
		if ev.Seq > until {
			break
		}
		out = append(out, ev)
	}
	return out, nil
}
