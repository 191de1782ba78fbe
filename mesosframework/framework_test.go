package mesosframework

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// The numbers in the names are those of a checklist of what the protocol demands of a framework.

func TestMainPath(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	f := start(t, o, nil, m)
	s := m.stream()
	if got := s.subscribe.Subscribe.SuppressedRoles; !slices.Equal(got, []string{"*"}) {
		t.Errorf("suppressed roles %v with nothing to place, want [*]", got)
	}
	eventually(t, "connected", func() bool { return f.State().Connected })

	if err := f.Launch(t.Context(), []TaskSpec{spec("t1"), spec("t2")}); err != nil {
		t.Fatal(err)
	}
	m.call(scheduler.Call_REVIVE)
	s.offer(mesosOffer("o1", "a1"), mesosOffer("o2", "a2"), mesosOffer("o3", "a3"))
	first, second := m.call(scheduler.Call_ACCEPT), m.call(scheduler.Call_ACCEPT)
	if got := append(launched(first), launched(second)...); len(got) != 2 || len(first.Accept.OfferIDs) != 1 {
		t.Errorf("launched %v with offers %v, want one on each of two agents", got, first.Accept.OfferIDs)
	}
	if d := m.call(scheduler.Call_DECLINE); len(d.Decline.OfferIDs) != 1 {
		t.Errorf("declined %v, want the one that was not used", d.Decline.OfferIDs)
	}
	m.call(scheduler.Call_SUPPRESS)
	o.mu.Lock()
	if d := cmp.Diff([]string{"id master-0000", "launching t1", "launching t2"}, sorted(o.log)); d != "" {
		t.Error(d)
	}
	ref := o.tasks["t1"]
	o.mu.Unlock()
	if len(ref.Ports) != 1 || ref.Host != "10.0.0."+strings.TrimPrefix(ref.AgentID, "a") || ref.AgentURL != "http://"+ref.Host+":5051" {
		t.Errorf("ref %+v", ref)
	}

	// Updates: handed over with host and ports, acknowledged after that.
	s.update(status("t1", ref.AgentID, mesos.TASK_RUNNING, 1))
	u := receive(t, o.updates, "update")
	if u.State != Running || !u.Known || u.Host != ref.Host || !slices.Equal(u.Ports, ref.Ports) || u.UUID != strings.Repeat("01", 16) {
		t.Errorf("update %+v", u)
	}
	ack := m.call(scheduler.Call_ACKNOWLEDGE)
	if ack.Acknowledge.TaskID.Value != "t1" || ack.Acknowledge.AgentID.Value != ref.AgentID || ack.FrameworkID.Value != "master-0000" {
		t.Errorf("ack %+v", ack)
	}

	if err := f.Kill(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
	if k := m.call(scheduler.Call_KILL); k.Kill.TaskID.Value != "t1" || k.Kill.AgentID.Value != ref.AgentID {
		t.Errorf("kill %+v", k)
	}
	s.update(status("t1", ref.AgentID, mesos.TASK_KILLED, 2))
	if u := receive(t, o.updates, "update"); u.State != Killed {
		t.Errorf("update %+v", u)
	}
	eventually(t, "t1 forgotten", func() bool { return f.State().Tasks == 1 })
	if err := f.Kill(t.Context(), "t1"); !errors.Is(err, ErrUnknownTask) {
		t.Errorf("kill of an ended task: %v", err)
	}
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

func TestCheck1IDIsSavedFirstAndKept(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	o.id = "cutover-7"
	f := start(t, o, nil, m)
	if got := m.stream().subscribe; got.FrameworkID.GetValue() != "cutover-7" || got.Subscribe.FrameworkInfo.ID.GetValue() != "cutover-7" {
		t.Errorf("subscribed as %v", got)
	}
	eventually(t, "connected", func() bool { return f.State().FrameworkID == "cutover-7" })

	// A configured id is used when there is none yet.
	m2, o2 := newFakeMaster(t), newOwner()
	f2 := start(t, o2, func(o *Options) { o.FrameworkID = "mine" }, m2)
	m2.stream()
	eventually(t, "connected", func() bool { return f2.State().Connected })
	if id, _ := o2.FrameworkID(t.Context()); id != "mine" {
		t.Errorf("saved id %q", id)
	}
}

func TestCheck1RemovedIsFatal(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	o.id = "old"
	m.quiet = true
	f := start(t, o, nil, m)
	m.stream().error("Framework has been removed")
	receive(t, f.Done(), "the end")
	if !errors.Is(f.Err(), ErrFrameworkRemoved) {
		t.Errorf("got %v", f.Err())
	}
	if err := f.Launch(t.Context(), []TaskSpec{spec("t")}); !errors.Is(err, ErrFrameworkRemoved) {
		t.Errorf("Launch: %v", err)
	}
	if o.id != "old" {
		t.Errorf("the id became %q", o.id)
	}
}

func TestCheck1SaveFails(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	j := &failingJournal{owner: o}
	j.fail.Store(true)
	f := start(t, o, func(opts *Options) { opts.Journal = j }, m)
	if err := f.Launch(t.Context(), []TaskSpec{spec("t")}); err != nil {
		t.Fatal(err)
	}
	m.stream().offer(mesosOffer("o1", "a1"))
	s := m.stream() // it gave up the first subscription
	if len(m.calls) != 0 {
		t.Errorf("%d calls without a saved id, the first is %v", len(m.calls), <-m.calls)
	}
	j.fail.Store(false)
	s = last(t, m, s, f)
	s.offer(mesosOffer("o1", "a1"))
	m.call(scheduler.Call_ACCEPT)
}

// last returns the stream on which the framework is connected.
func last(t *testing.T, m *fakeMaster, s *fakeStream, f *Framework) *fakeStream {
	t.Helper()
	for {
		select {
		case s = <-m.streams:
		case <-s.closed:
			s = m.stream()
		default:
			if f.State().Connected {
				m.mu.Lock()
				same := m.current == s
				m.mu.Unlock()
				if same {
					return s
				}
			}
			time.Sleep(time.Millisecond)
		}
	}
}

type failingJournal struct {
	*owner
	fail atomic.Bool
}

func (j *failingJournal) SaveFrameworkID(ctx context.Context, id string) error {
	if j.fail.Load() {
		return errors.New("disk full")
	}
	return j.owner.SaveFrameworkID(ctx, id)
}

func TestCheck2FrameworkInfo(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	start(t, o, nil, m)
	info := m.stream().subscribe.Subscribe.FrameworkInfo
	if info.GetFailoverTimeout() != 7*24*3600 || !info.GetCheckpoint() || !slices.Equal(info.Roles, []string{"*"}) || info.User != "nobody" {
		t.Errorf("info %+v", info)
	}
	var caps []string
	for _, c := range info.Capabilities {
		caps = append(caps, c.Type.String())
	}
	if d := cmp.Diff([]string{"PARTITION_AWARE", "TASK_KILLING_STATE", "MULTI_ROLE", "RESERVATION_REFINEMENT", "REGION_AWARE"}, caps); d != "" {
		t.Error(d)
	}
	if _, err := New(Options{Masters: []string{"m:1"}, Name: "n", Journal: o, Listener: o, FailoverTimeout: time.Second}); err == nil {
		t.Error("a failover timeout of 1s passed")
	}
}

func TestCheck3FailedOverIsFatal(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	f := start(t, o, nil, m)
	s := m.stream()
	eventually(t, "connected", func() bool { return f.State().Connected })
	s.error("Framework failed over")
	receive(t, f.Done(), "the end")
	if !errors.Is(f.Err(), ErrFailedOver) {
		t.Errorf("got %v", f.Err())
	}
	if err := receive(t, o.ends, "HandleDisconnected"); !errors.Is(err, ErrFailedOver) {
		t.Errorf("told %v", err)
	}
	if len(m.streams) != 0 {
		t.Error("it subscribed again")
	}
}

func TestCheck4HeartbeatWatchdog(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	m.heartbeat = 0.05
	f := start(t, o, nil, m)
	m.stream()
	m.stream() // silence made it subscribe again
	if err := receive(t, o.ends, "end"); !errors.Is(err, errHeartbeat) {
		t.Errorf("ended by %v", err)
	}
	if s := f.State(); s.LastError == "" {
		t.Errorf("state %+v", s)
	}
}

func TestCheck4OffersAreForgottenWithTheStream(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	f := start(t, o, func(o *Options) { o.Gather = time.Hour }, m)
	s := m.stream()
	eventually(t, "connected", func() bool { return f.State().Connected })
	if err := f.Launch(t.Context(), []TaskSpec{spec("t")}); err != nil {
		t.Fatal(err)
	}
	m.call(scheduler.Call_REVIVE)
	// An agent that was seen before and offers nothing makes the others wait.
	f.mu.Lock()
	f.core.agents["a9"] = &agent{id: "a9"}
	f.mu.Unlock()
	s.offer(mesosOffer("o1", "a1"))
	eventually(t, "offer held", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.core.offers) == 1 })
	s.close()
	s = m.stream()
	if s.subscribe.Subscribe.SuppressedRoles != nil {
		t.Error("offers are suppressed although a task waits")
	}
	m.call(scheduler.Call_REVIVE) // filters may have survived
	s.offer(mesosOffer("o2", "a1"), mesosOffer("o3", "a9"))
	if a := m.call(scheduler.Call_ACCEPT); a.Accept.OfferIDs[0].Value == "o1" {
		t.Error("an offer of the former stream was used")
	}
}

