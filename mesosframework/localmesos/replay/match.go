package replay

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// Bindings are the values that placeholders stand for.
type Bindings map[string]string

var placeholder = regexp.MustCompile(`<[a-z]+(?:-[a-z]+)*(?:-\d+)?>`)

// free placeholders stand for anything, each time anew.
var free = map[string]bool{"<ts>": true, "<pid>": true, "<n>": true, "<ip>": true}

// Substitute puts values in the place of placeholders. invent makes a value
// for one that is not bound yet.
func (b Bindings) Substitute(s string, invent func(string) string) string {
	return placeholder.ReplaceAllStringFunc(s, func(p string) string {
		v, ok := b[p]
		if !ok {
			v = invent(p)
			b[p] = v
		}
		return v
	})
}

// matchString matches text against a pattern with placeholders and binds the
// new ones.
func (b Bindings) matchString(pattern, text string) bool {
	if !strings.Contains(pattern, "<") {
		return pattern == text
	}
	var re strings.Builder
	re.WriteString(`(?s)\A`)
	var names []string
	at := 0
	for _, loc := range placeholder.FindAllStringIndex(pattern, -1) {
		re.WriteString(regexp.QuoteMeta(pattern[at:loc[0]]))
		p := pattern[loc[0]:loc[1]]
		at = loc[1]
		switch v, ok := b[p]; {
		case free[p]:
			re.WriteString(`.*?`)
		case ok:
			re.WriteString(regexp.QuoteMeta(v))
		default:
			re.WriteString(`(.+?)`)
			names = append(names, p)
		}
	}
	re.WriteString(regexp.QuoteMeta(pattern[at:]))
	re.WriteString(`\z`)
	got := regexp.MustCompile(re.String()).FindStringSubmatch(text)
	if got == nil {
		return false
	}
	for i, n := range names {
		if v, ok := b[n]; ok && v != got[i+1] {
			return false // twice in one pattern
		}
		b[n] = got[i+1]
	}
	return true
}

func (b Bindings) copy() Bindings {
	c := Bindings{}
	for k, v := range b {
		c[k] = v
	}
	return c
}

// unordered are the arrays whose order means nothing.
var unordered = map[string]bool{"resources": true, "offers": true, "attributes": true, "agents": true, "completed_tasks": true, "tasks": true}

// ignored are fields that are the implementation's own.
var ignored = map[string]bool{"version": true, "capabilities": true, "build_date": true, "build_time": true, "flags": true}

// matcher compares documents. With subset, fields that are only in the actual
// one do not matter.
type matcher struct {
	bind   Bindings
	subset bool
	ignore []string
}

// match returns where the documents differ, "" when they do not.
func (m *matcher) match(want, got any, path string) string {
	fault := func() string { return fmt.Sprintf("%s: want %s, got %s", path, text(want), text(got)) }
	switch w := want.(type) {
	case nil:
		if got != nil {
			return fault()
		}
	case string:
		g, ok := got.(string)
		if f, isNumber := got.(float64); isNumber && placeholder.FindString(w) == w {
			g, ok = text(f), true
		}
		if !ok || !m.bind.matchString(available(w), available(g)) {
			return fault()
		}
	case float64:
		g, ok := got.(float64)
		if !ok || math.Abs(w-g) > 1e-6 {
			return fault()
		}
	case bool:
		if g, ok := got.(bool); !ok || g != w {
			return fault()
		}
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return fault()
		}
		key := path[strings.LastIndexByte(path, '.')+1:]
		if unordered[key] || strings.HasSuffix(key, "_full") {
			return m.matchSet(w, g, path)
		}
		for i := range w {
			if d := m.match(w[i], g[i], fmt.Sprintf("%s[%d]", path, i)); d != "" {
				return d
			}
		}
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return fault()
		}
		return m.matchObject(w, g, path)
	}
	return ""
}

// available cuts off what a text says is available: that depends on what had
// ended at the last allocation run. (Package validate tests the form.)
func available(s string) string {
	const words = " is more than available "
	if before, _, found := strings.Cut(s, words); found {
		return before + words
	}
	return s
}

func (m *matcher) matchObject(w, g map[string]any, path string) string {
	keys := make([]string, 0, len(w))
	for k := range w {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	// What an executor chatters into stderr is its own.
	name, _ := w["path"].(string)
	chatter := strings.HasSuffix(name, "/stderr")
	for _, k := range keys {
		if strings.Contains(k, "<") {
			v := w[k]
			known := placeholder.ReplaceAllStringFunc(k, func(p string) string { return m.bind[p] })
			if d := m.match(v, g[known], path+"."+known); d != "" {
				return d
			}
			continue
		}
		if ignored[k] || slices.Contains(m.ignore, k) || chatter && k == "size" {
			continue
		}
		v, there := g[k]
		if !there && w[k] != nil {
			return fmt.Sprintf("%s.%s: missing, want %s", path, k, text(w[k]))
		}
		if d := m.match(w[k], v, path+"."+k); d != "" {
			return d
		}
	}
	if m.subset {
		return ""
	}
	for k, v := range g {
		if _, there := w[k]; !there && !ignored[k] {
			return fmt.Sprintf("%s.%s: not in the recording, got %s", path, k, text(v))
		}
	}
	return ""
}

// matchSet pairs elements in any order, trying again when a pairing binds a
// placeholder wrongly.
func (m *matcher) matchSet(want, got []any, path string) string {
	if len(want) == 0 {
		return ""
	}
	first := ""
	for i, g := range got {
		saved := m.bind.copy()
		d := m.match(want[0], g, path+"{}")
		if d == "" {
			rest := append(append([]any{}, got[:i]...), got[i+1:]...)
			if d = m.matchSet(want[1:], rest, path); d == "" {
				return ""
			}
		}
		if first == "" {
			first = d
		}
		for k := range m.bind {
			delete(m.bind, k)
		}
		for k, v := range saved {
			m.bind[k] = v
		}
	}
	return first
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	if len(b) > 400 {
		return string(b[:400]) + "..."
	}
	return string(b)
}
