package master

import (
	"fmt"
	"slices"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/mesosframework/localmesos/actor"
	"github.com/cutover/cutover/mesosframework/localmesos/link"
	"github.com/cutover/cutover/mesosframework/localmesos/resource"
	"github.com/cutover/cutover/mesosframework/localmesos/validate"
)

// framework is a framework as the master knows it.
type framework struct {
	id           string
	info         mesos.FrameworkInfo
	suppressed   map[string]bool // by role
	stream       *stream         // nil when not connected
	recovered    bool            // known only from an agent, never subscribed here
	tasks        map[string]*task
	unreachable  map[string]*task
	completed    []*task
	filters      []filter
	allocations  map[string]int // by role, to break ties
	failover     *actor.Timer
	heartbeat    *actor.Timer
	registered   time.Time
	reregistered time.Time
	unregistered time.Time
}

// filter keeps resources that a framework refused from being offered again.
type filter struct {
	role, agent string
	refused     resource.Set
	until       time.Time
}

func (f *framework) connected() bool { return f.stream != nil }

func (f *framework) roles() []string { return validate.Roles(&f.info) }

func (f *framework) has(c mesos.FrameworkInfo_Capability_Type) bool {
	return validate.HasCapability(&f.info, c)
}

func (f *framework) partitionAware() bool {
	return f.has(mesos.FrameworkInfo_Capability_PARTITION_AWARE)
}

// orLost returns the state for a partition-aware framework, LOST for others.
func (f *framework) orLost(s mesos.TaskState) mesos.TaskState {
	if f.partitionAware() {
		return s
	}
	return mesos.TASK_LOST
}

// send queues an event; a framework that is not connected misses it.
func (f *framework) send(e *scheduler.Event) {
	if f.stream != nil {
		f.stream.send(e)
	}
}

func (f *framework) sendStatus(s mesos.TaskStatus) {
	f.send(&scheduler.Event{Type: scheduler.Event_UPDATE, Update: &scheduler.Event_Update{Status: s}})
}

func errorEvent(text string) *scheduler.Event {
	return &scheduler.Event{Type: scheduler.Event_ERROR, Error: &scheduler.Event_Error{Message: text}}
}

func newFramework(id string, info mesos.FrameworkInfo) *framework {
	info.ID = &mesos.FrameworkID{Value: id}
	return &framework{
		id: id, info: info, suppressed: map[string]bool{}, tasks: map[string]*task{}, unreachable: map[string]*task{},
		allocations: map[string]int{}, registered: time.Now(),
	}
}

// subscribe takes a SUBSCRIBE whose stream was opened.
func (m *Master) subscribe(info mesos.FrameworkInfo, suppressed []string, s *stream) {
	refuse := func(text string) {
		s.send(errorEvent(text))
		s.close()
	}
	if e := validate.Framework(&info); e != "" {
		refuse(e)
		return
	}
	if e := validate.SuppressedRoles(&info, suppressed); e != "" {
		refuse(e)
		return
	}
	id := info.ID.GetValue()
	if m.removed[id] != nil && id != "" {
		refuse("Framework has been removed")
		return
	}
	f := m.frameworks[id]
	allocateNow := true
	switch {
	case f == nil:
		if id == "" {
			id = fmt.Sprintf("%s-%04d", m.info.ID, m.nextFramework)
			m.nextFramework++
		}
		f = newFramework(id, info)
		m.frameworks[id] = f
	default:
		if e := validate.PrincipalChange(&f.info, &info); e != "" {
			refuse(e)
			return
		}
		if old := f.stream; old != nil { // failover
			allocateNow = false
			old.send(errorEvent("Framework failed over"))
			old.close()
			f.stream = nil
		}
		f.heartbeat.Cancel()
		f.failover.Cancel()
		m.discardOffers(f)
		info.User, info.Checkpoint = f.info.User, f.info.Checkpoint
		f.info = info
		f.recovered = false
		f.reregistered = time.Now()
	}
	f.info.ID = &mesos.FrameworkID{Value: id}
	f.setSuppressed(suppressed)
	f.stream = s
	interval := m.opts.HeartbeatInterval.Seconds()
	master := m.info
	f.send(&scheduler.Event{Type: scheduler.Event_SUBSCRIBED, Subscribed: &scheduler.Event_Subscribed{
		FrameworkID: f.info.ID, HeartbeatIntervalSeconds: &interval, MasterInfo: &master,
	}})
	m.beat(f)
	for _, a := range m.agents {
		a.handle.FrameworkUpdated(f.info)
	}
	if allocateNow {
		m.allocate(time.Now())
	}
	m.log.Info("framework subscribed", "framework", id, "name", info.Name, "stream", s.id)
}

