package spec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// Bounds of the decoder: an alias bomb runs out of nodes long before it costs anything.
const (
	maxNodes    = 50_000
	maxDepth    = 32
	maxProblems = 50
)

// decoder walks YAML nodes and collects problems instead of stopping at the first.
type decoder struct {
	problems []deploy.Problem
	nodes    int
	depth    int
	// at remembers where each field was read, so that checks across fields can point at the line.
	at map[string]*yaml.Node
}

// field reads one value of a mapping.
type field func(n *yaml.Node, path string)

func (d *decoder) problem(n *yaml.Node, path, format string, args ...any) {
	if len(d.problems) >= maxProblems {
		return
	}
	p := deploy.Problem{Field: path, Reason: fmt.Sprintf(format, args...)}
	if n != nil {
		p.Line, p.Column = n.Line, n.Column
	}
	d.problems = append(d.problems, p)
}

// problemAt points at a field that was read before, or at its nearest parent.
func (d *decoder) problemAt(path, format string, args ...any) {
	for p := path; ; {
		if n, ok := d.at[p]; ok {
			d.problem(n, path, format, args...)
			return
		}
		i := strings.LastIndexAny(p, ".[")
		if i < 0 {
			d.problem(d.at[""], path, format, args...)
			return
		}
		p = p[:i]
	}
}

// enter resolves aliases, counts the node against the budget and remembers where the field is. It is false if the walk
// must not go on below.
func (d *decoder) enter(n *yaml.Node, path string) (*yaml.Node, bool) {
	for range maxDepth {
		d.nodes++
		if n == nil || n.Kind != yaml.AliasNode {
			break
		}
		n = n.Alias
	}
	if n == nil || n.Kind == yaml.AliasNode || d.nodes > maxNodes || d.depth > maxDepth {
		d.problem(n, path, "%s: too large or too deep: at most %d values, %d levels", path, maxNodes, maxDepth)
		return n, false
	}
	d.at[path] = n
	return n, true
}

// mapping reads a mapping strictly: unknown and duplicate keys are problems, keys of notBuilt are refused by name.
func (d *decoder) mapping(n *yaml.Node, path string, fields map[string]field, notBuilt ...string) {
	n, ok := d.enter(n, path)
	if !ok {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.problem(n, path, "%s must be a mapping of keys to values, not %s", label(path), kindOf(n))
		return
	}
	d.depth++
	defer func() { d.depth-- }()
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			d.problem(key, path, "a key must be plain text, not %s", kindOf(key))
			continue
		}
		name := key.Value
		full := join(path, clip(name))
		if line, dup := seen[name]; dup {
			d.problem(key, full, "key %q is there twice: first in line %d", clip(name), line)
			continue
		}
		seen[name] = key.Line
		if read, ok := fields[name]; ok {
			read(value, full)
			continue
		}
		if contains(notBuilt, name) {
			d.problem(key, full, "%q is not built yet: remove it", full)
			continue
		}
		known := make([]string, 0, len(fields))
		for k := range fields {
			known = append(known, k)
		}
		d.problem(key, full, "unknown key %q%s", clip(name), suggest(name, known))
	}
}

// open reads a mapping with free keys, in order, each once.
func (d *decoder) open(n *yaml.Node, path string, each func(key, value *yaml.Node)) {
	n, ok := d.enter(n, path)
	if !ok {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.problem(n, path, "%s must be a mapping of keys to values, not %s", label(path), kindOf(n))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if line, dup := seen[key.Value]; dup {
			d.problem(key, path, "key %q is there twice: first in line %d", clip(key.Value), line)
			continue
		}
		seen[key.Value] = key.Line
		each(key, n.Content[i+1])
	}
}

// list reads a sequence.
func (d *decoder) list(n *yaml.Node, path string, max int, each field) {
	n, ok := d.enter(n, path)
	if !ok {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.problem(n, path, "%s must be a list, not %s", label(path), kindOf(n))
		return
	}
	if len(n.Content) > max {
		d.problem(n, path, "%s has %d entries: at most %d", label(path), len(n.Content), max)
		return
	}
	d.depth++
	defer func() { d.depth-- }()
	for i, c := range n.Content {
		each(c, fmt.Sprintf("%s[%d]", path, i))
	}
}

