package nginx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

const (
	// controlTimeout bounds one question to a worker on the private socket.
	controlTimeout = 5 * time.Second
	// maxControlAnswer bounds an answer: thousands of Sections fit.
	maxControlAnswer = 64 << 20
)

// control speaks with the workers on the private socket. It is safe for concurrent use. Each request has a connection of its
// own, which a current worker accepts; one kept open could end at a worker that is leaving.
type control struct{ client *http.Client }

func newControl(socket string) *control {
	return &control{client: &http.Client{
		Timeout: controlTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
		},
	}}
}

// ask sends one request and returns status and body. No answer is ErrProxyDown.
func (c *control) ask(ctx context.Context, path string, body []byte) (int, []byte, error) {
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://cutover"+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return 0, nil, fmt.Errorf("nginx's private endpoint %s: %w", path, ctx.Err())
		}
		return 0, nil, fmt.Errorf("%w: private endpoint %s: %w", driver.ErrProxyDown, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxControlAnswer+1))
	if err != nil {
		return 0, nil, fmt.Errorf("%w: private endpoint %s: %w", driver.ErrProxyDown, path, err)
	}
	if len(text) > maxControlAnswer {
		return 0, nil, fmt.Errorf("private endpoint %s answers more than %d bytes", path, maxControlAnswer)
	}
	return resp.StatusCode, text, nil
}

// workerLine is how a worker names itself: "worker PID LEAVING GENERATION FRAME VERSION".
type workerLine struct {
	pid        int
	leaving    bool
	generation string
	frame      string
	version    string
}

func parseWorkerLine(line string) (workerLine, error) {
	f := strings.Fields(line)
	if len(f) != 6 || f[0] != "worker" {
		return workerLine{}, fmt.Errorf("%w: the private endpoint says %.80q: reload nginx, it runs an older Frame", driver.ErrProxyMismatch, line)
	}
	pid, err := strconv.Atoi(f[1])
	if err != nil {
		return workerLine{}, fmt.Errorf("%w: worker pid %q", driver.ErrProxyMismatch, f[1])
	}
	return workerLine{pid: pid, leaving: f[2] == "1", generation: f[3], frame: f[4], version: f[5]}, nil
}

func (c *control) whoami(ctx context.Context) (workerLine, error) {
	status, body, err := c.ask(ctx, "/whoami", nil)
	if err != nil {
		return workerLine{}, err
	}
	if status != http.StatusOK {
		return workerLine{}, fmt.Errorf("%w: the private endpoint answers status %d", driver.ErrProxyMismatch, status)
	}
	w, err := parseWorkerLine(strings.TrimSpace(string(body)))
	if err == nil && w.leaving {
		return w, fmt.Errorf("%w: worker %d answers and is leaving", driver.ErrProxyMismatch, w.pid)
	}
	return w, err
}

// applied is what one worker reported of itself through the dictionary.
type applied struct {
	version    uint64
	age        time.Duration
	generation string
}

// luaRow is the running state of one upstream that is not in the Section.
type luaRow struct {
	sessions int
	red      bool
}

// luaReading is the answer of /read.
type luaReading struct {
	worker   workerLine
	version  uint64
	applied  map[int]applied
	sections map[string]driver.Section
	rows     map[string]map[string]luaRow // app -> upstream
}

