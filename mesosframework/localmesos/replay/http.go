package replay

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"sort"
	"strings"
)

// http plays a request that is no scheduler call, and compares its answer.
func (p *player) http(l Line) {
	var body []byte
	switch {
	case l.Request.Raw != nil:
		body = latin1(p.substitute(*l.Request.Raw))
	case l.Request.Body != nil:
		b, _ := json.Marshal(l.Request.Body)
		body = []byte(p.substitute(unescape(b)))
	}
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}}
	url := "http://" + p.target.Address(l.To) + p.substitute(l.Request.Path)
	p.compareAnswer(l, p.do(client, l.Request.Method, url, l.Request.Headers, body))
}

// latin1 gives the bytes of a text that was recorded byte by byte.
func latin1(s string) []byte {
	out := make([]byte, 0, len(s))
	for _, r := range s {
		if r > 0xff {
			return []byte(s)
		}
		out = append(out, byte(r))
	}
	return out
}

// compareBody compares a document, which the recording may have reduced.
func (p *player) compareBody(l Line, body []byte) string {
	if w, ok := l.Body.(map[string]any); ok {
		if b64, ok := w["base64"].(string); ok {
			if got := base64.StdEncoding.EncodeToString(body); got != b64 {
				return fmt.Sprintf("body %q in base64, want %q", got, b64)
			}
			return ""
		}
	}
	var got any
	if err := json.Unmarshal(body, &got); err != nil {
		return fmt.Sprintf("body is no JSON: %v: %.200q", err, body)
	}
	want := l.Body
	got = reduce(l, want, got)
	m := matcher{bind: p.bind, subset: true, ignore: p.o.Ignore}
	return m.match(want, got, "body")
}

// reduce brings an answer into the form to which the recording reduced it.
func reduce(l Line, want, got any) any {
	g, isObject := got.(map[string]any)
	w, wantObject := want.(map[string]any)
	switch {
	case isObject && wantObject && w["data_length"] != nil:
		data, _ := g["data"].(string)
		return map[string]any{"offset": g["offset"], "data_length": float64(len(data))}
	case strings.HasPrefix(l.Request.Path, "/files/read") && !wantObject && isObject:
		return fileLines(want, g)
	case strings.HasPrefix(l.Request.Path, "/files/browse") && firstIsString(want):
		return baseNames(got)
	case isObject && wantObject && w["type"] == nil && g["type"] != nil:
		return operatorReduced(w, g)
	case isObject && firstIsString(want):
		return keys(g)
	}
	return got
}

func firstIsString(v any) bool {
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return false
	}
	_, ok = list[0].(string)
	return ok
}

func keys(g map[string]any) any {
	names := make([]string, 0, len(g))
	for k := range g {
		names = append(names, k)
	}
	sort.Strings(names)
	out := []any{}
	for _, n := range names {
		out = append(out, n)
	}
	return out
}

// fileLines gives the lines of a file, those that the recording blanked
// blanked.
func fileLines(want any, g map[string]any) any {
	data, _ := g["data"].(string)
	list, _ := want.([]any)
	out := []any{}
	for i, line := range strings.Split(strings.TrimSuffix(data, "\n"), "\n") {
		if i < len(list) && (list[i] == "(pwd or user)" || list[i] == "PWD=..." && strings.HasPrefix(line, "PWD=")) {
			line, _ = list[i].(string)
		}
		out = append(out, line)
	}
	return out
}

func baseNames(got any) any {
	out := []any{}
	rows, _ := got.([]any)
	for _, r := range rows {
		row, _ := r.(map[string]any)
		path, _ := row["path"].(string)
		parts := strings.Split(path, "/")
		out = append(out, strings.Join(parts[max(0, len(parts)-2):], "/"))
	}
	return out
}

// operatorReduced reduces the answers to GET_AGENTS, GET_FRAMEWORKS and
// GET_TASKS.
func operatorReduced(w, g map[string]any) any {
	switch g["type"] {
	case "GET_AGENTS":
		in, _ := g["get_agents"].(map[string]any)
		agents := []any{}
		list, _ := in["agents"].([]any)
		for _, a := range list {
			row, _ := a.(map[string]any)
			info, _ := row["agent_info"].(map[string]any)
			row["id"] = info["id"]
			agents = append(agents, row)
		}
		return map[string]any{"agents": agents, "recovered_agents": in["recovered_agents"]}
	case "GET_FRAMEWORKS":
		in, _ := g["get_frameworks"].(map[string]any)
		if w["frameworks"] != nil {
			return in
		}
		list, _ := in["frameworks"].([]any)
		if len(list) == 1 {
			f, _ := list[0].(map[string]any)
			return f["framework_info"]
		}
	case "GET_TASKS":
		return g["get_tasks"]
	}
	return g
}
