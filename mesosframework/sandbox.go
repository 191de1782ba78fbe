package mesosframework

import (
	"context"
	"errors"
	"fmt"
	"io"
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
		return fail(err)
	}
	id := f.frameworkIDProto()
	// The virtual path of a command task's sandbox: its executor has its id.
	query.Set("path", path.Join("/frameworks", id.Value, "executors", task.TaskID, "runs/latest", file))
	u := base.JoinPath("files", what)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fail(err)
	}
	authorize(req, f.opts.AgentCredentials)
	resp, err := f.sandbox.Do(req)
	if err != nil {
		return fail(err)
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
		return nil, fmt.Errorf("the address of agent %q is not known; it is after the agent's next offer", agentID)
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
