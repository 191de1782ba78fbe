package master

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"pgregory.net/rapid"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/mesosframework/localmesos/link"
	"github.com/cutover/cutover/mesosframework/localmesos/resource"
	"github.com/cutover/cutover/mesosframework/localmesos/wire"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// quietAgent takes every order and says nothing by itself.
type quietAgent struct{}

func (quietAgent) Registered(string)                       {}
func (quietAgent) Run(mesos.FrameworkInfo, mesos.TaskInfo) {}
func (quietAgent) Kill(string, string, *mesos.KillPolicy)  {}
func (quietAgent) Acknowledge(string, string, []byte)      {}
func (quietAgent) FrameworkUpdated(mesos.FrameworkInfo)    {}
func (quietAgent) FrameworkRemoved(string)                 {}
func (quietAgent) Leave()                                  {}

var _ Agent = quietAgent{}

func newMaster(t interface{ Fatal(...any) }) *Master {
	m, err := New(Options{Addr: "127.0.0.1:5050", AllocationInterval: time.Hour, HeartbeatInterval: time.Hour, PingTimeout: time.Hour,
		MaxPings: 5, Version: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	m.Start()
	return m
}

func do(m *Master, f func()) { _ = m.actor.Call(context.Background(), f) }

func frameworkInfo(id string) mesos.FrameworkInfo {
	checkpoint, failover := true, 3600.0
	return mesos.FrameworkInfo{User: "u", Name: id, ID: &mesos.FrameworkID{Value: id}, Roles: []string{"a", "b"}, Checkpoint: &checkpoint,
		FailoverTimeout: &failover, Capabilities: []mesos.FrameworkInfo_Capability{
			{Type: mesos.FrameworkInfo_Capability_MULTI_ROLE}, {Type: mesos.FrameworkInfo_Capability_PARTITION_AWARE}}}
}

func registration(n int) link.Registration {
	s, _ := resource.Parse(fmt.Sprintf("cpus:4;mem:4096;ports:[%d-%d]", 31000+100*n, 31099+100*n))
	return link.Registration{PID: fmt.Sprintf("slave(1)@127.0.0.1:%d", 5051+n),
		Info: mesos.AgentInfo{Hostname: fmt.Sprint("h", n), Resources: s.Mesos("")}}
}

// TestNothingIsGivenTwice plays random calls and faults and checks after each
// that no agent's resources are promised twice, and that what is neither used
// nor offered is really free.
func TestNothingIsGivenTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMaster(t)
		defer m.Stop()
		for n := range 3 {
			m.Register(registration(n), quietAgent{})
		}
		streams := map[string]*stream{}
		tasks := 0
		steps := rapid.IntRange(1, 40).Draw(t, "steps")
		for i := range steps {
			fid := rapid.SampledFrom([]string{"f1", "f2"}).Draw(t, "framework")
			action := rapid.SampledFrom([]string{"subscribe", "accept", "accept", "decline", "end", "end", "revive", "suppress", "allocate", "lose",
				"return", "drop", "rescind", "disconnect", "remove"}).Draw(t, "action")
			pick := rapid.IntRange(0, 99).Draw(t, "pick")
			do(m, func() {
				f := m.frameworks[fid]
				if f == nil && action != "subscribe" {
					return
				}
				var mine []*offer
				for _, o := range m.sortedOffers() {
					if o.framework == f {
						mine = append(mine, o)
					}
				}
				agents := m.sortedAgents()
				switch action {
				case "subscribe":
					streams[fid] = newStream(wire.JSON)
					m.subscribe(frameworkInfo(fid), nil, streams[fid])
				case "accept":
					if len(mine) == 0 {
						return
					}
					o := mine[pick%len(mine)]
					tasks++
					ask, _ := resource.Parse(fmt.Sprintf("cpus:%v;mem:%d", float64(pick%30)/10+0.1, pick+1))
					m.accept(f, &scheduler.Call_Accept{OfferIDs: []mesos.OfferID{{Value: o.id}}, Operations: []mesos.Offer_Operation{{
						Type: mesos.Offer_Operation_LAUNCH, Launch: &mesos.Offer_Operation_Launch{TaskInfos: []mesos.TaskInfo{{
							TaskID: mesos.TaskID{Value: fmt.Sprint("t", tasks)}, AgentID: mesos.AgentID{Value: o.agent.id},
							Command: &mesos.CommandInfo{}, Resources: ask.Mesos(""),
						}}}}}})
				case "decline":
					if len(mine) > 0 {
						m.decline(f, &scheduler.Call_Decline{OfferIDs: []mesos.OfferID{{Value: mine[pick%len(mine)].id}}})
					}
				case "end":
					if live := sortedTasks(f.tasks); len(live) > 0 {
						task := live[pick%len(live)]
						state := mesos.TASK_FINISHED
						m.update(link.Update{FrameworkID: f.id, Latest: state, Status: mesos.TaskStatus{
							TaskID: task.info.TaskID, State: &state, AgentID: &mesos.AgentID{Value: task.agent}, UUID: make([]byte, 16)}})
						if pick%2 == 0 {
							m.acknowledge(f, &scheduler.Call_Acknowledge{AgentID: mesos.AgentID{Value: task.agent}, TaskID: task.info.TaskID, UUID: make([]byte, 16)})
						}
					}
				case "revive":
					m.revive(f, nil)
				case "suppress":
					m.suppress(f, []string{"a"})
				case "allocate":
					m.allocate(time.Now().Add(time.Duration(i) * time.Hour))
				case "lose":
					if len(agents) > 0 {
						m.lost(agents[pick%len(agents)])
					}
				case "return":
					for id := range m.unreachable {
						r := registration(pick % 3)
						r.Info.ID = &mesos.AgentID{Value: id}
						m.register(r, quietAgent{})
						break
					}
				case "drop":
					if len(agents) > 0 {
						a := agents[pick%len(agents)]
						a.connected = false
						m.rescindAll(a)
					}
				case "rescind":
					if len(mine) > 0 {
						m.rescind(mine[0])
					}
				case "disconnect":
					m.disconnected(f.stream)
				case "remove":
					m.remove(f)
				}
			})
			do(m, func() { checkAccounts(t, m, action) })
		}
	})
}

