package mesosframework

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"pgregory.net/rapid"

	"github.com/cutover/cutover/mesosframework/placement"
)

// desk is a core with a clock of its own and a log of effects.
type desk struct {
	c   *core
	now time.Time
	out []effect
}

func newDesk(t interface{ Fatal(...any) }, change func(*Options)) *desk {
	o := newOwner()
	opts := Options{Masters: []string{"m:1"}, Name: "n", User: "u", Journal: o, Listener: o, Seed: 1}
	if change != nil {
		change(&opts)
	}
	opts, err := opts.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return &desk{c: newCore(&opts), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

// does runs a decision and describes its effects.
func (d *desk) does(decision func(c *core, now time.Time)) []string {
	decision(d.c, d.now)
	d.out = d.c.take()
	var lines []string
	for _, e := range d.out {
		lines = append(lines, describe(e))
	}
	return lines
}

func describe(e effect) string {
	switch e := e.(type) {
	case callEffect:
		switch c := e.call; c.Type {
		case scheduler.Call_KILL:
			return "KILL " + c.Kill.TaskID.Value + " on " + c.Kill.AgentID.GetValue()
		case scheduler.Call_RECONCILE:
			var ids []string
			for _, x := range c.Reconcile.Tasks {
				ids = append(ids, x.TaskID.Value+"@"+x.AgentID.GetValue())
			}
			slices.Sort(ids)
			return strings.TrimSpace("RECONCILE " + strings.Join(ids, " "))
		case scheduler.Call_DECLINE:
			var ids []string
			for _, x := range c.Decline.OfferIDs {
				ids = append(ids, x.Value)
			}
			return fmt.Sprintf("DECLINE %s for %gs", strings.Join(ids, " "), c.Decline.Filters.GetRefuseSeconds())
		default:
			return c.Type.String()
		}
	case launchEffect:
		var parts []string
		for _, a := range e.accepts {
			parts = append(parts, strings.Join(launched(a.call), "+")+" with "+strings.Join(a.offerIDs, "+"))
		}
		return "LAUNCH " + strings.Join(parts, ", ")
	case updateEffect:
		return fmt.Sprintf("update %s %s", e.update.TaskID, e.update.State)
	case lossEffect:
		return fmt.Sprintf("lost %s: %s", e.loss.Task.TaskID, e.loss.Reason)
	}
	return fmt.Sprintf("%T", e)
}

func (d *desk) want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func (d *desk) subscribe(refs ...TaskRef) []string {
	return d.does(func(c *core, now time.Time) {
		c.startSuppressed()
		c.subscribe("f", refs, now)
	})
}

func (d *desk) launch(t interface{ Fatal(...any) }, specs ...TaskSpec) []string {
	return d.does(func(c *core, now time.Time) {
		if err := c.launch(specs, now); err != nil {
			t.Fatal(err)
		}
	})
}

func (d *desk) offers(offers ...mesos.Offer) []string {
	return d.does(func(c *core, now time.Time) { c.takeOffers(offers, now) })
}

func (d *desk) update(s mesos.TaskStatus) []string {
	return d.does(func(c *core, now time.Time) { c.update(&s, now) })
}

// commit is the Listener's success on the last update.
func (d *desk) commit() []string {
	var ups []Update
	for _, e := range d.out {
		if u, ok := e.(updateEffect); ok {
			ups = append(ups, u.update)
		}
	}
	return d.does(func(c *core, now time.Time) {
		for i := range ups {
			c.committed(&ups[i], now)
		}
	})
}

func (d *desk) after(wait time.Duration) []string {
	d.now = d.now.Add(wait)
	return d.does((*core).tick)
}

func (d *desk) outcome(v verdict, detail string) []string {
	var acc []acceptCall
	for _, e := range d.out {
		if l, ok := e.(launchEffect); ok {
			acc = append(acc, l.accepts...)
		}
	}
	return d.does(func(c *core, now time.Time) {
		for _, a := range acc {
			c.launched(a.taskIDs, a.offerIDs, v, detail, now)
		}
	})
}

// run brings a task to RUNNING on an agent.
func (d *desk) run(t *testing.T, id, agentID string) {
	t.Helper()
	d.launch(t, spec(id))
	d.offers(mesosOffer("offer-"+id, agentID))
	d.outcome(accepted, "")
	d.update(status(id, agentID, mesos.TASK_RUNNING, 1))
	d.commit()
}

func TestCheck13Offers(t *testing.T) {
	d := newDesk(t, nil)
	d.want(t, "subscribe with nothing to do", d.subscribe())
	t1 := spec("t1")
	t1.ExcludeAgents = []string{"a2"}
	d.want(t, "launch", d.launch(t, t1), "REVIVE")
	d.want(t, "offers of the only agents there are", d.offers(mesosOffer("o1", "a1"), mesosOffer("o2", "a2")),
		"LAUNCH t1 with o1", "DECLINE o2 for 120s", "SUPPRESS")
	d.want(t, "offers after SUPPRESS", d.offers(mesosOffer("o3", "a2")), "DECLINE o3 for 120s")

	// Two agents are known: the first one's offer waits a little for the other.
	d.want(t, "launch", d.launch(t, spec("t2")), "REVIVE")
	d.want(t, "first offer", d.offers(mesosOffer("o4", "a1")))
	if w := d.c.nextTick(d.now, time.Second); w != 10*time.Millisecond {
		t.Errorf("next tick in %s", w)
	}
	d.want(t, "rescind", d.does(func(c *core, _ time.Time) { c.rescind("o4"); c.rescind("unknown") }))
	d.want(t, "nothing left to place", d.after(10*time.Millisecond))
	d.want(t, "offer again", d.offers(mesosOffer("o5", "a1")))
	d.want(t, "the wait is over", d.after(10*time.Millisecond), "LAUNCH t2 with o5", "SUPPRESS")

	// What does not fit is declined for a short time, and explained.
	big := spec("big")
	big.CPUs = 64
	d.launch(t, big)
	d.want(t, "does not fit", d.offers(mesosOffer("o6", "a1"), mesosOffer("o7", "a2")), "DECLINE o6 o7 for 5s")
	p := d.c.pendingTasks()[0]
	if p.Vetoes[placement.ReasonCPUs] != 2 || !strings.Contains(p.Detail, "no agent of 2 fits (cpus 2); host-a1: needs 64 cpus, 4 free") {
		t.Errorf("pending %+v", p)
	}
	d.want(t, "cancel", d.does(func(c *core, now time.Time) { c.cancel("big", now) }), "SUPPRESS")

	// Several offers of one agent are one.
	d2 := newDesk(t, nil)
	d2.subscribe()
	wide := spec("wide")
	wide.CPUs = 6
	d2.launch(t, wide)
	d2.want(t, "merged", d2.offers(mesosOffer("o1", "a1"), func() mesos.Offer {
		o := mesosOffer("o2", "a1")
		o.Resources = o.Resources[:3] // the ports are in one offer only
		return o
	}()), "LAUNCH wide with o1+o2", "SUPPRESS")

	// Maintenance is scheduled: nothing goes there.
	d3 := newDesk(t, nil)
	d3.subscribe()
	d3.launch(t, spec("t"))
	o := mesosOffer("o1", "a1")
	o.Unavailability = &mesos.Unavailability{Start: mesos.TimeInfo{Nanoseconds: d3.now.Add(time.Hour).UnixNano()}}
	d3.want(t, "maintenance", d3.offers(o), "DECLINE o1 for 5s")
}

func TestReviveIsBounded(t *testing.T) {
	d := newDesk(t, func(o *Options) { o.MaxPending = 1000 })
	d.subscribe()
	n := 0
	for i := range 100 {
		n += len(d.launch(t, spec(fmt.Sprint("t", i))))
	}
	if n != reviveBurst {
		t.Errorf("%d REVIVE calls at once, want %d", n, reviveBurst)
	}
	d.want(t, "the rest is one, later", d.after(time.Second), "REVIVE")
	d.want(t, "and no more", d.after(time.Second))
}

func TestPortsAreNotReusedTooEarly(t *testing.T) {
	blocked := map[uint16]bool{}
	d := newDesk(t, func(o *Options) { o.PortBlocked = func(_, _ string, p uint16) bool { return blocked[p] } })
	d.subscribe()
	onePort := func(id string) mesos.Offer {
		o := mesosOffer(id, "a1")
		o.Resources[3].Ranges = &mesos.Value_Ranges{Range: []mesos.Value_Range{{Begin: 31000, End: 31000}}}
		return o
	}
	d.launch(t, spec("t1"))
	d.offers(onePort("o1"))
	d.update(status("t1", "a1", mesos.TASK_FAILED, 1))
	// Mesos offers the port before the end of t1 is durable here.
	failed := slices.Clone(d.out)
	d.launch(t, spec("t2"))
	d.want(t, "still held by t1", d.offers(onePort("o2")), "DECLINE o2 for 1s")
	d.out = failed
	blocked[31000] = true
	d.want(t, "t1 has ended", d.commit(), "REVIVE")
	d.want(t, "a proxy may know it", d.offers(onePort("o3")), "DECLINE o3 for 1s")
	if p := d.c.pendingTasks()[0]; p.Vetoes[placement.ReasonPortsBlocked] != 1 {
		t.Errorf("pending %+v", p)
	}
	blocked[31000] = false
	if got := d.offers(onePort("o4")); got[0] != "LAUNCH t2 with o4" {
		t.Errorf("got %v", got)
	}
}

func TestCheck11LaunchTimeout(t *testing.T) {
	d := newDesk(t, nil)
	d.subscribe()
	d.launch(t, spec("t"))
	d.offers(mesosOffer("o1", "a1"))
	d.outcome(accepted, "")
	d.want(t, "not yet", d.after(29*time.Second))
	d.want(t, "asked", d.after(time.Second), "RECONCILE t@a1")
	asked := 1
	var end []string
	for range 20 {
		got := d.after(5 * time.Second)
		if len(got) > 0 && strings.HasPrefix(got[0], "KILL") {
			end = got
			break
		}
		asked += len(got)
	}
	d.want(t, "given up", end, "KILL t on a1", "lost t: launch timeout")
	if asked < 3 {
		t.Errorf("asked only %d times", asked)
	}
	// It is killed until it is really over, and lost only once.
	d.want(t, "repeated", d.after(5*time.Second), "KILL t on a1")
	d.update(status("t", "a1", mesos.TASK_KILLED, 1))
	d.commit()
	d.want(t, "over", d.after(time.Hour), "RECONCILE")
	if len(d.c.tasks) != 0 || len(d.c.timed) != 0 || len(d.c.ports) != 0 || d.c.population.Len() != 0 {
		t.Error("something is left of the task")
	}

	// An answer ends the questions; STAGING has a deadline of its own.
	d = newDesk(t, nil)
	d.subscribe()
	d.launch(t, spec("t"))
	d.offers(mesosOffer("o1", "a1"))
	d.after(30 * time.Second)
	d.want(t, "answer", d.update(status("t", "a1", mesos.TASK_STAGING, 0)), "update t TASK_STAGING")
	d.commit()
	d.want(t, "patience", d.after(9*time.Minute))
	got := d.after(time.Minute)
	if !slices.Contains(got, "lost t: staging timeout") || !slices.Contains(got, "KILL t on a1") {
		t.Errorf("got %v", got)
	}
}

func TestCheck12PartitionAware(t *testing.T) {
	d := newDesk(t, nil)
	d.subscribe()
	d.run(t, "t", "a1")
	d.want(t, "unreachable", d.update(status("t", "a1", mesos.TASK_UNREACHABLE, 0)), "update t TASK_UNREACHABLE")
	d.commit()
	if len(d.c.tasks) != 1 {
		t.Fatal("an unreachable task was forgotten")
	}
	d.want(t, "the same again", d.update(status("t", "a1", mesos.TASK_UNREACHABLE, 0)))
	back := status("t", "a1", mesos.TASK_RUNNING, 0)
	reason := mesos.REASON_AGENT_REREGISTERED
	back.Reason = &reason
	d.want(t, "back", d.update(back), "update t TASK_RUNNING")
	d.commit()
	d.want(t, "older than what is known", d.update(status("t", "a1", mesos.TASK_STARTING, 0)))
	d.want(t, "nothing new", d.update(status("t", "a1", mesos.TASK_RUNNING, 0)))
	for _, s := range []mesos.TaskState{mesos.TASK_LOST, mesos.TASK_UNKNOWN, mesos.TASK_GONE_BY_OPERATOR} {
		d.update(status("t", "a1", s, 0))
		d.commit()
		if len(d.c.tasks) != 1 {
			t.Fatalf("%s ended the task", s)
		}
	}
	d.update(status("t", "a1", mesos.TASK_GONE, 0))
	d.want(t, "terminal, not durable yet: an older answer", d.update(status("t", "a1", mesos.TASK_RUNNING, 0)))
}

func TestCheck14KillUntilTerminal(t *testing.T) {
	d := newDesk(t, nil)
	d.subscribe()
	d.run(t, "t", "a1")
	kill := func() []string {
		return d.does(func(c *core, now time.Time) {
			if err := c.killTask("t", now); err != nil {
				t.Error(err)
			}
		})
	}
	d.want(t, "kill", kill(), "KILL t on a1")
	d.want(t, "kill again at once", kill())
	d.want(t, "too early", d.after(4*time.Second))
	d.want(t, "repeated", d.after(time.Second), "KILL t on a1")
	d.want(t, "repeated later", d.after(10*time.Second), "KILL t on a1")
	// The agent was away and has forgotten the KILL.
	d.want(t, "unreachable", d.update(status("t", "a1", mesos.TASK_UNREACHABLE, 0)), "update t TASK_UNREACHABLE")
	d.now = d.now.Add(2 * time.Second)
	d.want(t, "back", d.update(status("t", "a1", mesos.TASK_RUNNING, 0)), "update t TASK_RUNNING", "KILL t on a1")
	d.want(t, "killing", d.update(status("t", "a1", mesos.TASK_KILLING, 2)), "update t TASK_KILLING")
	// Over a reconnection.
	d.does(func(c *core, _ time.Time) { c.disconnect() })
	d.want(t, "no calls while away", d.after(time.Hour))
	d.want(t, "subscribed again", d.subscribe(), "RECONCILE t@a1", "KILL t on a1")
	d.update(status("t", "a1", mesos.TASK_KILLED, 3))
	d.commit()
	d.want(t, "over", d.after(5*time.Minute))

	// A kill that overtakes an unsent launch ends as not launched.
	d.launch(t, spec("u"))
	d.offers(mesosOffer("o9", "a1"))
	launch := slices.Clone(d.out)
	d.does(func(c *core, now time.Time) { _ = c.killTask("u", now) })
	d.out = launch
	got := d.outcome(unsent, "disk full")
	if !slices.Contains(got, "lost u: not launched") {
		t.Errorf("got %v", got)
	}
}

func TestCheck10ReconciliationIsRepeated(t *testing.T) {
	d := newDesk(t, nil)
	ref := func(id, agentID string) TaskRef {
		return TaskRef{TaskID: id, App: "shop", AgentID: agentID, State: Running, Ports: []uint16{31000}}
	}
	d.want(t, "subscribe", d.subscribe(ref("t1", "a1"), ref("t2", "a2")), "RECONCILE t1@a1 t2@a2")
	d.update(status("t1", "a1", mesos.TASK_RUNNING, 0))
	d.want(t, "only what is open", d.after(2*time.Second), "RECONCILE t2@a2")
	d.want(t, "later and later", d.after(2*time.Second))
	d.want(t, "later and later", d.after(2*time.Second), "RECONCILE t2@a2")
	d.update(status("t2", "a2", mesos.TASK_RUNNING, 0))
	d.want(t, "all answered", d.after(time.Minute))
	d.want(t, "full round", d.after(10*time.Minute), "RECONCILE", "RECONCILE t1@a1 t2@a2")

	// An update without uuid that was not taken is asked for again.
	d.update(status("t2", "a2", mesos.TASK_LOST, 0))
	lost := d.out[0].(updateEffect).update
	d.does(func(c *core, now time.Time) { c.uncommitted(&lost, now) })
	d.update(status("t1", "a1", mesos.TASK_RUNNING, 0))
	d.want(t, "asked again", d.after(2*time.Second), "RECONCILE t2@a2")
	d.want(t, "and not dismissed", d.update(status("t2", "a2", mesos.TASK_LOST, 0)), "update t2 TASK_LOST")

	d.want(t, "agent removed", d.does(func(c *core, now time.Time) { c.agentGone("a1", now) }), "RECONCILE t1@a1")
}

func TestRefusedLaunch(t *testing.T) {
	d := newDesk(t, nil)
	d.subscribe()
	d.launch(t, spec("t"))
	for i := range maxRefusals - 1 {
		d.offers(mesosOffer(fmt.Sprint("o", i), "a1"))
		d.outcome(refused, "413 too large")
		d.want(t, "a pause, then again", d.after(time.Second), "REVIVE")
	}
	d.offers(mesosOffer("o9", "a1"))
	got := d.outcome(refused, "413 too large")
	if !slices.Contains(got, "lost t: launch refused") {
		t.Errorf("got %v", got)
	}
}

func TestStrangersAreReportedNotKilled(t *testing.T) {
	d := newDesk(t, nil)
	d.subscribe()
	d.want(t, "stranger", d.update(status("x", "a1", mesos.TASK_RUNNING, 1)), "update x TASK_RUNNING")
	if u := d.out[0].(updateEffect).update; u.Known {
		t.Error("a stranger is called known")
	}
	d.commit()
	d.want(t, "left alone", d.after(5*time.Minute))
	d.want(t, "its owner's decision", d.does(func(c *core, now time.Time) { _ = c.killTask("x", now) }), "KILL x on a1")
	// The end of a task that nobody knows any more is acknowledged all the same.
	d.want(t, "late copy", d.update(status("y", "a1", mesos.TASK_FINISHED, 1)), "update y TASK_FINISHED")
	if len(d.c.tasks) != 1 {
		t.Errorf("%d tasks", len(d.c.tasks))
	}
}

func TestUpdatesLostWithTheSubscriptionCount(t *testing.T) {
	d := newDesk(t, nil)
	d.subscribe()
	d.run(t, "t", "a1")
	d.want(t, "told, but not taken", d.update(status("t", "a1", mesos.TASK_GONE, 0)), "update t TASK_GONE")
	d.does(func(c *core, _ time.Time) { c.disconnect() })
	d.subscribe()
	d.want(t, "told again", d.update(status("t", "a1", mesos.TASK_GONE, 0)), "update t TASK_GONE")
	d.commit()
	if len(d.c.tasks) != 0 {
		t.Error("the task is not forgotten")
	}
}

func TestAnswersAboutUnsentAttempts(t *testing.T) {
	d := newDesk(t, nil)
	d.subscribe()
	d.launch(t, spec("t"))
	// The journal may still have t as launching, from a save whose ACCEPT was never sent.
	d.does(func(c *core, _ time.Time) { c.disconnect() })
	d.subscribe(TaskRef{TaskID: "t", AgentID: "a1"})
	d.want(t, "answer about it", d.update(status("t", "a1", mesos.TASK_GONE, 0)))
	if len(d.c.pending) != 1 {
		t.Error("the task is not pending any more")
	}
}

// TestCoreProperties throws random events at a core and checks after each:
// no port twice, no ACCEPT twice for a task that may run, calls only while
// subscribed, no offer kept without reason, books that agree.
func TestCoreProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newDesk(t, nil)
		accepts := map[string]bool{} // tasks whose ACCEPT may have reached the master
		var open []launchEffect
		var updates []Update
		ids, offers := 0, 0
		some := func() string { return fmt.Sprintf("t%d", rapid.IntRange(0, max(ids, 1)).Draw(t, "task")) }
		check := func() {
			for _, e := range d.out {
				switch e := e.(type) {
				case callEffect:
					if !d.c.subscribed {
						t.Fatalf("%s while not subscribed", describe(e))
					}
				case launchEffect:
					open = append(open, e)
					saved := map[string]bool{}
					for _, l := range e.launches {
						saved[l.TaskID] = true
					}
					for _, a := range e.accepts {
						for _, id := range launched(a.call) {
							if accepts[id] || !saved[id] {
								t.Fatalf("%s is launched twice or unsaved", id)
							}
							accepts[id] = true
						}
					}
				case updateEffect:
					updates = append(updates, e.update)
				}
			}
			d.out = nil
			ports := map[string]string{}
			for id, x := range d.c.tasks {
				if d.c.pendingByID[id] != nil {
					t.Fatalf("%s is pending and launched", id)
				}
				for _, p := range x.ref.Ports {
					key := fmt.Sprint(x.ref.AgentID, p)
					if ports[key] != "" {
						t.Fatalf("%s and %s share port %s", ports[key], id, key)
					}
					ports[key] = id
				}
				if (x.killing || x.launching) != (d.c.timed[id] != nil) {
					t.Fatalf("%s is timed wrongly", id)
				}
			}
			if len(d.c.pending) != len(d.c.pendingByID) {
				t.Fatal("the queue and its index differ")
			}
			if len(d.c.offers) > 0 && (len(d.c.pending) == 0 || d.c.gather.IsZero()) {
				t.Fatal("offers are held without reason")
			}
			for id := range d.c.timed {
				if d.c.tasks[id] == nil {
					t.Fatalf("%s is timed and gone", id)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"subscribe": func(t *rapid.T) {
				if !d.c.subscribed {
					d.subscribe()
				}
				check()
			},
			"disconnect": func(t *rapid.T) {
				if d.c.subscribed {
					for _, l := range open {
						for _, a := range l.accepts {
							v := rapid.SampledFrom([]verdict{accepted, unsent, ambiguous}).Draw(t, "verdict")
							if v == unsent {
								for _, id := range a.taskIDs {
									delete(accepts, id)
								}
							}
							d.does(func(c *core, now time.Time) { c.launched(a.taskIDs, a.offerIDs, v, "", now) })
							check()
						}
					}
					open = nil
					d.does(func(c *core, _ time.Time) { c.disconnect() })
				}
				check()
			},
			"launch": func(t *rapid.T) {
				s := spec(fmt.Sprintf("t%d", ids))
				s.Ports = rapid.IntRange(0, 3).Draw(t, "ports")
				ids++
				d.launch(t, s)
				check()
			},
			"offer": func(t *rapid.T) {
				if d.c.subscribed {
					o := mesosOffer(fmt.Sprintf("o%d", offers), fmt.Sprintf("a%d", rapid.IntRange(1, 3).Draw(t, "agent")))
					// Few ports, so that they clash.
					o.Resources[3].Ranges = &mesos.Value_Ranges{Range: []mesos.Value_Range{{Begin: 31000, End: 31004}}}
					offers++
					d.offers(o)
				}
				check()
			},
			"rescind": func(t *rapid.T) {
				ids := slices.Sorted(maps.Keys(d.c.offers))
				if len(ids) > 0 {
					d.does(func(c *core, _ time.Time) { c.rescind(ids[0]) })
				}
				check()
			},
			"outcome": func(t *rapid.T) {
				if len(open) > 0 && d.c.subscribed {
					l := open[0]
					open = open[1:]
					for _, a := range l.accepts {
						v := rapid.SampledFrom([]verdict{accepted, accepted, refused, unsent}).Draw(t, "verdict")
						if v != accepted {
							for _, id := range a.taskIDs {
								delete(accepts, id)
							}
						}
						d.does(func(c *core, now time.Time) { c.launched(a.taskIDs, a.offerIDs, v, "", now) })
						check()
					}
				}
			},
			"update": func(t *rapid.T) {
				id := some()
				x := d.c.tasks[id]
				if x != nil && accepts[id] && d.c.subscribed {
					s := rapid.SampledFrom([]mesos.TaskState{mesos.TASK_STAGING, mesos.TASK_STARTING, mesos.TASK_RUNNING, mesos.TASK_KILLING, mesos.TASK_FAILED,
						mesos.TASK_KILLED, mesos.TASK_UNREACHABLE, mesos.TASK_LOST, mesos.TASK_GONE}).Draw(t, "state")
					d.update(status(id, x.ref.AgentID, s, byte(rapid.IntRange(0, 3).Draw(t, "uuid"))))
				}
				check()
			},
			"listener": func(t *rapid.T) {
				if len(updates) > 0 {
					u := updates[0]
					updates = updates[1:]
					ok := rapid.Bool().Draw(t, "ok")
					d.does(func(c *core, now time.Time) {
						if ok {
							c.committed(&u, now)
						} else {
							c.uncommitted(&u, now)
						}
					})
				}
				check()
			},
			"kill": func(t *rapid.T) {
				id := some()
				d.does(func(c *core, now time.Time) { _ = c.killTask(id, now) })
				check()
			},
			"tick": func(t *rapid.T) {
				d.after(time.Duration(rapid.IntRange(1, 20000).Draw(t, "ms")) * time.Millisecond)
				check()
			},
		})
	})
}

