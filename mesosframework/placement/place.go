package placement

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// Reason is why an agent cannot take a task.
type Reason string

// The reasons, in the order in which they are tested.
const (
	ReasonExcluded    Reason = "excluded"
	ReasonUnavailable Reason = "unavailable"
	ReasonConstraint  Reason = "constraint"
	ReasonCPUs        Reason = "cpus"
	ReasonMemory      Reason = "memory"
	ReasonDisk        Reason = "disk"
	// ReasonPorts: the agent has fewer free ports than the task needs.
	ReasonPorts Reason = "ports"
	// ReasonPortsBlocked: it has enough, but too many of them are still held
	// back because a proxy may know their former upstream. It passes with time.
	ReasonPortsBlocked Reason = "ports blocked"
)

// Veto is the reason of one agent, in detail.
type Veto struct {
	AgentID, Hostname string
	Reason            Reason
	// Detail says what was needed and what was there.
	Detail string
}

// Refusal is the answer for tasks of one shape that found no agent.
type Refusal struct {
	TaskIDs []string
	// Histogram counts all agents of the snapshot by reason. It is empty when
	// the snapshot had no agent.
	Histogram map[Reason]int
	// Vetoes holds the first Options.MaxVetoes of them.
	Vetoes []Veto
	// Err is set when the task itself is wrong (an invalid constraint): no
	// agent will ever take it.
	Err error
}

// Assignment puts a task on an agent.
type Assignment struct {
	TaskID, AgentID string
	// Ports are the concrete ports, as many as the task asked for, ascending
	// within the walk that found them; the first is PORT0.
	Ports []uint16
}

// Result is the outcome of one pass. Every task given is in exactly one of the
// two, in the order in which the tasks were given.
type Result struct {
	Assignments []Assignment
	Refusals    []Refusal
}

// Options tune a pass. The zero value is usable.
type Options struct {
	// Seed makes the pass reproducible.
	Seed uint64
	// PortBlocked, if set, reports ports that must not be given out. It must be
	// a pure, fast function of its arguments for the duration of the pass.
	PortBlocked func(agentID, host string, port uint16) bool
	// Excluded lists agents (by ID) that take nothing at all.
	Excluded map[string]bool
	// MaxVetoes bounds Refusal.Vetoes; 0 means 20.
	MaxVetoes int
}

// exhaustive is the number of agents up to which all of them are probed: small
// clusters get the exact optimum, large ones a sample.
const exhaustive = 64

// Place assigns tasks to agents. running may be nil. It does not change its
// arguments; in particular the assigned tasks are not added to running.
func Place(agents []Agent, running *Population, tasks []Task, o Options) Result {
	if o.MaxVetoes == 0 {
		o.MaxVetoes = 20
	}
	if running == nil {
		running = NewPopulation()
	}
	p := &pass{
		opts: o, agents: agents, running: running,
		rng:    random(o.Seed),
		free:   make([]free, len(agents)),
		groups: make(map[string]*tally), apps: make(map[string]*tally),
		shapes: make(map[string]*shape),
	}
	for i := range agents {
		p.free[i] = free{
			cpus: milli(agents[i].CPUs), mem: milli(agents[i].MemoryMB), disk: milli(agents[i].DiskMB),
			ports: portCount(agents[i].Ports), ranges: agents[i].Ports,
		}
	}
	var res Result
	refused := make(map[*shape]int)
	for i := range tasks {
		t := &tasks[i]
		s := p.shape(t)
		if a, ok := p.placeOne(s, t); ok {
			res.Assignments = append(res.Assignments, a)
			continue
		}
		at, ok := refused[s]
		if !ok {
			at = len(res.Refusals)
			refused[s] = at
			res.Refusals = append(res.Refusals, p.refusal(s))
		}
		res.Refusals[at].TaskIDs = append(res.Refusals[at].TaskIDs, t.ID)
	}
	return res
}

// milli converts a scalar to the fixed point that Mesos uses.
func milli(v float64) int64 {
	if math.IsNaN(v) || v <= 0 {
		return 0
	}
	if v > math.MaxInt64/2000 {
		return math.MaxInt64 / 2
	}
	return int64(math.Round(v * 1000))
}

// free is what remains of an agent during the pass.
type free struct {
	cpus, mem, disk int64
	ports           int
	ranges          []PortRange
}

// tally counts the tasks of one group or App per agent of the snapshot, and,
// for groups, per value of the attributes that constraints name.
type tally struct {
	onAgent map[string]int
	values  map[string]map[string]int
	// sites are the agents that hold running tasks of the group.
	sites map[*site]int
	// placed are the agents (by index) that got tasks in this pass.
	placed map[int]int
}

type pass struct {
	opts    Options
	agents  []Agent
	running *Population
	rng     random
	free    []free
	groups  map[string]*tally
	apps    map[string]*tally
	shapes  map[string]*shape
}