func (f *framework) setSuppressed(roles []string) {
	f.suppressed = map[string]bool{}
	for _, r := range roles {
		f.suppressed[r] = true
	}
}

// beat sends a heartbeat now and from time to time.
func (m *Master) beat(f *framework) {
	f.send(&scheduler.Event{Type: scheduler.Event_HEARTBEAT})
	f.heartbeat = m.actor.After(m.opts.HeartbeatInterval, func() {
		if f.connected() {
			m.beat(f)
		}
	})
}

// disconnected is called when a client went away.
func (m *Master) disconnected(s *stream) {
	for _, f := range m.frameworks {
		if f.stream != s {
			continue
		}
		f.stream = nil
		f.heartbeat.Cancel()
		m.discardOffers(f)
		f.filters = nil
		f.failover = m.actor.After(failoverTimeout(&f.info), func() {
			m.log.Info("framework removed: it did not come back in time", "framework", f.id)
			m.remove(f)
		})
		m.log.Info("framework disconnected", "framework", f.id, "failover_timeout", failoverTimeout(&f.info))
		return
	}
}

func failoverTimeout(info *mesos.FrameworkInfo) time.Duration {
	return max(0, time.Duration(info.GetFailoverTimeout()*float64(time.Second)))
}

// remove ends a framework: its tasks are killed without a word to it.
func (m *Master) remove(f *framework) {
	f.heartbeat.Cancel()
	f.failover.Cancel()
	m.discardOffers(f)
	if f.stream != nil {
		f.stream.close()
		f.stream = nil
	}
	for _, t := range sortedTasks(f.tasks) {
		if !link.Terminal(t.state) {
			t.state = mesos.TASK_KILLED
			t.note(masterStatus(t.info.TaskID.Value, t.agent, mesos.TASK_KILLED, mesos.REASON_FRAMEWORK_REMOVED,
				fmt.Sprintf("Framework %s removed", f.id)))
		}
		m.release(t)
		f.complete(t)
	}
	for _, a := range m.agents {
		a.handle.FrameworkRemoved(f.id)
		delete(a.pendingKills, f.id)
	}
	f.unregistered = time.Now()
	delete(m.frameworks, f.id)
	m.removed[f.id] = f
	m.removedOrder = append(m.removedOrder, f.id)
	if len(m.removedOrder) > maxRemoved {
		delete(m.removed, m.removedOrder[0])
		m.removedOrder = m.removedOrder[1:]
	}
}

func sortedTasks(tasks map[string]*task) []*task {
	out := make([]*task, 0, len(tasks))
	for _, t := range tasks {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *task) int {
		if a.info.TaskID.Value < b.info.TaskID.Value {
			return -1
		}
		return 1
	})
	return out
}

// updateFramework is UPDATE_FRAMEWORK; it returns the text of a refusal.
func (m *Master) updateFramework(f *framework, info mesos.FrameworkInfo, suppressed []string) string {
	if e := validate.Framework(&info); e != "" {
		return "Supplied FrameworkInfo is not valid: " + e
	}
	if e := validate.SuppressedRoles(&info, suppressed); e != "" {
		return "'UpdateFramework' call is not valid: " + e
	}
	if e := validate.FrameworkUpdate(&f.info, &info); e != "" {
		return "FrameworkInfo update is not valid: " + e
	}
	f.info = info
	roles := f.roles()
	for _, o := range m.sortedOffers() {
		if o.framework == f && !slices.Contains(roles, o.role) {
			m.rescind(o)
		}
	}
	f.setSuppressed(suppressed)
	for _, a := range m.agents {
		a.handle.FrameworkUpdated(f.info)
	}
	return ""
}
