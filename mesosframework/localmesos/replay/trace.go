package replay

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
)

// Line is one line of a recording.
type Line struct {
	N       int               `json:"n"`
	TMS     int               `json:"t_ms"`
	Dir     string            `json:"dir"` // meta, call, response, event, http, action, note
	Conn    string            `json:"conn"`
	What    string            `json:"what"`
	Re      int               `json:"re"`
	To      string            `json:"to"`
	Path    string            `json:"path"`
	Headers map[string]string `json:"headers"`
	Status  int               `json:"status"`
	Body    any               `json:"body"`
	Request *Request          `json:"request"`
}

// Request is the request of an http line.
type Request struct {
	Method  string            `json:"method"`
	Path    string            `json:"path"`
	Headers map[string]string `json:"headers"`
	Body    any               `json:"body"`
	Raw     *string           `json:"raw"`
}

// Meta is the body of line 0: the set-up.
type Meta struct {
	About       string   `json:"about"`
	Agents      int      `json:"agents"`
	MasterFlags []string `json:"master_flags"`
	AgentFlags  []string `json:"agent_flags"`
}

// Read reads a recording.
func Read(path string) (Meta, []Line, error) {
	f, err := os.Open(path)
	if err != nil {
		return Meta{}, nil, fmt.Errorf("read recording: %w", err)
	}
	defer f.Close()
	var meta Meta
	var lines []Line
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 4<<20)
	for sc.Scan() {
		var l Line
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			return Meta{}, nil, fmt.Errorf("read recording %s: %w", path, err)
		}
		if l.Dir == "meta" {
			b, _ := json.Marshal(l.Body)
			if err := json.Unmarshal(b, &meta); err != nil {
				return Meta{}, nil, fmt.Errorf("read recording %s: %w", path, err)
			}
			continue
		}
		lines = append(lines, l)
	}
	return meta, lines, sc.Err()
}
