package placement

import (
	"maps"
	"slices"
	"strings"
)

// Class is an interned, immutable set of attributes. Agents with equal
// attributes share one Class, so a constraint is judged once for all of them.
type Class struct {
	attributes map[string]string
}

// Get returns the value of an attribute of the class.
func (c *Class) Get(name string) (string, bool) {
	if c == nil {
		return "", false
	}
	v, ok := c.attributes[name]
	return v, ok
}

// Attributes returns a copy of the attributes.
func (c *Class) Attributes() map[string]string {
	if c == nil {
		return nil
	}
	return maps.Clone(c.attributes)
}

// Classes interns attribute sets. It is not safe for concurrent use. It holds
// one entry per distinct set ever seen: tens in real clusters.
type Classes struct {
	byKey map[string]*Class
}

// Class returns the one Class for the attributes. The map is copied.
func (c *Classes) Class(attributes map[string]string) *Class {
	keys := slices.Sorted(maps.Keys(attributes))
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(k)
		b.WriteByte(0)
		b.WriteString(attributes[k])
		b.WriteByte(0)
	}
	key := b.String()
	if class, ok := c.byKey[key]; ok {
		return class
	}
	if c.byKey == nil {
		c.byKey = make(map[string]*Class)
	}
	class := &Class{attributes: maps.Clone(attributes)}
	c.byKey[key] = class
	return class
}

// PortRange is a closed range of ports.
type PortRange struct {
	Begin, End uint16
}

// Agent is what one agent has free right now.
type Agent struct {
	ID       string
	Hostname string
	// Host is the address at which tasks of the agent are reached; it is passed
	// to Options.PortBlocked.
	Host  string
	Class *Class
	// CPUs in cores, the others in MiB. Compared at a precision of 0.001, as
	// Mesos does.
	CPUs, MemoryMB, DiskMB float64
	Ports                  []PortRange
	// Unavailable says that the agent is about to be taken away (maintenance):
	// nothing is placed there.
	Unavailable bool
}

// attribute returns an attribute of the agent, pseudo attributes included.
func (a *Agent) attribute(name string) (string, bool) {
	switch name {
	case AttributeHostname:
		return a.Hostname, a.Hostname != ""
	case AttributeAgent:
		return a.ID, true
	}
	return a.Class.Get(name)
}

// Task is one task to place.
type Task struct {
	ID string
	// App and Group name the task's relatives. Constraints count the tasks of
	// the same Group (say, one revision of an App); the tasks of the same App
	// only break ties. An empty Group means the App.
	App, Group             string
	CPUs, MemoryMB, DiskMB float64
	Ports                  int
	Constraints            []Constraint
	// Exclude lists agents (by ID) that must not take this task.
	Exclude []string
}

func (t *Task) group() string {
	if t.Group == "" {
		return t.App
	}
	return t.Group
}

// resident is where a counted task runs.
type resident struct {
	app, group string
	site       *site
}

// site is an agent that holds counted tasks, with the facts that constraints
// need even while the agent offers nothing.
type site struct {
	agent Agent
	tasks int
}

// Population knows where the tasks that already run are, as the constraints and
// the spreading need it. It is not safe for concurrent use.
type Population struct {
	tasks  map[string]resident
	sites  map[string]*site
	groups map[string]map[*site]int
	apps   map[string]map[*site]int
}

// NewPopulation returns an empty population.
func NewPopulation() *Population {
	return &Population{
		tasks:  make(map[string]resident),
		sites:  make(map[string]*site),
		groups: make(map[string]map[*site]int),
		apps:   make(map[string]map[*site]int),
	}
}

// Add counts a task on an agent, of which ID, Hostname and Class matter. Adding
// a task again moves it.
func (p *Population) Add(taskID, app, group string, agent Agent) {
	p.Remove(taskID)
	if group == "" {
		group = app
	}
	s := p.sites[agent.ID]
	if s == nil {
		s = &site{}
		p.sites[agent.ID] = s
	}
	if s.agent.Class == nil || agent.Class != nil {
		s.agent = Agent{ID: agent.ID, Hostname: agent.Hostname, Class: agent.Class}
	}
	s.tasks++
	p.tasks[taskID] = resident{app: app, group: group, site: s}
	count(p.groups, group, s, 1)
	count(p.apps, app, s, 1)
}

// Remove forgets a task; an unknown one is ignored.
func (p *Population) Remove(taskID string) {
	r, ok := p.tasks[taskID]
	if !ok {
		return
	}
	delete(p.tasks, taskID)
	count(p.groups, r.group, r.site, -1)
	count(p.apps, r.app, r.site, -1)
	r.site.tasks--
	if r.site.tasks == 0 {
		delete(p.sites, r.site.agent.ID)
	}
}

// Len returns the number of counted tasks.
func (p *Population) Len() int { return len(p.tasks) }

func count(of map[string]map[*site]int, key string, s *site, delta int) {
	m := of[key]
	if m == nil {
		m = make(map[*site]int)
		of[key] = m
	}
	m[s] += delta
	if m[s] == 0 {
		delete(m, s)
		if len(m) == 0 {
			delete(of, key)
		}
	}
}
