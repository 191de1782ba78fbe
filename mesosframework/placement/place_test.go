package placement

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// cluster makes n agents of 4 cores, 4 GiB and 100 ports in racks of the given
// number.
func cluster(n, racks int) []Agent {
	var classes Classes
	agents := make([]Agent, n)
	for i := range agents {
		agents[i] = Agent{
			ID: fmt.Sprintf("a%d", i), Hostname: fmt.Sprintf("h%d", i), Host: fmt.Sprintf("10.0.%d.%d", i/250, i%250),
			Class: classes.Class(map[string]string{"rack": fmt.Sprintf("r%d", i%racks), "disk": []string{"ssd", "hdd"}[i%2]}),
			CPUs:  4, MemoryMB: 4096, DiskMB: 10000, Ports: []PortRange{{Begin: 31000, End: 31099}},
		}
	}
	return agents
}

func tasks(n int, change func(*Task)) []Task {
	out := make([]Task, n)
	for i := range out {
		out[i] = Task{ID: fmt.Sprintf("t%d", i), App: "shop", CPUs: 0.1, MemoryMB: 64, Ports: 1}
		if change != nil {
			change(&out[i])
		}
	}
	return out
}

func perAgentCounts(r Result) map[string]int {
	m := map[string]int{}
	for _, a := range r.Assignments {
		m[a.AgentID]++
	}
	return m
}

func TestPlaceTable(t *testing.T) {
	constraint := func(attribute string, op Operator, value string) func(*Task) {
		return func(t *Task) { t.Constraints = []Constraint{{attribute, op, value}} }
	}
	for _, tc := range []struct {
		name   string
		agents []Agent
		tasks  []Task
		opts   Options
		counts map[string]int // per agent; nil: not compared
		placed int
		reason Reason // of the refused
		detail string // part of the first veto's detail
	}{
		{name: "spread over agents by default", agents: cluster(4, 2), tasks: tasks(8, nil), placed: 8, counts: map[string]int{"a0": 2, "a1": 2, "a2": 2, "a3": 2}},
		{name: "no agents", tasks: tasks(1, nil)},
		{name: "is", agents: cluster(4, 4), tasks: tasks(3, constraint("rack", Is, "r2")), placed: 3, counts: map[string]int{"a2": 3}},
		{name: "is nowhere", agents: cluster(4, 4), tasks: tasks(1, constraint("rack", Is, "r9")), reason: ReasonConstraint, detail: "rack is r9: the agent has rack=r0"},
		{name: "missing attribute", agents: cluster(1, 1), tasks: tasks(1, constraint("gpu", Is, "yes")), reason: ReasonConstraint, detail: "no attribute gpu"},
		{name: "like is anchored", agents: cluster(4, 4), tasks: tasks(1, constraint("rack", Like, "r")), reason: ReasonConstraint},
		{name: "like", agents: cluster(4, 4), tasks: tasks(2, constraint("rack", Like, "r[01]")), placed: 2, counts: map[string]int{"a0": 1, "a1": 1}},
		{name: "unlike", agents: cluster(4, 4), tasks: tasks(2, constraint("rack", Unlike, "r[01]")), placed: 2, counts: map[string]int{"a2": 1, "a3": 1}},
		{name: "unlike a missing attribute", agents: cluster(2, 1), tasks: tasks(2, constraint("gpu", Unlike, ".*")), placed: 2},
		{name: "like hostname", agents: cluster(4, 4), tasks: tasks(2, constraint(AttributeHostname, Like, "h3")), placed: 2, counts: map[string]int{"a3": 2}},
		{name: "unique hostname", agents: cluster(3, 1), tasks: tasks(5, constraint(AttributeHostname, Unique, "")), placed: 3, counts: map[string]int{"a0": 1, "a1": 1, "a2": 1}, reason: ReasonConstraint, detail: "has 1 already"},
		{name: "unique rack", agents: cluster(4, 2), tasks: tasks(4, constraint("rack", Unique, "")), placed: 2, reason: ReasonConstraint},
		{name: "max_per rack", agents: cluster(4, 2), tasks: tasks(9, constraint("rack", MaxPer, "3")), placed: 6, reason: ReasonConstraint},
		{name: "cluster with a value", agents: cluster(4, 4), tasks: tasks(2, constraint("rack", Cluster, "r1")), placed: 2, counts: map[string]int{"a1": 2}},
		{name: "cpus", agents: cluster(1, 1), tasks: tasks(1, func(t *Task) { t.CPUs = 64 }), reason: ReasonCPUs, detail: "needs 64 cpus, 4 free"},
		{name: "memory", agents: cluster(1, 1), tasks: tasks(1, func(t *Task) { t.MemoryMB = 4096.5 }), reason: ReasonMemory, detail: "needs 4096.5 MiB"},
		{name: "disk", agents: cluster(1, 1), tasks: tasks(1, func(t *Task) { t.DiskMB = 1e9 }), reason: ReasonDisk},
		{name: "ports", agents: cluster(1, 1), tasks: tasks(1, func(t *Task) { t.Ports = 101 }), reason: ReasonPorts, detail: "needs 101 ports, 100 free"},
		{name: "all ports", agents: cluster(1, 1), tasks: tasks(1, func(t *Task) { t.Ports = 100 }), placed: 1},
		{name: "blocked ports", agents: cluster(1, 1), tasks: tasks(1, nil), opts: Options{PortBlocked: func(string, string, uint16) bool { return true }}, reason: ReasonPortsBlocked, detail: "only 0 may be used"},
		{name: "excluded for all", agents: cluster(1, 1), tasks: tasks(1, nil), opts: Options{Excluded: map[string]bool{"a0": true}}, reason: ReasonExcluded},
		{name: "excluded for the task", agents: cluster(2, 1), tasks: tasks(2, func(t *Task) { t.Exclude = []string{"a0"} }), placed: 2, counts: map[string]int{"a1": 2}},
		{name: "maintenance", agents: []Agent{{ID: "a0", CPUs: 1, Unavailable: true}}, tasks: []Task{{ID: "t"}}, reason: ReasonUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := Place(tc.agents, nil, tc.tasks, tc.opts)
			if len(r.Assignments) != tc.placed {
				t.Fatalf("placed %d, want %d: %+v", len(r.Assignments), tc.placed, r)
			}
			if tc.counts != nil {
				if d := cmp.Diff(tc.counts, perAgentCounts(r)); d != "" {
					t.Error(d)
				}
			}
			if missing := len(tc.tasks) - tc.placed; missing > 0 {
				if len(r.Refusals) != 1 || len(r.Refusals[0].TaskIDs) != missing {
					t.Fatalf("refusals: %+v", r.Refusals)
				}
				f := r.Refusals[0]
				total := 0
				for _, n := range f.Histogram {
					total += n
				}
				if total != len(tc.agents) {
					t.Errorf("histogram %v covers %d of %d agents", f.Histogram, total, len(tc.agents))
				}
				if tc.reason != "" && (f.Histogram[tc.reason] == 0 || !strings.Contains(f.Vetoes[0].Detail, tc.detail)) {
					t.Errorf("want %s %q, got %+v", tc.reason, tc.detail, f)
				}
			}
		})
	}
}

