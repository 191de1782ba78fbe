package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/engine"
	"github.com/cutover/cutover/orchestrator/store"
)

// standbyFor is how long what was read of the stores serves reads: nobody leads, so little changes.
const standbyFor = time.Second

// standby answers reads from the stores while nobody leads.
type standby struct {
	api.Service // nil: the API asks for the reads below only
	open        func(context.Context) (store.Store, error)

	mu    sync.Mutex
	store store.Store // opened with the first read, and anew after a failure
	at    time.Time
	last  *engine.Engine
}

func (s *standby) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store == nil {
		return nil
	}
	err := s.store.Close()
	s.store, s.last = nil, nil
	return err
}

// state returns what is stored, at most standbyFor old.
func (s *standby) state(ctx context.Context) (*engine.Engine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil && time.Since(s.at) < standbyFor {
		return s.last, nil
	}
	e, err := s.read(ctx)
	if err != nil {
		return nil, &deploy.Refusal{Kind: deploy.RefusedUnavailable, Detail: fmt.Sprintf("nobody leads, and the stores cannot be read: %v", err), RetryAfter: time.Second}
	}
	s.last, s.at = e, time.Now()
	return e, nil
}

func (s *standby) read(ctx context.Context) (*engine.Engine, error) {
	if s.store == nil {
		st, err := s.open(ctx)
		if err != nil {
			return nil, err
		}
		s.store = st
	}
	e, err := engine.Frozen(ctx, s.store)
	if err != nil {
		err = errors.Join(err, s.store.Close())
		s.store = nil
	}
	return e, err
}

// Deploy implements api.Service.
func (s *standby) Deploy(ctx context.Context, id string) (deploy.View, error) {
	e, err := s.state(ctx)
	if err != nil {
		return deploy.View{}, err
	}
	return e.Deploy(ctx, id)
}

// Deploys implements api.Service.
func (s *standby) Deploys(ctx context.Context, app string, limit int) ([]deploy.View, error) {
	e, err := s.state(ctx)
	if err != nil {
		return nil, err
	}
	return e.Deploys(ctx, app, limit)
}

// Apps implements api.Service.
func (s *standby) Apps(ctx context.Context) ([]deploy.AppView, error) {
	e, err := s.state(ctx)
	if err != nil {
		return nil, err
	}
	return e.Apps(ctx)
}

// App implements api.Service.
func (s *standby) App(ctx context.Context, name string) (deploy.AppView, error) {
	e, err := s.state(ctx)
	if err != nil {
		return deploy.AppView{}, err
	}
	return e.App(ctx, name)
}

// Tasks implements api.Service.
func (s *standby) Tasks(ctx context.Context, app string) ([]deploy.TaskView, error) {
	e, err := s.state(ctx)
	if err != nil {
		return nil, err
	}
	return e.Tasks(ctx, app)
}