func TestCheck5LeaderByRedirect(t *testing.T) {
	leader, standby, o := newFakeMaster(t), newFakeMaster(t), newOwner()
	standby.set(func(m *fakeMaster) { m.leader = leader.host() })
	dead := func(o *Options) { o.Masters = slices.Insert(o.Masters, 0, "127.0.0.1:1") } // where nobody ever listens
	f := start(t, o, dead, standby)
	leader.stream()
	eventually(t, "connected", func() bool { return f.State().Connected })
	if err := f.Launch(t.Context(), []TaskSpec{spec("t")}); err != nil {
		t.Fatal(err)
	}
	leader.call(scheduler.Call_REVIVE) // calls go to the leader itself
	if got := f.State().Master; got != "http://"+leader.host() {
		t.Errorf("master %s", got)
	}
	// The leader abdicates: a call gets 307, and the next subscription is at the other.
	standby.set(func(m *fakeMaster) { m.leader = "" })
	leader.set(func(m *fakeMaster) { m.leader = standby.host() })
	f.Reconcile("t-unknown")
	standby.stream()
	standby.call(scheduler.Call_REVIVE)
}

func TestCheck6CallErrors(t *testing.T) {
	for _, tc := range []struct {
		status int
		text   string
		stays  bool
	}{
		{400, "Not a valid UUID", true},
		{429, "slow down", true},
		{400, "The stream ID 'x' included in this request didn't match the stream ID currently associated with framework ID f", false},
		{400, "Framework cannot be found", false},
		{403, "Framework is not subscribed", false},
		{503, "Master has not finished recovery", false},
	} {
		t.Run(fmt.Sprint(tc.status, tc.text[:9]), func(t *testing.T) {
			m, o := newFakeMaster(t), newOwner()
			f := start(t, o, nil, m)
			m.stream()
			eventually(t, "connected", func() bool { return f.State().Connected })
			m.set(func(m *fakeMaster) {
				m.answer = func(c *scheduler.Call) (int, string) {
					if c.Type == scheduler.Call_RECONCILE {
						return tc.status, tc.text
					}
					return 0, ""
				}
			})
			f.Reconcile("t")
			if tc.stays {
				eventually(t, "refusal counted", func() bool { return f.State().Stats.CallsRefused == 1 })
				if !f.State().Connected || len(m.streams) != 0 {
					t.Error("the subscription was given up")
				}
				return
			}
			receive(t, o.ends, "end of the subscription")
			m.stream()
		})
	}
}