func TestSpreadOverAttribute(t *testing.T) {
	// Rack r0 has 9 agents, r1 has one: spread by rack must still balance racks.
	agents := cluster(10, 1)
	var classes Classes
	agents[9].Class = classes.Class(map[string]string{"rack": "r1"})
	r := Place(agents, nil, tasks(8, func(t *Task) { t.Constraints = []Constraint{{"rack", Spread, ""}} }), Options{})
	if got := perAgentCounts(r)["a9"]; got != 4 {
		t.Errorf("rack r1 got %d of 8, want 4", got)
	}
}

func TestClusterFollowsFirst(t *testing.T) {
	agents := cluster(6, 3)
	r := Place(agents, nil, tasks(6, func(t *Task) { t.Constraints = []Constraint{{"rack", Cluster, ""}} }), Options{Seed: 3})
	racks := map[string]bool{}
	for _, a := range r.Assignments {
		for i := range agents {
			if agents[i].ID == a.AgentID {
				v, _ := agents[i].attribute("rack")
				racks[v] = true
			}
		}
	}
	if len(r.Assignments) != 6 || len(racks) != 1 {
		t.Errorf("placed %d in racks %v, want 6 in one", len(r.Assignments), racks)
	}
}

func TestPopulationCounts(t *testing.T) {
	agents := cluster(2, 2)
	pop := NewPopulation()
	// a0 holds a task of the group and offers nothing any more.
	pop.Add("old", "shop", "shop@2", agents[0])
	unique := func(t *Task) {
		t.Group = "shop@2"
		t.Constraints = []Constraint{{"rack", Unique, ""}}
	}
	r := Place(agents[1:], pop, tasks(2, unique), Options{})
	if len(r.Assignments) != 1 {
		t.Errorf("placed %d, want 1 (rack r1 only)", len(r.Assignments))
	}
	// The other revision of the App does not count: blue-green needs both.
	other := tasks(2, unique)
	for i := range other {
		other[i].Group = "shop@3"
	}
	if r := Place(agents, pop, other, Options{}); len(r.Assignments) != 2 {
		t.Errorf("placed %d of another group, want 2", len(r.Assignments))
	}
	pop.Add("old", "shop", "shop@2", agents[1]) // moved
	if r := Place(agents[:1], pop, tasks(1, unique), Options{}); len(r.Assignments) != 1 {
		t.Error("a moved task still counts at its former agent")
	}
	pop.Remove("old")
	pop.Remove("old")
	if pop.Len() != 0 || len(pop.sites) != 0 || len(pop.groups) != 0 || len(pop.apps) != 0 {
		t.Errorf("an empty population keeps entries: %+v", pop)
	}
}

