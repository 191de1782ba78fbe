package apitest

import (
	"context"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// Service is a scripted api.Service. Fields are set before it is used; methods are safe for concurrent use.
type Service struct {
	// The answers to requests that change something. Nil: refused as not found.
	OnSubmit   func(source []byte, meta api.Meta) (deploy.View, error)
	OnValidate func(source []byte) error
	OnScale    func(app string, instances int, meta api.Meta) (deploy.View, error)
	OnStop     func(app string, meta api.Meta) (deploy.View, error)
	OnRollback func(app string, to uint64, meta api.Meta) (deploy.View, error)
	OnAbort    func(ref string, meta api.Meta) (deploy.View, error)
	// OnHost changes a Host's membership, OnResolve settles what is stuck. Nil: refused as not found.
	OnHost    func(ask api.HostAsk, meta api.Meta) (api.Host, error)
	OnResolve func(ref string, meta api.Meta) (api.Resolution, error)
	// Changes of membership, newest first.
	Changes []api.HostChange
	// OnLogs reads a log. Nil: refused as not found.
	OnLogs func(task, file string, offset int64, limit int) (api.LogChunk, error)
	// NotReady is what Ready answers.
	NotReady error
	// Fail, if set, is what every read answers.
	Fail error

	AppViews    map[string]deploy.AppView
	TaskViews   []deploy.TaskView
	HostViews   []api.HostShow
	HostSources []wire.Source
	// Drifts are by the names of Hosts; one that is not there has none.
	Drifts map[string]api.HostDrift

	mu      sync.Mutex
	deploys map[string]*record
	changed chan struct{} // closed and replaced on every change
}

type record struct {
	view   deploy.View
	events []deploy.Event
}

var _ api.Service = (*Service)(nil)

// Put sets a Deploy's View without an event.
func (s *Service) Put(v deploy.View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recordLocked(v.DeployID).view = v
}

// Emit adds an event to a Deploy and numbers it. An event with a View also sets the Deploy's.
func (s *Service) Emit(e deploy.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.recordLocked(e.Deploy)
	e.Seq = uint64(len(r.events)) + 1
	if e.View != nil {
		r.view = *e.View
	}
	r.events = append(r.events, e)
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

func (s *Service) recordLocked(id string) *record {
	if s.deploys == nil {
		s.deploys = map[string]*record{}
	}
	r := s.deploys[id]
	if r == nil {
		r = &record{}
		s.deploys[id] = r
	}
	return r
}

// NotFound is how the orchestrator says that there is no such thing.
func NotFound(what, name string) error {
	return &deploy.Refusal{Kind: deploy.RefusedNotFound, Detail: fmt.Sprintf("there is no %s %q", what, name)}
}

// Submit calls OnSubmit.
func (s *Service) Submit(_ context.Context, source []byte, meta api.Meta) (deploy.View, error) {
	if s.OnSubmit == nil {
		return deploy.View{}, NotFound("script for", "submit")
	}
	return s.keep(s.OnSubmit(source, meta))
}

// keep makes what a request answered visible to the reads after it.
func (s *Service) keep(v deploy.View, err error) (deploy.View, error) {
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r := s.recordLocked(v.DeployID); r.view.DeployID == "" {
			r.view = v
		}
	}
	return v, err
}

// Validate calls OnValidate.
func (s *Service) Validate(_ context.Context, source []byte) error {
	if s.OnValidate == nil {
		return nil
	}
	return s.OnValidate(source)
}

// Scale calls OnScale.
func (s *Service) Scale(_ context.Context, app string, instances int, meta api.Meta) (deploy.View, error) {
	if s.OnScale == nil {
		return deploy.View{}, NotFound("App", app)
	}
	return s.keep(s.OnScale(app, instances, meta))
}

// StopApp calls OnStop.
func (s *Service) StopApp(_ context.Context, app string, meta api.Meta) (deploy.View, error) {
	if s.OnStop == nil {
		return deploy.View{}, NotFound("App", app)
	}
	return s.keep(s.OnStop(app, meta))
}

// Rollback calls OnRollback.
func (s *Service) Rollback(_ context.Context, app string, to uint64, meta api.Meta) (deploy.View, error) {
	if s.OnRollback == nil {
		return deploy.View{}, NotFound("App", app)
	}
	return s.keep(s.OnRollback(app, to, meta))
}

// Abort calls OnAbort.
func (s *Service) Abort(_ context.Context, ref string, meta api.Meta) (deploy.View, error) {
	if s.OnAbort == nil {
		return deploy.View{}, NotFound("Deploy", ref)
	}
	return s.keep(s.OnAbort(ref, meta))
}

// Deploy returns what Put or Emit set.
func (s *Service) Deploy(_ context.Context, id string) (deploy.View, error) {
	if s.Fail != nil {
		return deploy.View{}, s.Fail
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.deploys[id]
	if !ok {
		return deploy.View{}, NotFound("Deploy", id)
	}
	return r.view, nil
}

// Deploys lists by id, last first.
func (s *Service) Deploys(_ context.Context, app string, limit int) ([]deploy.View, error) {
	if s.Fail != nil {
		return nil, s.Fail
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []deploy.View
	for _, r := range s.deploys {
		if app == "" || r.view.App == app {
			list = append(list, r.view)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].DeployID > list[j].DeployID })
	if len(list) > limit {
		list = list[:limit]
	}
	return list, nil
}

// Events replays, then goes on live.
func (s *Service) Events(ctx context.Context, id string, after uint64) (<-chan deploy.Event, error) {
	if s.Fail != nil {
		return nil, s.Fail
	}
	s.mu.Lock()
	_, ok := s.deploys[id]
	s.mu.Unlock()
	if !ok {
		return nil, NotFound("Deploy", id)
	}
	out := make(chan deploy.Event)
	go func() {
		defer close(out)
		for {
			e, ok := s.next(ctx, id, after)
			if !ok {
				return
			}
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
			if e.Type == "end" {
				return
			}
			after = e.Seq
		}
	}()
	return out, nil
}

// next waits for the event after the given number. A Deploy whose last event is "end" has none after it.
func (s *Service) next(ctx context.Context, id string, after uint64) (deploy.Event, bool) {
	for {
		s.mu.Lock()
		events := s.deploys[id].events
		if after < uint64(len(events)) {
			s.mu.Unlock()
			return events[after], true
		}
		if n := len(events); n > 0 && events[n-1].Type == "end" {
			s.mu.Unlock()
			return deploy.Event{}, false
		}
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return deploy.Event{}, false
		}
	}
}

// Apps lists AppViews by name.
func (s *Service) Apps(context.Context) ([]deploy.AppView, error) {
	if s.Fail != nil {
		return nil, s.Fail
	}
	var list []deploy.AppView
	for _, a := range s.AppViews {
		list = append(list, a)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}

// App returns one of AppViews.
func (s *Service) App(_ context.Context, name string) (deploy.AppView, error) {
	if s.Fail != nil {
		return deploy.AppView{}, s.Fail
	}
	a, ok := s.AppViews[name]
	if !ok {
		return deploy.AppView{}, NotFound("App", name)
	}
	return a, nil
}

// Tasks filters TaskViews.
func (s *Service) Tasks(_ context.Context, app string) ([]deploy.TaskView, error) {
	if s.Fail != nil {
		return nil, s.Fail
	}
	var list []deploy.TaskView
	for _, t := range s.TaskViews {
		if app == "" || t.App == app {
			list = append(list, t)
		}
	}
	return list, nil
}

// Logs calls OnLogs.
func (s *Service) Logs(_ context.Context, task, file string, offset int64, limit int) (api.LogChunk, error) {
	if s.OnLogs == nil {
		return api.LogChunk{}, NotFound("task", task)
	}
	return s.OnLogs(task, file, offset, limit)
}

// Hosts lists HostViews and HostSources.
func (s *Service) Hosts(context.Context) (wire.HostList, error) {
	if s.Fail != nil {
		return wire.HostList{}, s.Fail
	}
	list := wire.HostList{Sources: s.HostSources}
	for _, h := range s.HostViews {
		list.Hosts = append(list.Hosts, h.Host)
	}
	return list, nil
}

// ShowHost returns one of HostViews.
func (s *Service) ShowHost(_ context.Context, name string) (api.HostShow, error) {
	if s.Fail != nil {
		return api.HostShow{}, s.Fail
	}
	for _, h := range s.HostViews {
		if h.Host.Name == name {
			return h, nil
		}
	}
	return api.HostShow{}, NotFound("Host", name)
}

// HostDrift returns one of Drifts.
func (s *Service) HostDrift(_ context.Context, name string) (api.HostDrift, error) {
	if s.Fail != nil {
		return api.HostDrift{}, s.Fail
	}
	for _, h := range s.HostViews {
		if h.Host.Name == name {
			d := s.Drifts[name]
			d.Host = h.Host
			d.Host.Drift = len(d.Differences)
			return d, nil
		}
	}
	return api.HostDrift{}, NotFound("Host", name)
}

// ChangeHost calls OnHost.
func (s *Service) ChangeHost(_ context.Context, ask api.HostAsk, meta api.Meta) (api.Host, error) {
	if s.OnHost == nil {
		return api.Host{}, NotFound("Host", ask.Host)
	}
	return s.OnHost(ask, meta)
}

// Resolve calls OnResolve.
func (s *Service) Resolve(_ context.Context, ref string, meta api.Meta) (api.Resolution, error) {
	if s.OnResolve == nil {
		return api.Resolution{}, NotFound("Host", ref)
	}
	return s.OnResolve(ref, meta)
}

// HostHistory lists Changes.
func (s *Service) HostHistory(_ context.Context, limit int) ([]api.HostChange, error) {
	return s.Changes[:min(limit, len(s.Changes))], s.Fail
}

// Ready returns NotReady.
func (s *Service) Ready(context.Context) error { return s.NotReady }

// At returns a fixed time, the given duration after the start of every scripted story.
func At(after time.Duration) time.Time {
	return time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC).Add(after)
}