func checkAccounts(t *rapid.T, m *Master, action string) {
	for _, a := range m.agents {
		var used, offered resource.Set
		for _, f := range m.frameworks {
			for _, task := range f.tasks {
				if task.agent == a.id && !link.Terminal(task.state) {
					used = used.Add(task.resources())
				}
			}
		}
		for _, o := range m.offers {
			if o.agent == a {
				offered = offered.Add(o.resources)
			}
			if !o.framework.connected() {
				t.Fatalf("after %s: an offer to a framework that is away", action)
			}
		}
		if used.String() != a.used.String() || offered.String() != a.offered.String() {
			t.Fatalf("after %s: agent %s counts used %s offered %s, really %s and %s", action, a.info.Hostname, a.used, a.offered, used, offered)
		}
		if sum := used.Add(offered); !a.total.Contains(sum) {
			t.Fatalf("after %s: agent %s gave %s of %s", action, a.info.Hostname, sum, a.total)
		}
	}
}

// TestSlowClientIsCut: a stream that nobody reads ends; the master goes on.
func TestSlowClientIsCut(t *testing.T) {
	s := newStream(wire.JSON)
	big := errorEvent(string(make([]byte, 1<<20)))
	n := 0
	for s.send(big) {
		if n++; n > 1000 {
			t.Fatal("the stream takes everything")
		}
	}
	rec := httptest.NewRecorder()
	s.serve(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)) // returns: closed
	if rec.Body.Len() > 0 {
		t.Fatal("a cut stream still gives events")
	}
}

// TestFiltersAreSubsets: what was refused is not offered again, more is.
func TestFiltersAreSubsets(t *testing.T) {
	m := newMaster(t)
	defer m.Stop()
	do(m, func() {
		m.register(registration(0), quietAgent{})
		m.subscribe(frameworkInfo("f"), nil, newStream(wire.JSON))
		f := m.frameworks["f"]
		refuse := 1000.0
		o := m.sortedOffers()[0]
		m.decline(f, &scheduler.Call_Decline{OfferIDs: []mesos.OfferID{{Value: o.id}}, Filters: &mesos.Filters{RefuseSeconds: &refuse}})
		m.allocate(time.Now())
		roles := []string{}
		for _, o := range m.sortedOffers() {
			roles = append(roles, o.role)
		}
		if slices.Contains(roles, o.role) || len(roles) != 1 {
			t.Errorf("after a refusal in role %s offers in %v", o.role, roles)
		}
	})
}