// With very many tasks, the answers that are waited for do not come behind all others.
func TestReconciliationKeepsTheOrderOfTheOwner(t *testing.T) {
	d := newDesk(t, nil)
	refs := []TaskRef{{TaskID: "z-awaited", AgentID: "a1", State: Staging}}
	for i := range 2*reconcileBatch - 1 {
		refs = append(refs, TaskRef{TaskID: fmt.Sprintf("t%04d", i), AgentID: "a1", State: Running})
	}
	asked := func(lines []string) (batches [][]string) {
		t.Helper()
		for _, l := range lines {
			if ids, ok := strings.CutPrefix(l, "RECONCILE "); ok {
				batches = append(batches, strings.Fields(ids))
			}
		}
		if len(batches) != 2 || len(batches[0]) != reconcileBatch || len(batches[1]) != reconcileBatch {
			t.Fatalf("%d batches", len(batches))
		}
		return batches
	}
	if b := asked(d.subscribe(refs...)); !slices.Contains(b[0], "z-awaited@a1") {
		t.Error("the first of the owner's tasks is not among the first that are asked for")
	}
	// It is also first again after a subscription that ended, when the core knows all of them already.
	d.does(func(c *core, _ time.Time) { c.disconnect() })
	if b := asked(d.subscribe(refs...)); !slices.Contains(b[0], "z-awaited@a1") {
		t.Error("not after the next subscription")
	}
}