// parseLuaReading reads the answer of /read strictly: an answer that is cut off or not understood is an error.
func parseLuaReading(text []byte) (luaReading, error) {
	r := luaReading{applied: map[int]applied{}, sections: map[string]driver.Section{}, rows: map[string]map[string]luaRow{}}
	rest := text
	next := func() (string, bool) {
		line, after, ok := bytes.Cut(rest, []byte("\n"))
		rest = after
		return string(line), ok
	}
	first, _ := next()
	var err error
	if r.worker, err = parseWorkerLine(first); err != nil {
		return r, err
	}
	app := ""
	for {
		line, ok := next()
		if !ok {
			return r, errors.New("the answer of nginx ends too early")
		}
		f := strings.Fields(line)
		switch {
		case line == "done":
			return r, nil
		case len(f) == 2 && f[0] == "version":
			r.version, err = strconv.ParseUint(f[1], 10, 64)
		case len(f) == 5 && f[0] == "applied":
			err = r.addApplied(f)
		case len(f) == 3 && f[0] == "section":
			app = f[1]
			var n int
			if n, err = strconv.Atoi(f[2]); err != nil || n < 0 || n+2 > len(rest) || rest[n] != '.' || rest[n+1] != '\n' {
				return r, fmt.Errorf("section %q of %q bytes does not fit the answer of nginx", app, f[2])
			}
			var s driver.Section
			if s, _, err = sectionfile.Decode(rest[:n]); err == nil && s.App != app {
				err = fmt.Errorf("section %q is that of %q", app, s.App)
			}
			rest = rest[n+2:]
			r.sections[app], r.rows[app] = s, map[string]luaRow{}
		case len(f) == 4 && f[0] == "row" && app != "":
			var n int
			n, err = strconv.Atoi(f[2])
			r.rows[app][f[1]] = luaRow{sessions: n, red: f[3] == "red"}
		default:
			return r, fmt.Errorf("the answer of nginx has the line %.80q", line)
		}
		if err != nil {
			return r, fmt.Errorf("the answer of nginx: %w", err)
		}
	}
}

func (r *luaReading) addApplied(f []string) error {
	pid, err := strconv.Atoi(f[1])
	if err != nil {
		return err
	}
	version, err := strconv.ParseUint(f[2], 10, 64)
	if err != nil {
		return err
	}
	ms, err := strconv.ParseUint(f[3], 10, 40)
	if err != nil {
		return err
	}
	r.applied[pid] = applied{version: version, age: time.Duration(ms) * time.Millisecond, generation: f[4]}
	return nil
}

// read asks for the running state of the Apps (none: all), counting the requests in flight of the processes.
func (c *control) read(ctx context.Context, pids []int, apps []string) (luaReading, error) {
	var body bytes.Buffer
	body.WriteString("pids")
	for _, pid := range pids {
		fmt.Fprintf(&body, " %d", pid)
	}
	body.WriteString("\n")
	for _, app := range apps {
		fmt.Fprintf(&body, "app %s\n", app)
	}
	status, text, err := c.ask(ctx, "/read", body.Bytes())
	if err != nil {
		return luaReading{}, err
	}
	if status != http.StatusOK {
		return luaReading{}, fmt.Errorf("%w: the private endpoint answers status %d: %.200s", driver.ErrProxyMismatch, status, text)
	}
	return parseLuaReading(text)
}

// write sends one change and returns the version that it made.
func (c *control) write(ctx context.Context, path string, body []byte) (uint64, error) {
	status, text, err := c.ask(ctx, path, body)
	if err != nil {
		return 0, err
	}
	said := strings.TrimSpace(string(text))
	switch status {
	case http.StatusOK:
		version, err := strconv.ParseUint(strings.TrimPrefix(said, "version "), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%w: the private endpoint answers %.80q", driver.ErrProxyMismatch, said)
		}
		return version, nil
	case http.StatusConflict:
		err := fmt.Errorf("%w: nginx refused an older write (it has seen %s): a newer agent drives this proxy; stop one of them, or restart this one", driver.ErrProxyMismatch, said)
		if n, perr := strconv.ParseUint(strings.TrimPrefix(said, "write "), 10, 64); perr == nil {
			return 0, &passedError{write: n, error: err}
		}
		return 0, err
	case http.StatusInsufficientStorage:
		return 0, fmt.Errorf("nginx's shared dictionary is full (%s): raise DictMiB and restart nginx", said)
	case http.StatusServiceUnavailable:
		return 0, fmt.Errorf("%w: %s", driver.ErrBusy, said)
	default:
		return 0, fmt.Errorf("%w: the private endpoint %s answers status %d: %.200s", driver.ErrProxyMismatch, path, status, said)
	}
}

// passedError is the refusal of a write because the Section has passed its number.
type passedError struct {
	write uint64 // the highest that was seen
	error
}

// Unwrap returns the refusal in words.
func (e *passedError) Unwrap() error { return e.error }