func TestCheck6UnauthorizedIsFatal(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	m.answer = func(*scheduler.Call) (int, string) { return 401, "401 Unauthorized." }
	f := start(t, o, nil, m)
	receive(t, f.Done(), "the end")
	if !errors.Is(f.Err(), ErrUnauthorized) {
		t.Errorf("got %v", f.Err())
	}
}

func TestCheck6MasterRecoveringIsWaitedFor(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	var n atomic.Int64
	m.answer = func(c *scheduler.Call) (int, string) {
		if c.Type == scheduler.Call_SUBSCRIBE && n.Add(1) < 4 {
			return 503, "Master has not finished recovery"
		}
		return 0, ""
	}
	start(t, o, nil, m)
	m.stream()
	if n.Load() != 4 {
		t.Errorf("%d attempts", n.Load())
	}
}

func TestCheck7BadStream(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	start(t, o, func(o *Options) { o.MaxRecord = 1000 }, m)
	for i, bad := range []string{"x\n", "\n", "5000\n", "4\n\xff\xff\xff\xff", "11\n\x1a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f"} {
		s := m.stream()
		// The end of a stream that was never taken up is told to nobody.
		eventually(t, "subscribed", func() bool { o.mu.Lock(); defer o.mu.Unlock(); return o.subscribe == i+1 })
		s.raw([]byte(bad))
		receive(t, o.ends, "end")
	}
	s := m.stream()
	s.send(&scheduler.Event{Type: 99}) // a newer master's event is ignored
	s.update(status("t", "a1", mesos.TASK_RUNNING, 1))
	receive(t, o.updates, "update")
}

