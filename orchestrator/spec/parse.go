package spec

import (
	"errors"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// Defaults of the format.
const (
	defaultCPUs     = 0.1
	defaultMemory   = Bytes(64 << 20)
	defaultInterval = 500 * time.Millisecond
	defaultTimeout  = time.Second
	defaultRise     = 2
	defaultFall     = 3
	defaultGrace    = 20 * time.Second
	defaultKill     = 10 * time.Second
	defaultDeadline = 2 * time.Minute
	defaultDrain    = 30 * time.Second
)

// operators of constraints, and the numbers of values that each may have. They are those of placement.
var operators = map[string]struct{ least, most int }{
	"spread": {0, 0}, "unique": {0, 0}, "cluster": {0, 1}, "is": {1, 1}, "like": {1, 1}, "unlike": {1, 1}, "max_per": {1, 1},
}

// Parse reads a Spec from YAML or JSON. With any problem the Spec must not be used. Problems come in order of line.
func Parse(source []byte) (Spec, []deploy.Problem) {
	specs, problems := parse(source, false)
	if len(problems) > 0 {
		return Spec{}, problems
	}
	return specs[0], nil
}

// ParseAll reads one Spec or several, each in a YAML document of its own. Without a problem there is at least one. Problems
// come in order of line, counted from the start of source.
func ParseAll(source []byte) ([]Spec, []deploy.Problem) { return parse(source, true) }

func parse(source []byte, several bool) ([]Spec, []deploy.Problem) {
	if len(source) > MaxSource {
		return nil, []deploy.Problem{{Reason: fmt.Sprintf("the Spec has %d bytes: at most %d", len(source), MaxSource)}}
	}
	roots, problem := documents(source, several)
	if problem != nil {
		return nil, []deploy.Problem{*problem}
	}
	var specs []Spec
	var problems []deploy.Problem
	nodes := 0
	for _, root := range roots {
		d := &decoder{at: map[string]*yaml.Node{}, nodes: nodes}
		s := d.spec(root)
		nodes = d.nodes
		if len(d.problems) == 0 {
			if n := len(s.Canonical()); n > MaxCanonical {
				d.problem(root, "", "the Spec has %d bytes in its canonical form: at most %d", n, MaxCanonical)
			}
		}
		specs, problems = append(specs, s), append(problems, d.problems...)
	}
	if len(problems) > 0 {
		sort.SliceStable(problems, func(i, j int) bool {
			a, b := problems[i], problems[j]
			return a.Line < b.Line || a.Line == b.Line && a.Column < b.Column
		})
		return nil, problems[:min(len(problems), maxProblems)]
	}
	return specs, nil
}

// documents reads the YAML documents: exactly one, or several. Empty ones between separators do not count.
func documents(source []byte, several bool) ([]*yaml.Node, *deploy.Problem) {
	dec := yaml.NewDecoder(strings.NewReader(string(source)))
	var out []*yaml.Node
	for {
		var doc yaml.Node
		switch err := dec.Decode(&doc); {
		case errors.Is(err, io.EOF):
			if len(out) == 0 {
				return nil, &deploy.Problem{Line: 1, Column: 1, Reason: "the Spec is empty"}
			}
			return out, nil
		case err != nil:
			return nil, syntaxProblem(err)
		}
		if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
			continue
		}
		if root := doc.Content[0]; several && root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
			continue
		}
		if len(out) > 0 && !several {
			return nil, &deploy.Problem{Line: doc.Line, Column: 1, Reason: "one Spec in one file: there is a second document"}
		}
		out = append(out, doc.Content[0])
	}
}

// syntaxProblem takes the line out of the library's text: "yaml: line 3: did not find expected key".
func syntaxProblem(err error) *deploy.Problem {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	p := deploy.Problem{Line: 1, Column: 1, Reason: clip("not YAML or JSON: " + text)}
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if num, what, ok := strings.Cut(rest, ": "); ok {
			if line, err := strconv.Atoi(num); err == nil {
				p.Line, p.Reason = line, clip("not YAML or JSON: "+what)
			}
		}
	}
	return &p
}