func (p *pass) tallyOf(of map[string]*tally, base map[string]map[*site]int, name string) *tally {
	if t, ok := of[name]; ok {
		return t
	}
	t := &tally{onAgent: make(map[string]int), values: make(map[string]map[string]int), sites: base[name], placed: make(map[int]int)}
	for s, n := range t.sites {
		t.onAgent[s.agent.ID] += n
	}
	of[name] = t
	return t
}

// byValue returns the counts per value of an attribute, made at first use from
// the tasks that ran before and those placed so far, and kept up to date.
func (p *pass) byValue(t *tally, attribute string) map[string]int {
	if m, ok := t.values[attribute]; ok {
		return m
	}
	m := make(map[string]int)
	for s, n := range t.sites {
		if v, ok := s.agent.attribute(attribute); ok {
			m[v] += n
		}
	}
	for i, n := range t.placed {
		if v, ok := p.agents[i].attribute(attribute); ok {
			m[v] += n
		}
	}
	t.values[attribute] = m
	return m
}

func (p *pass) add(t *tally, agent int) {
	a := &p.agents[agent]
	t.onAgent[a.ID]++
	t.placed[agent]++
	for attribute, m := range t.values {
		if v, ok := a.attribute(attribute); ok {
			m[v]++
		}
	}
}

// shape is all that tasks which are placed alike have in common.
type shape struct {
	need    free
	rules   []rule
	spreads []rule
	group   *tally
	app     *tally
	exclude map[string]bool
	err     error

	candidates []int // indexes of agents not yet refused
	vetoes     []Veto
	histogram  map[Reason]int
	classes    map[*Class]*rule // the static rule that refuses the class, nil if none
}

func (p *pass) shape(t *Task) *shape {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %d %d %d %d", t.App, t.group(), milli(t.CPUs), milli(t.MemoryMB), milli(t.DiskMB), t.Ports)
	for _, c := range t.Constraints {
		fmt.Fprintf(&b, " %q %q %q", c.Attribute, c.Operator, c.Value)
	}
	for _, e := range t.Exclude {
		fmt.Fprintf(&b, " -%q", e)
	}
	key := b.String()
	if s, ok := p.shapes[key]; ok {
		return s
	}
	s := &shape{
		need:  free{cpus: milli(t.CPUs), mem: milli(t.MemoryMB), disk: milli(t.DiskMB), ports: t.Ports},
		group: p.tallyOf(p.groups, p.running.groups, t.group()), app: p.tallyOf(p.apps, p.running.apps, t.App),
		histogram: make(map[Reason]int), classes: make(map[*Class]*rule),
	}
	p.shapes[key] = s
	for _, c := range t.Constraints {
		r, err := compile(c)
		if err != nil {
			s.err = err
			return s
		}
		if r.Operator == Spread {
			s.spreads = append(s.spreads, r)
			continue
		}
		s.rules = append(s.rules, r)
	}
	if len(t.Exclude) > 0 {
		s.exclude = make(map[string]bool, len(t.Exclude))
		for _, e := range t.Exclude {
			s.exclude[e] = true
		}
	}
	s.candidates = make([]int, len(p.agents))
	for i := range s.candidates {
		s.candidates[i] = i
	}
	return s
}

// placeOne puts one task on the best of the probed agents.
func (p *pass) placeOne(s *shape, t *Task) (Assignment, bool) {
	if s.err != nil {
		return Assignment{}, false
	}
	want := 2 * bits.Len(uint(len(p.agents)))
	if len(s.spreads) > 0 {
		want = 100
	}
	if len(s.candidates) <= exhaustive {
		want = len(s.candidates)
	}
	best, bestPorts := -1, []uint16(nil)
	var bestScore score
	// The candidates before probed were probed and found feasible.
	for probed := 0; probed < want && probed < len(s.candidates); {
		j := probed + p.rng.below(len(s.candidates)-probed)
		s.candidates[probed], s.candidates[j] = s.candidates[j], s.candidates[probed]
		i := s.candidates[probed]
		ports, veto := p.judge(s, i)
		if veto != nil {
			s.refuse(*veto, p.opts.MaxVetoes)
			last := len(s.candidates) - 1
			s.candidates[probed] = s.candidates[last]
			s.candidates = s.candidates[:last]
			continue
		}
		if sc := p.score(s, i); best < 0 || sc.less(bestScore) {
			best, bestScore, bestPorts = i, sc, ports
		}
		probed++
	}
	if best < 0 {
		return Assignment{}, false
	}
	f := &p.free[best]
	f.cpus -= s.need.cpus
	f.mem -= s.need.mem
	f.disk -= s.need.disk
	f.ports -= len(bestPorts)
	f.ranges = without(f.ranges, bestPorts)
	p.add(s.group, best)
	p.add(s.app, best)
	return Assignment{TaskID: t.ID, AgentID: p.agents[best].ID, Ports: bestPorts}, true
}