func TestConstraintValidate(t *testing.T) {
	for _, c := range []Constraint{
		{"", Spread, ""}, {"rack", "near", ""}, {"rack", Is, ""}, {"rack", Like, "("}, {"rack", Like, ""},
		{"rack", MaxPer, "0"}, {"rack", MaxPer, "x"}, {"rack", Unique, "3"}, {"rack", Unlike, strings.Repeat("a", 2000)},
	} {
		if c.Validate() == nil {
			t.Errorf("%q passed", c)
		}
		r := Place(cluster(1, 1), nil, []Task{{ID: "t", Constraints: []Constraint{c}}}, Options{})
		if len(r.Refusals) != 1 || r.Refusals[0].Err == nil {
			t.Errorf("%q: %+v, want a refusal with an error", c, r)
		}
	}
	for _, c := range []Constraint{{"rack", Spread, ""}, {"rack", Cluster, ""}, {"rack", MaxPer, "2"}, {"rack", Like, "a|b"}} {
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
	}
}

// dumbFeasible is an independent, slow judge: can the task go to the agent,
// given what was placed before?
func dumbFeasible(a Agent, used []Task, usedPorts map[uint16]bool, t Task, others map[string][]Agent, o Options) bool {
	if o.Excluded[a.ID] || a.Unavailable {
		return false
	}
	for _, e := range t.Exclude {
		if e == a.ID {
			return false
		}
	}
	cpus, mem, disk := milli(a.CPUs), milli(a.MemoryMB), milli(a.DiskMB)
	for _, u := range used {
		cpus, mem, disk = cpus-milli(u.CPUs), mem-milli(u.MemoryMB), disk-milli(u.DiskMB)
	}
	if cpus < milli(t.CPUs) || mem < milli(t.MemoryMB) || disk < milli(t.DiskMB) {
		return false
	}
	n := 0
	for _, r := range a.Ports {
		for p := int(r.Begin); p <= int(r.End); p++ {
			if !usedPorts[uint16(p)] && (o.PortBlocked == nil || !o.PortBlocked(a.ID, a.Host, uint16(p))) {
				n++
			}
		}
	}
	if n < t.Ports {
		return false
	}
	for _, c := range t.Constraints {
		v, ok := a.attribute(c.Attribute)
		same, any := 0, 0
		for _, b := range others[t.group()] {
			if w, ok2 := b.attribute(c.Attribute); ok2 {
				any++
				if w == v {
					same++
				}
			}
		}
		switch c.Operator {
		case Is:
			if !ok || v != c.Value {
				return false
			}
		case Unique:
			if !ok || same > 0 {
				return false
			}
		case MaxPer:
			if !ok || same >= int(c.Value[0]-'0') {
				return false
			}
		case Cluster:
			if !ok || (c.Value != "" && v != c.Value) || (c.Value == "" && any > 0 && same == 0) {
				return false
			}
		}
	}
	return true
}

func TestPlaceProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var classes Classes
		n := rapid.IntRange(0, 90).Draw(t, "agents")
		agents := make([]Agent, n)
		excluded := map[string]bool{}
		byID := map[string]Agent{}
		for i := range agents {
			attrs := map[string]string{}
			if rapid.IntRange(0, 5).Draw(t, "hasRack") > 0 {
				attrs["rack"] = rapid.SampledFrom([]string{"r0", "r1", "r2"}).Draw(t, "rack")
			}
			agents[i] = Agent{
				ID: fmt.Sprintf("a%d", i), Hostname: fmt.Sprintf("h%d", i), Host: "127.0.0.1", Class: classes.Class(attrs),
				CPUs: rapid.Float64Range(0, 2).Draw(t, "cpus"), MemoryMB: float64(rapid.IntRange(0, 512).Draw(t, "mem")), DiskMB: 100,
				Ports:       []PortRange{{31000, 31003}, {31010, 31010}},
				Unavailable: rapid.IntRange(0, 9).Draw(t, "down") == 0,
			}
			if rapid.IntRange(0, 9).Draw(t, "excluded") == 0 {
				excluded[agents[i].ID] = true
			}
			byID[agents[i].ID] = agents[i]
		}
		constraints := [][]Constraint{
			nil, {{"rack", Is, "r1"}}, {{"rack", Unique, ""}}, {{"rack", MaxPer, "2"}}, {{"rack", Cluster, ""}}, {{"rack", Cluster, "r2"}},
			{{"rack", Spread, ""}}, {{AttributeHostname, Unique, ""}, {"rack", Spread, ""}},
		}
		pop := NewPopulation()
		others := map[string][]Agent{}
		if n > 0 {
			for i := range rapid.IntRange(0, 4).Draw(t, "running") {
				a := agents[rapid.IntRange(0, n-1).Draw(t, "at")]
				pop.Add(fmt.Sprintf("run%d", i), "app0", "", a)
				others["app0"] = append(others["app0"], a)
			}
		}
		in := make([]Task, rapid.IntRange(0, 40).Draw(t, "tasks"))
		for i := range in {
			app := rapid.IntRange(0, 2).Draw(t, "app")
			in[i] = Task{
				ID: fmt.Sprintf("t%d", i), App: fmt.Sprintf("app%d", app), CPUs: rapid.SampledFrom([]float64{0, 0.1, 0.7}).Draw(t, "tcpus"),
				MemoryMB: rapid.SampledFrom([]float64{0, 32, 300}).Draw(t, "tmem"), Ports: rapid.IntRange(0, 3).Draw(t, "tports"),
				Constraints: rapid.SampledFrom(constraints).Draw(t, "constraints"),
			}
		}
		o := Options{
			Seed: rapid.Uint64().Draw(t, "seed"), Excluded: excluded,
			PortBlocked: func(_, _ string, port uint16) bool { return port == 31001 },
		}
		res := Place(agents, pop, in, o)
		if d := cmp.Diff(res, Place(agents, pop, in, o)); d != "" {
			t.Fatalf("not deterministic: %s", d)
		}
		outcome := map[string]int{}
		assigned := map[string]Assignment{}
		for _, a := range res.Assignments {
			outcome[a.TaskID]++
			assigned[a.TaskID] = a
		}
		for _, f := range res.Refusals {
			for _, id := range f.TaskIDs {
				outcome[id]++
			}
		}
		used, ports := map[string][]Task{}, map[string]map[uint16]bool{}
		for _, task := range in { // replay in order against the slow judge
			if outcome[task.ID] != 1 {
				t.Fatalf("%s has %d outcomes", task.ID, outcome[task.ID])
			}
			a, ok := assigned[task.ID]
			if !ok {
				for _, agent := range agents {
					if dumbFeasible(agent, used[agent.ID], ports[agent.ID], task, others, o) {
						t.Fatalf("%s was refused, %s can take it", task.ID, agent.ID)
					}
				}
				continue
			}
			agent := byID[a.AgentID]
			if !dumbFeasible(agent, used[agent.ID], ports[agent.ID], task, others, o) {
				t.Fatalf("%s went to %s, which cannot take it", task.ID, agent.ID)
			}
			if len(a.Ports) != task.Ports {
				t.Fatalf("%s got %d ports, asked for %d", task.ID, len(a.Ports), task.Ports)
			}
			for _, p := range a.Ports {
				if ports[agent.ID] == nil {
					ports[agent.ID] = map[uint16]bool{}
				}
				if ports[agent.ID][p] || p == 31001 || !(p >= 31000 && p <= 31003 || p == 31010) {
					t.Fatalf("%s got port %d of %s: twice, blocked or not offered", task.ID, p, agent.ID)
				}
				ports[agent.ID][p] = true
			}
			used[agent.ID] = append(used[agent.ID], task)
			others[task.group()] = append(others[task.group()], agent)
		}
	})
}

func BenchmarkPlace(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		agents := cluster(n, 30)
		for name, change := range map[string]func(*Task){
			"plain":  nil,
			"unique": func(t *Task) { t.Constraints = []Constraint{{AttributeHostname, Unique, ""}} },
			"spread": func(t *Task) { t.Constraints = []Constraint{{"rack", Spread, ""}} },
			"nowhere": func(t *Task) {
				t.CPUs = 64
			},
		} {
			in := tasks(500, change)
			b.Run(fmt.Sprintf("%s/agents=%d/tasks=500", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					Place(agents, nil, in, Options{Seed: 1})
				}
				b.ReportMetric(float64(500*b.N)/b.Elapsed().Seconds(), "tasks/s")
			})
		}
	}
}