func (d *decoder) spec(root *yaml.Node) Spec {
	s := Spec{
		Kind:      KindService,
		Instances: 1,
		Resources: Resources{CPUs: defaultCPUs, Memory: defaultMemory, Ports: -1},
		Kill:      Kill{Signal: "TERM", Grace: Duration(defaultKill)},
		Deploy:    Deploy{Strategy: "blue-green", Deadline: Duration(defaultDeadline), Drain: Duration(defaultDrain)},
	}
	d.mapping(root, "", map[string]field{
		"name":      d.text(&s.Name, 63),
		"kind":      d.text(&s.Kind, 63),
		"version":   d.text(&s.Version, 128),
		"instances": d.integer(&s.Instances, 0, MaxInstances),
		"command":   d.text(&s.Command, 32<<10),
		"artifacts": func(n *yaml.Node, path string) {
			d.list(n, path, 32, func(n *yaml.Node, path string) { s.Artifacts = append(s.Artifacts, d.artifact(n, path)) })
		},
		"env": func(n *yaml.Node, path string) { s.Env = d.env(n, path) },
		"resources": func(n *yaml.Node, path string) {
			d.mapping(n, path, map[string]field{
				"cpus":   d.number(&s.Resources.CPUs, 0.01, 1024),
				"memory": d.bytes(&s.Resources.Memory, 1<<20, 1<<50),
				"disk":   d.bytes(&s.Resources.Disk, 0, 1<<50),
				"ports":  d.integer(&s.Resources.Ports, 0, MaxPorts),
			}, "gpus")
		},
		"constraints": func(n *yaml.Node, path string) {
			d.list(n, path, 32, func(n *yaml.Node, path string) { s.Constraints = append(s.Constraints, d.constraint(n, path)) })
		},
		"health": func(n *yaml.Node, path string) { s.Health = d.health(n, path) },
		"kill": func(n *yaml.Node, path string) {
			d.mapping(n, path, map[string]field{
				"signal": d.text(&s.Kill.Signal, 16),
				"grace":  d.duration(&s.Kill.Grace, 0, 10*time.Minute),
			})
		},
		"routes": func(n *yaml.Node, path string) {
			d.list(n, path, 64, func(n *yaml.Node, path string) { s.Routes = append(s.Routes, d.route(n, path)) })
		},
		"deploy": func(n *yaml.Node, path string) { d.deploy(n, path, &s.Deploy) },
	}, "container", "schedule", "canary", "analysis")
	if root := d.at[""]; root != nil && root.Kind == yaml.MappingNode {
		d.finish(&s)
	}
	return s
}

func (d *decoder) artifact(n *yaml.Node, path string) Artifact {
	var a Artifact
	d.mapping(n, path, map[string]field{
		"uri":        d.text(&a.URI, 2048),
		"sha256":     d.text(&a.SHA256, 64),
		"extract":    d.boolean(&a.Extract),
		"executable": d.boolean(&a.Executable),
	})
	scheme, rest, _ := strings.Cut(a.URI, "://")
	switch {
	case a.URI == "":
		d.problemAt(path+".uri", "an artifact needs its uri")
	case scheme != "file" && scheme != "http" && scheme != "https" || rest == "" || strings.ContainsAny(a.URI, " \t\r\n\"'`\\"):
		d.problemAt(path+".uri", "%q must be a file://, http:// or https:// address without spaces or quotes", clip(a.URI))
	}
	a.SHA256 = strings.ToLower(a.SHA256)
	if a.SHA256 != "" && (len(a.SHA256) != 64 || strings.Trim(a.SHA256, "0123456789abcdef") != "") {
		d.problemAt(path+".sha256", "sha256 must be 64 hexadecimal digits")
	}
	return a
}

func (d *decoder) env(n *yaml.Node, path string) map[string]string {
	env := map[string]string{}
	d.open(n, path, func(key, value *yaml.Node) {
		name, full := key.Value, join(path, clip(key.Value))
		if !validEnvName(name) {
			d.problem(key, full, "%q is not the name of an environment variable: letters, digits and _", clip(name))
			return
		}
		if why := reservedEnv(name); why != "" {
			d.problem(key, full, "%s is set by %s: choose another name", name, why)
			return
		}
		v, ok := d.enter(value, full)
		if !ok {
			return
		}
		// A number or a boolean is taken as it is written: env values are text for the task anyway.
		if v.Kind != yaml.ScalarNode || v.ShortTag() == "!!null" || v.ShortTag() == "!!binary" {
			d.problem(v, full, "%s must be text, not %s", full, kindOf(v))
			return
		}
		if why := unreadable(v.Value); why != "" {
			d.problem(v, full, "%s %s", full, why)
			return
		}
		env[name] = v.Value
	})
	if len(env) == 0 {
		return nil
	}
	return env
}