func TestCheck8SaveBeforeAccept(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	var fail atomic.Bool
	fail.Store(true)
	var f *Framework
	o.onLaunch = func(l []Launch) error {
		if f.State().Stats.Launched != 0 {
			t.Error("ACCEPT before the save")
		}
		if fail.CompareAndSwap(true, false) {
			return errors.New("disk full")
		}
		return nil
	}
	f = start(t, o, nil, m)
	s := m.stream()
	eventually(t, "connected", func() bool { return f.State().Connected })
	if err := f.Launch(t.Context(), []TaskSpec{spec("t")}); err != nil {
		t.Fatal(err)
	}
	s.offer(mesosOffer("o1", "a1"))
	if d := m.call(scheduler.Call_DECLINE); d.Decline.OfferIDs[0].Value != "o1" {
		t.Errorf("the offer of the failed launch was not given back: %v", d)
	}
	if p := f.Pending(); len(p) != 1 || !strings.Contains(p[0].Detail, "disk full") {
		t.Errorf("pending %+v", p)
	}
	m.call(scheduler.Call_REVIVE) // after the pause
	s.offer(mesosOffer("o2", "a1"))
	if a := m.call(scheduler.Call_ACCEPT); a.Accept.OfferIDs[0].Value != "o2" || launched(a)[0] != "t" {
		t.Errorf("accept %v", a)
	}
}

func TestCheck8AmbiguousAcceptIsAskedAbout(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	m.answer = func(c *scheduler.Call) (int, string) {
		if c.Type == scheduler.Call_ACCEPT {
			return hangUp, ""
		}
		return 0, ""
	}
	f := start(t, o, nil, m)
	s := m.stream()
	eventually(t, "connected", func() bool { return f.State().Connected })
	if err := f.Launch(t.Context(), []TaskSpec{spec("t")}); err != nil {
		t.Fatal(err)
	}
	s.offer(mesosOffer("o1", "a1"))
	m.call(scheduler.Call_ACCEPT)
	s = m.stream() // another stream id: a late copy would be refused
	rec := m.call(scheduler.Call_RECONCILE)
	if len(rec.Reconcile.Tasks) != 1 || rec.Reconcile.Tasks[0].AgentID.GetValue() != "a1" {
		t.Errorf("reconcile %+v", rec.Reconcile)
	}
	if f.State().Pending != 0 {
		t.Error("the task was queued again although it may run")
	}
	s.update(status("t", "a1", mesos.TASK_GONE, 0)) // the master never had it
	if u := receive(t, o.updates, "update"); u.State != Gone || u.UUID != "" {
		t.Errorf("update %+v", u)
	}
	eventually(t, "forgotten", func() bool { return f.State().Tasks == 0 })
	for len(m.calls) > 0 {
		if c := <-m.calls; c.Type == scheduler.Call_ACCEPT || c.Type == scheduler.Call_ACKNOWLEDGE {
			t.Errorf("%s: an ACCEPT must not be sent twice, an answer without uuid not acknowledged", c.Type)
		}
	}
}

func TestCheck9AckAfterCommitAndDedupe(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	o.tasks["t"] = TaskRef{TaskID: "t", App: "shop", AgentID: "a1", State: Starting}
	gate := make(chan error)
	o.onUpdate = func(Update) error { return <-gate }
	f := start(t, o, nil, m)
	s := m.stream()
	m.call(scheduler.Call_RECONCILE)
	s.update(status("t", "a1", mesos.TASK_RUNNING, 1))
	s.update(status("t", "a1", mesos.TASK_RUNNING, 1)) // a copy while the first is being worked on
	eventually(t, "copy counted", func() bool { return f.State().Stats.UpdatesRepeated == 1 })
	if len(m.calls) != 0 {
		t.Fatalf("%s before the commit", (<-m.calls).Type)
	}
	gate <- errors.New("store busy")
	gate <- nil
	m.call(scheduler.Call_ACKNOWLEDGE)
	receive(t, o.updates, "update")
	eventually(t, "one ack", func() bool { return f.State().Stats.Acknowledged == 1 })
	s.update(status("t", "a1", mesos.TASK_RUNNING, 1)) // the ack was lost: acknowledged without asking again
	m.call(scheduler.Call_ACKNOWLEDGE)

	for range 3 { // what is never taken is never acknowledged
		go func() { gate <- errors.New("store down") }()
	}
	s.update(status("t", "a1", mesos.TASK_FAILED, 2))
	eventually(t, "given up", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		x := f.core.tasks["t"]
		return x != nil && x.state == Failed && len(x.inFlight) == 0
	})
	if len(m.calls) != 0 {
		t.Errorf("%s for an update that was not taken", (<-m.calls).Type)
	}
	go func() { gate <- nil }()
	s.update(status("t", "a1", mesos.TASK_FAILED, 2)) // the agent's retry
	m.call(scheduler.Call_ACKNOWLEDGE)
	eventually(t, "forgotten", func() bool { return f.State().Tasks == 0 })
}

