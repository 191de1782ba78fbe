package mesosframework

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxRead bounds one ReadSandbox; agents themselves give at most 64 KiB.
const maxRead = 64 << 10

// Chunk is a piece of a file in a sandbox.
type Chunk struct {
	Data []byte
	// Offset is where Data begins. With an offset of -1 asked for, it is the
	// file's size and Data is empty.
	Offset int64
}

// ReadSandbox reads a piece of a file ("stdout", "stderr", "logs/app.log") in the
// sandbox of a task, also after its end for as long as the agent keeps it.
// length is at most 64 KiB; an offset of -1 asks for the size only; at the end
// of the file Data is empty. It pages on bytes: a piece may split a character.
func (f *Framework) ReadSandbox(ctx context.Context, task TaskRef, file string, offset int64, length int) (Chunk, error) {
	if offset < -1 || length < 0 {
		return Chunk{}, fmt.Errorf("mesosframework: read %s of task %s: offset %d or length %d is negative", file, task.TaskID, offset, length)
	}
	query := url.Values{"offset": {strconv.FormatInt(offset, 10)}}
	if offset >= 0 {
		query.Set("length", strconv.Itoa(min(length, maxRead)))
	}
	ctx, cancel := context.WithTimeout(ctx, f.opts.CallTimeout)
	defer cancel()
	resp, err := f.sandboxGet(ctx, task, "read", file, query)
	if err != nil {
		return Chunk{}, err
	}
	defer resp.Body.Close()
	// JSON escapes make a byte six at most.
	body, err := io.ReadAll(io.LimitReader(resp.Body, 6*maxRead+1024))
	if err != nil {
		return Chunk{}, fmt.Errorf("mesosframework: read %s of task %s: %w", file, task.TaskID, err)
	}
	c, err := parseChunk(body)
	if err != nil {
		return Chunk{}, fmt.Errorf("mesosframework: read %s of task %s: %w", file, task.TaskID, err)
	}
	return c, nil
}