func (d *decoder) scalar(n *yaml.Node, path, want string, tags ...string) (*yaml.Node, bool) {
	n, ok := d.enter(n, path)
	if !ok {
		return n, false
	}
	if n.Kind != yaml.ScalarNode || !contains(tags, n.ShortTag()) {
		hint := ""
		if want == "text" && n.Kind == yaml.ScalarNode && n.ShortTag() != "!!null" {
			hint = ": put it in quotes"
		}
		d.problem(n, path, "%s must be %s, not %s%s", label(path), want, kindOf(n), hint)
		return n, false
	}
	return n, true
}

func (d *decoder) text(into *string, max int) field {
	return func(n *yaml.Node, path string) {
		n, ok := d.scalar(n, path, "text", "!!str")
		if !ok {
			return
		}
		if len(n.Value) > max {
			d.problem(n, path, "%s has %d bytes: at most %d", label(path), len(n.Value), max)
			return
		}
		if why := unreadable(n.Value); why != "" {
			d.problem(n, path, "%s %s", label(path), why)
			return
		}
		*into = n.Value
	}
}

func (d *decoder) boolean(into *bool) field {
	return func(n *yaml.Node, path string) {
		if n, ok := d.scalar(n, path, "true or false", "!!bool"); ok {
			*into = strings.EqualFold(n.Value, "true")
		}
	}
}

func (d *decoder) integer(into *int, low, high int) field {
	return func(n *yaml.Node, path string) {
		n, ok := d.scalar(n, path, "a whole number", "!!int")
		if !ok {
			return
		}
		v, err := strconv.Atoi(n.Value)
		if err != nil || v < low || v > high {
			d.problem(n, path, "%s is %s: it must be from %d to %d", label(path), clip(n.Value), low, high)
			return
		}
		*into = v
	}
}

func (d *decoder) number(into *float64, low, high float64) field {
	return func(n *yaml.Node, path string) {
		n, ok := d.scalar(n, path, "a number", "!!int", "!!float")
		if !ok {
			return
		}
		v, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || !(v >= low && v <= high) {
			d.problem(n, path, "%s is %s: it must be from %g to %g", label(path), clip(n.Value), low, high)
			return
		}
		*into = v
	}
}

func (d *decoder) duration(into *Duration, low, high time.Duration) field {
	return func(n *yaml.Node, path string) {
		n, ok := d.scalar(n, path, "a duration such as 500ms or 2m", "!!str", "!!int")
		if !ok {
			return
		}
		v, err := time.ParseDuration(n.Value)
		if err != nil {
			d.problem(n, path, "%s: %q is not a duration: write a number with its unit, such as 500ms, 10s or 2m", label(path), clip(n.Value))
			return
		}
		if v < low || v > high {
			d.problem(n, path, "%s is %s: it must be from %s to %s", label(path), v, low, high)
			return
		}
		*into = Duration(v)
	}
}

func (d *decoder) bytes(into *Bytes, low, high Bytes) field {
	return func(n *yaml.Node, path string) {
		n, ok := d.scalar(n, path, "a size such as 64MiB", "!!str", "!!int")
		if !ok {
			return
		}
		v, err := parseBytes(n.Value)
		if err != nil {
			d.problem(n, path, "%s: %s", label(path), clip(err.Error()))
			return
		}
		if Bytes(v) < low || Bytes(v) > high {
			lo, _ := low.MarshalText()
			hi, _ := high.MarshalText()
			d.problem(n, path, "%s is %s: it must be from %s to %s", label(path), clip(n.Value), lo, hi)
			return
		}
		*into = Bytes(v)
	}
}

func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.ShortTag() == "!!null":
		return "nothing"
	case n.ShortTag() == "!!str":
		return "the text " + strconv.Quote(clip(n.Value))
	default:
		return clip(n.Value)
	}
}

func label(path string) string {
	if path == "" {
		return "the Spec"
	}
	return path
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// clip bounds what an input can put into a message.
func clip(s string) string {
	if len(s) > 80 {
		s = s[:77] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// suggest names the known word that is nearest to a mistyped one.
func suggest(word string, known []string) string {
	if len(word) > 64 {
		return ""
	}
	slices.Sort(known)
	best, at := "", 3
	for _, k := range known {
		if dist := distance(strings.ToLower(word), k); dist < at && dist < len(k) {
			best, at = k, dist
		}
	}
	if best != "" {
		return fmt.Sprintf(": did you mean %q?", best)
	}
	return ": known are " + strings.Join(known, ", ")
}

// distance is the number of single-byte edits (swaps of neighbours count one) from a to b.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