func TestCheck10ReconcileAfterEachSubscribe(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	for i := range 1200 {
		id := fmt.Sprintf("t%04d", i)
		o.tasks[id] = TaskRef{TaskID: id, App: "shop", AgentID: "a1", State: Running}
	}
	o.tasks["dying"] = TaskRef{TaskID: "dying", AgentID: "a2", State: Running, Kill: true}
	f := start(t, o, nil, m)
	for range 2 {
		s := m.stream()
		asked := map[string]string{}
		for len(asked) < 1201 {
			c := m.call(scheduler.Call_RECONCILE)
			if len(c.Reconcile.Tasks) > reconcileBatch || len(c.Reconcile.Tasks) == 0 {
				t.Fatalf("a batch of %d", len(c.Reconcile.Tasks))
			}
			for _, x := range c.Reconcile.Tasks {
				asked[x.TaskID.Value] = x.AgentID.GetValue()
			}
		}
		if asked["dying"] != "a2" {
			t.Error("asked without the agent id")
		}
		if k := m.call(scheduler.Call_KILL); k.Kill.TaskID.Value != "dying" {
			t.Errorf("kill %+v", k)
		}
		s.update(status("t0001", "a1", mesos.TASK_RUNNING, 0))
		eventually(t, "answer taken", func() bool { return f.State().Unreconciled == 1200 })
		s.close()
		receive(t, o.ends, "end")
	}
	if len(o.updates) != 0 {
		t.Error("an answer that says nothing new went to the Listener")
	}
}