func (d *decoder) constraint(n *yaml.Node, path string) Constraint {
	var c Constraint
	d.mapping(n, path, map[string]field{
		"attribute": d.text(&c.Attribute, 128),
		"operator":  d.text(&c.Operator, 32),
		"value":     d.text(&c.Value, 256),
	})
	if c.Attribute == "" {
		d.problemAt(path+".attribute", "a constraint needs the attribute of the agents that it is about")
	}
	values, known := operators[c.Operator]
	switch {
	case c.Operator == "":
		d.problemAt(path+".operator", "a constraint needs an operator%s", suggest("", operatorNames()))
	case !known:
		d.problemAt(path+".operator", "operator %q is not built yet or unknown%s", clip(c.Operator), suggest(c.Operator, operatorNames()))
	case values.least == 1 && c.Value == "":
		d.problemAt(path+".value", "operator %s needs a value", c.Operator)
	case values.most == 0 && c.Value != "":
		d.problemAt(path+".value", "operator %s takes no value", c.Operator)
	case c.Operator == "max_per":
		if v, err := strconv.Atoi(c.Value); err != nil || v < 1 || v > MaxInstances {
			d.problemAt(path+".value", "operator max_per needs a whole number from 1 to %d as its value, in quotes", MaxInstances)
		}
	case c.Operator == "like" || c.Operator == "unlike":
		if err := validPattern(c.Value); err != nil {
			d.problemAt(path+".value", "%q is not a regular expression: %v", clip(c.Value), err)
		}
	}
	return c
}

func (d *decoder) health(n *yaml.Node, path string) *Health {
	h := &Health{
		Interval: Duration(defaultInterval), Timeout: Duration(defaultTimeout),
		Rise: defaultRise, Fall: defaultFall, Grace: Duration(defaultGrace),
	}
	d.mapping(n, path, map[string]field{
		"http": func(n *yaml.Node, path string) {
			h.HTTP = &HTTPCheck{Path: "/"}
			d.mapping(n, path, map[string]field{
				"path": d.text(&h.HTTP.Path, 1024),
				"port": d.integer(&h.HTTP.Port, 0, MaxPorts-1),
			})
			if !validCheckPath(h.HTTP.Path) {
				d.problemAt(path+".path", "%q must start with / and hold only letters, digits and -._~/?&=%%+:@,", clip(h.HTTP.Path))
			}
		},
		"tcp": func(n *yaml.Node, path string) {
			h.TCP = &TCPCheck{}
			d.mapping(n, path, map[string]field{"port": d.integer(&h.TCP.Port, 0, MaxPorts-1)})
		},
		"interval": d.duration(&h.Interval, 10*time.Millisecond, 5*time.Minute),
		"timeout":  d.duration(&h.Timeout, 10*time.Millisecond, time.Minute),
		"rise":     d.integer(&h.Rise, 1, 100),
		"fall":     d.integer(&h.Fall, 1, 100),
		"grace":    d.duration(&h.Grace, 100*time.Millisecond, time.Hour),
	}, "grpc", "command")
	switch {
	case h.HTTP == nil && h.TCP == nil:
		d.problemAt(path, "health needs http or tcp")
		return nil
	case h.HTTP != nil && h.TCP != nil:
		d.problemAt(path, "health has both http and tcp: choose one")
		return nil
	}
	return h
}

func (d *decoder) route(n *yaml.Node, path string) Route {
	r := Route{Host: "*"}
	d.mapping(n, path, map[string]field{
		"group": d.text(&r.Group, 63),
		"host":  d.text(&r.Host, 253),
		"path":  d.text(&r.Path, 1024),
		"port":  d.integer(&r.Port, 0, MaxPorts-1),
		"strip": d.boolean(&r.Strip),
	}, "tcp", "weight")
	if r.Group == "" {
		d.problemAt(path+".group", "a route needs the group of its load-balancer hosts")
	} else if !validName(r.Group) {
		d.problemAt(path+".group", "group %q must be 1 to 63 of a-z, 0-9 and -, and start and end with a letter or digit", clip(r.Group))
	}
	r.Host = strings.ToLower(strings.TrimSuffix(r.Host, "."))
	if r.Host != "*" && !validHost(r.Host) {
		d.problemAt(path+".host", "host %q must be \"*\" or a host name without a port", clip(r.Host))
	}
	if r.Path == "" {
		d.problemAt(path+".path", "a route needs its path, such as / or /shop")
		return r
	}
	clean, why := normalPath(r.Path)
	if why != "" {
		d.problemAt(path+".path", "path %q %s", clip(r.Path), why)
	}
	r.Path = clean
	return r
}

func (d *decoder) deploy(n *yaml.Node, path string, into *Deploy) {
	var bake Duration
	d.mapping(n, path, map[string]field{
		"strategy": d.text(&into.Strategy, 32),
		"deadline": d.duration(&into.Deadline, time.Second, 24*time.Hour),
		"drain":    d.duration(&into.Drain, 0, time.Hour),
		"bake":     d.duration(&bake, 0, 24*time.Hour),
	}, "steps", "canary", "batch", "max_parallel", "analysis", "policy")
	switch into.Strategy {
	case "blue-green":
	case "rolling", "canary":
		d.problemAt(path+".strategy", "strategy %s is not built yet: use blue-green", into.Strategy)
	default:
		d.problemAt(path+".strategy", "unknown strategy %q%s", clip(into.Strategy), suggest(into.Strategy, []string{"blue-green"}))
	}
	if bake != 0 {
		d.problemAt(path+".bake", "bake is not built yet: remove it or set it to 0s")
	}
}