// judge says whether agent i can take a task of the shape, and with which
// ports. Every veto is monotone within the pass: once given it would be given
// again.
func (p *pass) judge(s *shape, i int) ([]uint16, *Veto) {
	a, f := &p.agents[i], &p.free[i]
	veto := func(r Reason, detail string) *Veto {
		return &Veto{AgentID: a.ID, Hostname: a.Hostname, Reason: r, Detail: detail}
	}
	switch {
	case p.opts.Excluded[a.ID] || s.exclude[a.ID]:
		return nil, veto(ReasonExcluded, "the agent is excluded")
	case a.Unavailable:
		return nil, veto(ReasonUnavailable, "maintenance is scheduled for the agent")
	}
	if detail := p.violated(s, a); detail != "" {
		return nil, veto(ReasonConstraint, detail)
	}
	switch {
	case f.cpus < s.need.cpus:
		return nil, veto(ReasonCPUs, lacks("cpus", s.need.cpus, f.cpus))
	case f.mem < s.need.mem:
		return nil, veto(ReasonMemory, lacks("MiB of memory", s.need.mem, f.mem))
	case f.disk < s.need.disk:
		return nil, veto(ReasonDisk, lacks("MiB of disk", s.need.disk, f.disk))
	case f.ports < s.need.ports:
		return nil, veto(ReasonPorts, fmt.Sprintf("needs %d ports, %d free", s.need.ports, f.ports))
	}
	ports := p.pickPorts(a, f, s.need.ports)
	if len(ports) < s.need.ports {
		return nil, veto(ReasonPortsBlocked, fmt.Sprintf("needs %d ports; of %d free ones only %d may be used, the others are still known to a proxy", s.need.ports, f.ports, len(ports)))
	}
	return ports, nil
}

func lacks(what string, need, have int64) string {
	f := func(v int64) string { return strconv.FormatFloat(float64(v)/1000, 'f', -1, 64) }
	return "needs " + f(need) + " " + what + ", " + f(have) + " free"
}

// violated returns which hard constraint forbids the agent, "" if none.
func (p *pass) violated(s *shape, a *Agent) string {
	bad, known := s.classes[a.Class]
	if !known {
		for i := range s.rules {
			if r := &s.rules[i]; r.static() && !perAgent(r.Attribute) {
				if v, ok := a.Class.Get(r.Attribute); !r.admits(v, ok) {
					bad = r
					break
				}
			}
		}
		s.classes[a.Class] = bad
	}
	if bad != nil {
		return explain(bad, a)
	}
	for i := range s.rules {
		r := &s.rules[i]
		v, ok := a.attribute(r.Attribute)
		if r.static() {
			if perAgent(r.Attribute) && !r.admits(v, ok) {
				return explain(r, a)
			}
			continue
		}
		if !ok {
			return explain(r, a)
		}
		counts := p.byValue(s.group, r.Attribute)
		switch r.Operator {
		case Is, Like, Unlike, Spread: // judged above, and by score
		case Unique, MaxPer:
			if n := counts[v]; n >= r.limit {
				return fmt.Sprintf("%s: %s=%s has %d already", r, r.Attribute, v, n)
			}
		case Cluster:
			if len(counts) > 0 && counts[v] == 0 {
				return fmt.Sprintf("%s: the group is elsewhere, the agent has %s=%s", r, r.Attribute, v)
			}
		}
	}
	return ""
}

func explain(r *rule, a *Agent) string {
	if v, ok := a.attribute(r.Attribute); ok {
		return fmt.Sprintf("%s: the agent has %s=%s", r, r.Attribute, v)
	}
	return fmt.Sprintf("%s: the agent has no attribute %s", r, r.Attribute)
}

func (s *shape) refuse(v Veto, limit int) {
	s.histogram[v.Reason]++
	if len(s.vetoes) < limit {
		s.vetoes = append(s.vetoes, v)
	}
}

func (p *pass) refusal(s *shape) Refusal {
	slices.SortFunc(s.vetoes, func(a, b Veto) int { return strings.Compare(a.AgentID, b.AgentID) })
	return Refusal{Histogram: s.histogram, Vetoes: s.vetoes, Err: s.err}
}

// score orders feasible agents; less is better.
type score struct {
	spread     int   // sum over the spread constraints
	group, app int   // relatives on the agent
	used       int64 // the scarcest resource's use after placement, in 1/1000 of what was free
}

func (a score) less(b score) bool {
	switch {
	case a.spread != b.spread:
		return a.spread < b.spread
	case a.group != b.group:
		return a.group < b.group
	case a.app != b.app:
		return a.app < b.app
	}
	return a.used < b.used
}

// missingSpread makes agents without the attribute the last resort of spread.
const missingSpread = 1 << 20

func (p *pass) score(s *shape, i int) score {
	a, f := &p.agents[i], &p.free[i]
	sc := score{group: s.group.onAgent[a.ID], app: s.app.onAgent[a.ID]}
	for k := range s.spreads {
		attribute := s.spreads[k].Attribute
		if v, ok := a.attribute(attribute); ok {
			sc.spread += p.byValue(s.group, attribute)[v]
		} else {
			sc.spread += missingSpread
		}
	}
	share := func(need, have int64) {
		if have > 0 {
			sc.used = max(sc.used, 1000*need/have)
		}
	}
	share(s.need.cpus, f.cpus)
	share(s.need.mem, f.mem)
	share(s.need.disk, f.disk)
	return sc
}