// The answers to a reconciliation of all tasks come in one burst; a Listener that is slow meanwhile costs no subscription.
func TestManyAnswersAtOnce(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	const tasks = 20_000
	for i := range tasks {
		id := fmt.Sprintf("t%05d", i)
		o.tasks[id] = TaskRef{TaskID: id, App: "shop", AgentID: "a1", State: Running}
	}
	f := start(t, o, nil, m)
	s := m.stream()
	eventually(t, "all are asked for", func() bool { return f.State().Unreconciled == tasks })
	f.mu.Lock() // the core is busy
	session := f.session
	go func() {
		for i := range tasks {
			s.update(status(fmt.Sprintf("t%05d", i), "a1", mesos.TASK_RUNNING, 0))
		}
	}()
	eventually(t, "all answers wait, or the subscription has ended", func() bool { return session.ctx.Err() != nil || len(session.events) >= tasks-1 })
	f.mu.Unlock()
	if err := context.Cause(session.ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all answers are taken", func() bool { return f.State().Unreconciled == 0 })
	if n := f.State().Stats.Subscriptions; n != 1 {
		t.Errorf("%d subscriptions", n)
	}
}

func TestCheck17CredentialsStayHome(t *testing.T) {
	leader, standby, o := newFakeMaster(t), newFakeMaster(t), newOwner()
	standby.set(func(m *fakeMaster) { m.leader = leader.host() })
	cred := &Credentials{Principal: "pr", Secret: "sec"}
	f := start(t, o, func(o *Options) { o.Credentials = cred }, standby)
	eventually(t, "refusal", func() bool { return strings.Contains(f.State().LastError, "does not get the credentials") })
	if len(leader.auth) != 0 {
		t.Error("an unnamed master was asked")
	}
	if err := f.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprintf("%v %+v %s", cred, *cred, cred.LogValue()); strings.Contains(s, "sec") {
		t.Errorf("the secret shows: %s", s)
	}

	start(t, newOwner(), func(o *Options) { o.Credentials, o.ForwardCredentials = cred, true }, standby)
	if p := leader.stream().subscribe.Subscribe.FrameworkInfo.GetPrincipal(); p != "pr" {
		t.Errorf("principal %q", p)
	}
	leader.set(func(m *fakeMaster) {
		if last := m.auth[len(m.auth)-1]; !strings.HasPrefix(last, "Basic ") {
			t.Errorf("Authorization %q", last)
		}
	})
	for _, a := range standby.auth {
		if a != "" {
			t.Error("/redirect got the credentials")
		}
	}
}

func TestCheck18SlowListenerEndsTheSubscription(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	release := make(chan struct{})
	o.onUpdate = func(Update) error { <-release; return nil }
	start(t, o, func(o *Options) { o.MaxUpdates, o.Lanes = 5, 1 }, m)
	s := m.stream()
	for i := range byte(20) {
		s.update(status(fmt.Sprintf("t%d", i), "a1", mesos.TASK_RUNNING, i+1))
	}
	if err := receive(t, o.ends, "end"); !errors.Is(err, errBacklog) {
		t.Errorf("ended by %v", err)
	}
	close(release)
	s = m.stream()
	s.update(status("again", "a1", mesos.TASK_RUNNING, 99))
	for receive(t, o.updates, "update").TaskID != "again" {
	}
}

func TestLaunchRefusals(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	f := start(t, o, func(o *Options) { o.MaxPending = 4 }, m)
	launch := func(specs ...TaskSpec) error { return f.Launch(t.Context(), specs) }
	if err := launch(spec("a"), spec("b")); err != nil {
		t.Fatal(err)
	}
	if err := launch(spec("c"), spec("c")); !errors.Is(err, ErrDuplicateTask) {
		t.Error(err)
	}
	if err := launch(spec("c"), spec("a")); !errors.Is(err, ErrDuplicateTask) {
		t.Error(err)
	}
	if err := launch(spec("c"), spec("d"), spec("e")); !errors.Is(err, ErrTooManyPending) {
		t.Error(err)
	}
	if err := launch(TaskSpec{ID: "x"}); err == nil {
		t.Error("an invalid task passed")
	}
	if p := f.Pending(); len(p) != 2 || p[0].TaskID != "a" {
		t.Errorf("pending %+v", p)
	}
	if !f.Cancel("a") || f.Cancel("a") {
		t.Error("Cancel")
	}
	if err := f.Kill(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	if l := receive(t, o.losses, "loss"); l.Task.TaskID != "b" || l.Reason != LossNotLaunched {
		t.Errorf("loss %+v", l)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	o := newOwner()
	for _, bad := range []string{"zk://a:2181/mesos", "http://u:p@h", "h:1/path", "ftp://h", "http://", "h:1?x=y"} {
		if _, err := New(Options{Masters: []string{bad}, Name: "n", Journal: o, Listener: o}); err == nil || strings.Contains(err.Error(), "u:p@") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := New(Options{}); err == nil {
		t.Error("empty options passed")
	}
	f, err := New(Options{Masters: []string{"h:1"}, Name: "n", Journal: o, Listener: o})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Launch(t.Context(), nil); !errors.Is(err, ErrStopped) {
		t.Errorf("Launch before Start: %v", err)
	}
	if err := f.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	m, o := newFakeMaster(t), newOwner()
	f, err := New(Options{Masters: []string{m.host()}, Name: "n", User: "nobody", Journal: o, Listener: o})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		m.stream()
		cancel()
	})
	if err := f.Run(ctx); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		status int
		body   string
		want   verdict
	}{
		{202, "", accepted}, {200, "", accepted}, {307, "", resubscribe}, {401, "", unauthorized}, {404, "", resubscribe},
		{400, "Failed to validate scheduler::Call: Expecting 'type' to be present", refused}, {413, "", refused}, {429, "", refused},
		{500, "", ambiguous}, {502, "", ambiguous}, {503, "", resubscribe},
		{400, "All non-subscribe calls should include the 'Mesos-Stream-Id' header", refused},
	} {
		if got := judge(tc.status, tc.body); got != tc.want {
			t.Errorf("%d %q: %s, want %s", tc.status, tc.body, got, tc.want)
		}
	}
	// Nothing listens: the call was certainly not sent.
	err := post(t.Context(), http.DefaultClient, mustURL(t, "http://127.0.0.1:1"), nil, "s", &scheduler.Call{Type: scheduler.Call_REVIVE})
	var ce *callError
	if !errors.As(err, &ce) || ce.verdict != unsent {
		t.Errorf("got %v", err)
	}
}