// finish fills in the defaults that depend on other fields, and checks what holds across fields.
func (d *decoder) finish(s *Spec) {
	switch {
	case s.Name == "":
		d.problemAt("name", "the Spec needs a name")
	case !validName(s.Name):
		d.problemAt("name", "name %q must be 1 to 63 of a-z, 0-9 and -, and start and end with a letter or digit", clip(s.Name))
	}
	switch s.Kind {
	case KindService, KindWorker:
	case "scheduled", "on-demand", "run-once":
		d.problemAt("kind", "kind %s is not built yet: use service or worker", s.Kind)
	default:
		d.problemAt("kind", "unknown kind %q%s", clip(s.Kind), suggest(s.Kind, []string{KindService, KindWorker}))
	}
	if strings.TrimSpace(s.Command) == "" {
		d.problemAt("command", "the Spec needs a command")
	}
	switch s.Kill.Signal = strings.TrimPrefix(s.Kill.Signal, "SIG"); s.Kill.Signal {
	case "TERM":
	case "INT", "QUIT", "HUP", "USR1", "USR2", "KILL":
		d.problemAt("kill.signal", "signal %s is not built yet: tasks get TERM, and KILL after the grace", s.Kill.Signal)
	default:
		d.problemAt("kill.signal", "unknown signal %q: use TERM", clip(s.Kill.Signal))
	}
	d.finishPorts(s)
	d.finishRoutes(s)
}

func (d *decoder) finishPorts(s *Spec) {
	if s.Resources.Ports < 0 {
		s.Resources.Ports = 1
		if s.Kind == KindWorker {
			s.Resources.Ports = 0
		}
	}
	ports := s.Resources.Ports
	if s.Health == nil && s.Kind == KindService && ports > 0 {
		port := 0
		if len(s.Routes) > 0 {
			port = s.Routes[0].Port
		}
		s.Health = &Health{
			TCP: &TCPCheck{Port: port}, Interval: Duration(defaultInterval), Timeout: Duration(defaultTimeout),
			Rise: defaultRise, Fall: defaultFall, Grace: Duration(defaultGrace),
		}
	}
	if s.Health != nil && s.Health.Port() >= ports {
		at := "health.tcp.port"
		if s.Health.HTTP != nil {
			at = "health.http.port"
		}
		if ports == 0 {
			d.problemAt(at, "health checks port %d, but the App has no ports: set resources.ports", s.Health.Port())
		} else {
			d.problemAt(at, "health checks port %d, but the App has ports 0 to %d", s.Health.Port(), ports-1)
		}
	}
	for i, r := range s.Routes {
		at := fmt.Sprintf("routes[%d].port", i)
		switch {
		case s.Kind == KindWorker: // refused below, whatever its ports
		case ports == 0:
			d.problemAt(at, "a route needs a port, but the App has no ports: set resources.ports")
		case r.Port >= ports:
			d.problemAt(at, "the route leads to port %d, but the App has ports 0 to %d", r.Port, ports-1)
		case s.Health != nil && s.Health.Port() != r.Port:
			// Proxies check an upstream on the address that they route to.
			d.problemAt(at, "the route leads to port %d and health checks port %d: a health check on another port is not built yet", r.Port, s.Health.Port())
		}
	}
}

func (d *decoder) finishRoutes(s *Spec) {
	if s.Kind == KindWorker && len(s.Routes) > 0 {
		d.problemAt("routes", "a worker has no routes: use kind service")
	}
	if s.Kind == KindService && len(s.Routes) == 0 {
		d.problemAt("routes", "a service needs at least one route: an App without traffic is of kind worker")
	}
	seen := map[string]int{}
	for i, r := range s.Routes {
		at := fmt.Sprintf("routes[%d]", i)
		if first, dup := seen[r.Key()]; dup {
			d.problemAt(at, "route %s is there twice: first as routes[%d]", clip(r.String()), first)
			continue
		}
		seen[r.Key()] = i
	}
	sort.SliceStable(s.Routes, func(i, j int) bool { return s.Routes[i].Key() < s.Routes[j].Key() })
}

func operatorNames() []string {
	out := make([]string, 0, len(operators))
	for name := range operators {
		out = append(out, name)
	}
	return out
}
