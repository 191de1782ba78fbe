package lbagent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cutover/cutover/lbagent/participant"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

const (
	heartbeat = time.Second
	// coalesce is how long changes gather before they are sent: a transaction changes a Section several times in a row, and
	// what the coordinator waits for comes in the answers to its calls. A lapse may wait that long, of the two seconds for
	// which a vote is fresh.
	coalesce = 20 * time.Millisecond
)

// watchers are the open Watch streams. Reports are level-triggered: a watcher keeps the set of Apps that changed, never
// a queue of changes, so a slow one costs no memory and loses nothing that still holds.
type watchers struct {
	mu  sync.Mutex
	set map[*watcher]struct{}
}

type watcher struct {
	mu    sync.Mutex
	apps  map[string]struct{}
	epoch uint64 // the highest that the Host has seen
	wake  chan struct{}
}

func (ws *watchers) add() (*watcher, bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if len(ws.set) >= maxWatchers {
		return nil, false
	}
	if ws.set == nil {
		ws.set = map[*watcher]struct{}{}
	}
	w := &watcher{apps: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	ws.set[w] = struct{}{}
	return w, true
}

func (ws *watchers) remove(w *watcher) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	delete(ws.set, w)
}

// changed tells every watcher which Apps have something new to say.
func (ws *watchers) changed(apps []string, epoch uint64) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.set {
		w.mu.Lock()
		wake := len(apps) > 0 || epoch != w.epoch
		for _, app := range apps {
			w.apps[app] = struct{}{}
		}
		w.epoch = epoch
		w.mu.Unlock()
		if !wake {
			continue
		}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) take() ([]string, uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	apps := slices.Sorted(maps.Keys(w.apps))
	clear(w.apps)
	return apps, w.epoch
}

// Watch implements HostService. The stream ends when an epoch above the watcher's is seen: a leader that was replaced
// learns it here.
func (s service) Watch(ctx context.Context, req *connect.Request[lbagentv1.WatchRequest], stream *connect.ServerStream[lbagentv1.WatchResponse]) error {
	fence, err := fenceOf(req.Msg.GetFence())
	if err != nil {
		return badArgument(err)
	}
	policy, err := policyOf(req.Msg.GetDrift())
	if err != nil {
		return badArgument(err)
	}
	w, ok := s.a.watch.add() // before the first report, so that no change falls between
	if !ok {
		return connect.NewError(connect.CodeResourceExhausted, errors.New("too many Watch streams are open on this host"))
	}
	defer s.a.watch.remove(w)
	ans, err := s.call(ctx, "Watch", func(t participant.Token) participant.Event {
		return participant.Hello{To: t, Fence: fence, Drift: policy}
	})
	if err != nil {
		return err
	}
	if ans.Refusal != nil {
		return refusedWatch(s.refusal(ans.Refusal), ans.Refusal)
	}
	s.a.m.watchers.Inc()
	defer s.a.m.watchers.Dec()
	stopping := s.a.stopping()
	st := s.a.state.Load()
	if err := stream.Send(s.a.report(st, st.Apps(), true)); err != nil {
		return err
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-stopping:
			return connect.NewError(connect.CodeUnavailable, errors.New("this lbagent is stopping"))
		case <-beat.C:
		case <-w.wake:
			select {
			case <-time.After(coalesce):
			case <-ctx.Done():
				return ctx.Err()
			}
			select { // what is sent now is a heartbeat too
			case <-beat.C:
			default:
			}
		}
		apps, epoch := w.take()
		if epoch > fence.Epoch {
			err := fmt.Errorf("epoch %d is over: this host has seen %d", fence.Epoch, epoch)
			return refusedWatch(&lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_STALE_EPOCH, Message: err.Error(), MaxEpoch: epoch}, err)
		}
		if err := stream.Send(s.a.report(s.a.state.Load(), apps, false)); err != nil {
			return err
		}
	}
}

// refusedWatch ends a Watch with the refusal as a detail of the error: a stream has no answer to put it in.
func refusedWatch(r *lbagentv1.Refusal, err error) error {
	out := connect.NewError(connect.CodeFailedPrecondition, err)
	if d, err := connect.NewErrorDetail(r); err == nil {
		out.AddDetail(d)
	}
	return out
}

// report makes one message of a Watch.
func (a *Agent) report(st *participant.State, apps []string, complete bool) *lbagentv1.WatchResponse {
	out := &lbagentv1.WatchResponse{Host: a.hostState(st), Complete: complete, SentAt: timestamppb.Now()}
	for _, app := range apps {
		out.Sections = append(out.Sections, reportTo(st.Report(app), st.Durable.Epoch))
	}
	return out
}