// A restart, or another subscription, takes nothing from the time that a task has for fetching.
func TestStagingOverSubscriptions(t *testing.T) {
	d := newDesk(t, nil)
	d.subscribe(TaskRef{TaskID: "t1", AgentID: "a1", State: Staging})
	quiet := func(what string) {
		t.Helper()
		for _, line := range d.after(5 * time.Minute) {
			if !strings.HasPrefix(line, "RECONCILE") {
				t.Errorf("%s: %s", what, line)
			}
		}
	}
	quiet("after a restart")
	d.does(func(c *core, _ time.Time) { c.disconnect() })
	d.subscribe(TaskRef{TaskID: "t1", AgentID: "a1", State: Staging})
	got := d.after(5 * time.Minute)
	for _, want := range []string{"KILL t1 on a1", "lost t1: staging timeout"} {
		if !slices.Contains(got, want) {
			t.Errorf("at the end: %q, not %s", got, want)
		}
	}
}

// A Mesos that comes and goes does not prolong it: each answer says no more than that the task is still fetching.
func TestStagingBehindAFlappingMesos(t *testing.T) {
	d := newDesk(t, nil)
	still := mesos.TaskStatus{
		TaskID: mesos.TaskID{Value: "t1"}, AgentID: &mesos.AgentID{Value: "a1"}, State: mesos.TASK_STAGING.Enum(),
		Source: mesos.SOURCE_MASTER.Enum(), Reason: mesos.REASON_RECONCILIATION.Enum(),
	}
	for minute := range 15 {
		got := d.subscribe(TaskRef{TaskID: "t1", AgentID: "a1", State: Staging})
		got = append(got, d.update(still)...)
		got = append(got, d.after(20*time.Second)...)
		given := slices.Contains(got, "lost t1: staging timeout") && slices.Contains(got, "KILL t1 on a1")
		if given != (minute == 10) {
			t.Fatalf("minute %d: %q", minute, got)
		}
		if given {
			return
		}
		d.does(func(c *core, _ time.Time) { c.disconnect() })
		d.after(40 * time.Second)
	}
}