// DownloadSandbox opens a file in the sandbox of a task. The caller closes it;
// ctx bounds the whole download.
func (f *Framework) DownloadSandbox(ctx context.Context, task TaskRef, file string) (io.ReadCloser, error) {
	resp, err := f.sandboxGet(ctx, task, "download", file, url.Values{})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func (f *Framework) sandboxGet(ctx context.Context, task TaskRef, what, file string, query url.Values) (*http.Response, error) {
	fail := func(err error) (*http.Response, error) {
		return nil, fmt.Errorf("mesosframework: %s %s of task %s: %w", what, file, task.TaskID, err)
	}
	if !insideSandbox(file) {
		return fail(errors.New("the file is not a path inside the sandbox"))
	}
	if err := validID(task.TaskID); err != nil {
		return fail(err)
	}
	base, err := f.agentURL(task)
	if err != nil {
		if base, err = f.findAgent(ctx, task); err != nil {
			return fail(err)
		}
	}
	id := f.frameworkIDProto()
	// The virtual path of a command task's sandbox: its executor has its id.
	query.Set("path", path.Join("/frameworks", id.Value, "executors", task.TaskID, "runs/latest", file))
	resp, err := f.agentGet(ctx, base, what, query)
	if err != nil {
		// An agent that restarted may be elsewhere; the master knows.
		moved, findErr := f.findAgent(ctx, task)
		if findErr != nil || *moved == *base {
			return fail(err)
		}
		base = moved
		if resp, err = f.agentGet(ctx, base, what, query); err != nil {
			return fail(err)
		}
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	text := readText(resp)
	if resp.StatusCode == http.StatusNotFound {
		return fail(ErrNotFound)
	}
	return fail(fmt.Errorf("agent %s: status %d %q", base, resp.StatusCode, text))
}

func (f *Framework) agentGet(ctx context.Context, base *url.URL, what string, query url.Values) (*http.Response, error) {
	u := base.JoinPath("files", what)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	authorize(req, f.opts.AgentCredentials)
	return f.sandbox.Do(req)
}

// maxAgentList bounds the master's list of agents (a few KiB for each of 50,000).
const maxAgentList = 256 << 20

// findAgent asks the leading master where the agent of a task is, and remembers it.
func (f *Framework) findAgent(ctx context.Context, task TaskRef) (*url.URL, error) {
	f.mu.Lock()
	agentID, s := task.AgentID, f.session
	if t := f.core.tasks[task.TaskID]; t != nil {
		agentID = t.ref.AgentID
	}
	f.mu.Unlock()
	if agentID == "" || s == nil {
		return nil, fmt.Errorf("the address of agent %q is not known, and no master is connected to ask", agentID)
	}
	ctx, cancel := context.WithTimeout(ctx, f.opts.CallTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.stream.base.JoinPath("slaves").String(), nil)
	if err != nil {
		return nil, err
	}
	authorize(req, s.stream.cred)
	resp, err := f.sandbox.Do(req)
	if err != nil {
		return nil, fmt.Errorf("find agent %s: %w", agentID, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("find agent %s: the master answers with status %d", agentID, resp.StatusCode)
	}
	var list struct {
		Slaves []struct{ ID, PID string }
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAgentList)).Decode(&list); err != nil {
		return nil, fmt.Errorf("find agent %s: %w", agentID, err)
	}
	for _, a := range list.Slaves {
		if a.ID != agentID {
			continue
		}
		_, at, ok := strings.Cut(a.PID, "@") // slave(1)@10.0.0.1:5051
		if _, _, err := net.SplitHostPort(at); !ok || err != nil {
			return nil, fmt.Errorf("find agent %s: the master gives it the address %q", agentID, a.PID)
		}
		u := &url.URL{Scheme: s.stream.base.Scheme, Host: at}
		f.mu.Lock()
		if known := f.core.agents[agentID]; known != nil {
			known.url = u.String()
		}
		if t := f.core.tasks[task.TaskID]; t != nil {
			t.ref.AgentURL = u.String()
		}
		f.mu.Unlock()
		return u, nil
	}
	return nil, fmt.Errorf("the master does not know agent %s (any more)", agentID)
}

// agentURL finds the agent of a task: as it is known now, else as it was at launch.
func (f *Framework) agentURL(task TaskRef) (*url.URL, error) {
	f.mu.Lock()
	raw, agentID := task.AgentURL, task.AgentID
	if t := f.core.tasks[task.TaskID]; t != nil {
		agentID = t.ref.AgentID
		if t.ref.AgentURL != "" {
			raw = t.ref.AgentURL
		}
	}
	if a := f.core.agents[agentID]; a != nil && a.url != "" {
		raw = a.url
	}
	f.mu.Unlock()
	if raw == "" {
		return nil, fmt.Errorf("the address of agent %q is not known", agentID)
	}
	u, err := url.Parse(raw)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("agent %q has no usable address (%q)", agentID, raw)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// parseChunk parses {"data":"...","offset":N}. Agents put raw bytes into the
// string, valid UTF-8 or not, which encoding/json would replace: hence by hand.
func parseChunk(b []byte) (Chunk, error) {
	p := chunkParser{b: b}
	var c Chunk
	seen := 0
	p.skip('{')
	for p.err == nil && !p.at('}') {
		if seen > 0 {
			p.skip(',')
		}
		name := p.text()
		p.skip(':')
		switch string(name) {
		case "data":
			c.Data = p.text()
		case "offset":
			c.Offset = p.number()
		default:
			p.fail()
		}
		seen++
	}
	p.skip('}')
	if p.err == nil && seen != 2 {
		p.fail()
	}
	return c, p.err
}

type chunkParser struct {
	b   []byte
	i   int
	err error
}

func (p *chunkParser) fail() {
	if p.err == nil {
		p.err = fmt.Errorf("the agent's answer is malformed at byte %d", p.i)
	}
}

func (p *chunkParser) blanks() {
	for p.i < len(p.b) && strings.IndexByte(" \t\r\n", p.b[p.i]) >= 0 {
		p.i++
	}
}

func (p *chunkParser) at(c byte) bool {
	p.blanks()
	return p.i < len(p.b) && p.b[p.i] == c
}

func (p *chunkParser) skip(c byte) {
	if !p.at(c) {
		p.fail()
		return
	}
	p.i++
}

func (p *chunkParser) number() int64 {
	p.blanks()
	start := p.i
	for p.i < len(p.b) && strings.IndexByte("0123456789+-.eE", p.b[p.i]) >= 0 {
		p.i++
	}
	v, err := strconv.ParseFloat(string(p.b[start:p.i]), 64)
	if err != nil || v < 0 || v > 1<<53 {
		p.fail()
	}
	return int64(v)
}

// text parses a string into its bytes.
func (p *chunkParser) text() []byte {
	p.skip('"')
	var out []byte
	for p.err == nil {
		if p.i >= len(p.b) {
			p.fail()
			break
		}
		c := p.b[p.i]
		p.i++
		switch c {
		case '"':
			return out
		case '\\':
			out = p.escape(out)
		default:
			out = append(out, c)
		}
	}
	return nil
}

func (p *chunkParser) escape(out []byte) []byte {
	if p.i >= len(p.b) {
		p.fail()
		return nil
	}
	c := p.b[p.i]
	p.i++
	switch c {
	case '"', '\\', '/':
		return append(out, c)
	case 'b':
		return append(out, '\b')
	case 'f':
		return append(out, '\f')
	case 'n':
		return append(out, '\n')
	case 'r':
		return append(out, '\r')
	case 't':
		return append(out, '\t')
	case 'u':
		r := p.hex()
		if utf16.IsSurrogate(r) && p.i+1 < len(p.b) && p.b[p.i] == '\\' && p.b[p.i+1] == 'u' {
			p.i += 2
			r = utf16.DecodeRune(r, p.hex())
		}
		return utf8.AppendRune(out, r)
	}
	p.fail()
	return nil
}

func (p *chunkParser) hex() rune {
	if p.i+4 > len(p.b) {
		p.fail()
		return 0
	}
	v, err := strconv.ParseUint(string(p.b[p.i:p.i+4]), 16, 32)
	if err != nil {
		p.fail()
	}
	p.i += 4
	return rune(v)
}
