package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/api/apitest"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/cli"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// buffer collects an output that another goroutine writes, and says when it holds a text.
type buffer struct {
	mu      sync.Mutex
	text    bytes.Buffer
	written chan struct{} // closed and replaced at each write
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.written != nil {
		close(b.written)
		b.written = nil
	}
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *buffer) await(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(generous)
	for {
		b.mu.Lock()
		if strings.Contains(b.text.String(), want) {
			b.mu.Unlock()
			return
		}
		if b.written == nil {
			b.written = make(chan struct{})
		}
		written := b.written
		b.mu.Unlock()
		select {
		case <-written:
		case <-deadline:
			t.Fatalf("no %q in:\n%s", want, b)
		}
	}
}

// run is one run of the command line in this process.
type run struct {
	out, err buffer
	env      map[string]string
	terminal func() (int, int, bool)
}

func newRun(w *world) *run {
	return &run{
		env:      map[string]string{"CUTOVER_API": w.server.URL(), "CUTOVER_TOKEN": apitest.Token},
		terminal: func() (int, int, bool) { return 0, 0, false },
	}
}

func (r *run) main(ctx context.Context, args ...string) int {
	return cli.Main(ctx, args, cli.Options{
		Version: "test", In: strings.NewReader(""), Out: &r.out, Err: &r.err,
		Env: func(key string) string { return r.env[key] }, Terminal: r.terminal,
		Now: func() time.Time { return apitest.At(5 * time.Second) },
	})
}

func begin(t *testing.T) *world {
	t.Helper()
	w := newWorld()
	var err error
	if w.server, err = apitest.NewServer(w.service); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.server.Kill(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func spec(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.yaml")
	if err := os.WriteFile(path, []byte("name: "+name+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// shownScreen is what a terminal shows after all that was written, as far as this command writes to it: lines, upward moves, and
// clearing to the end.
func shownScreen(t *testing.T, written string) []string {
	t.Helper()
	lines := []string{}
	at := 0
	for written != "" {
		switch {
		case strings.HasPrefix(written, "\x1b["):
			end := strings.IndexAny(written, "mAJ")
			if end < 0 {
				t.Fatalf("unknown sequence %q", written)
			}
			n := 0
			for _, c := range written[2:end] {
				if c < '0' || c > '9' {
					t.Fatalf("unknown sequence %q", written[:end+1])
				}
				n = n*10 + int(c-'0')
			}
			switch written[end] {
			case 'A':
				if at -= n; at < 0 {
					t.Fatal("the cursor left the picture")
				}
			case 'J':
				lines = lines[:at]
			}
			written = written[end+1:]
		case written[0] == '\r':
			written = written[1:]
		default:
			line, rest, ok := strings.Cut(written, "\n")
			if !ok {
				t.Fatalf("a line without an end: %q", written)
			}
			for i := strings.Index(line, "\x1b["); i >= 0; i = strings.Index(line, "\x1b[") {
				line = line[:i] + line[i+strings.IndexByte(line[i:], 'm')+1:]
			}
			lines = append(lines[:at], line)
			at, written = at+1, rest
		}
	}
	return lines
}

func TestTerminalIsRedrawn(t *testing.T) {
	w := begin(t)
	r := newRun(w)
	r.terminal = func() (int, int, bool) { return 140, 40, true }
	if code := r.main(t.Context(), "deploy", "-f", spec(t, "good")); code != 0 {
		t.Fatalf("exit %d: %s", code, &r.err)
	}
	if !strings.Contains(r.out.String(), "Ctrl-C detaches.   abort: cutover abort 01D1") {
		t.Error("no hint while it goes on")
	}
	if !strings.Contains(r.out.String(), "\x1b[32m✓") {
		t.Error("no colours")
	}
	screen := strings.Join(shownScreen(t, r.out.String()), "\n")
	if strings.Count(screen, "01D1  deploy shop") != 1 || !strings.Contains(screen, "succeeded: shop spec 1 -> 2") || strings.Contains(screen, "Ctrl-C") {
		t.Errorf("what is left on the screen:\n%s", screen)
	}
}

func TestTerminalWithoutColourOrRedrawing(t *testing.T) {
	for _, c := range []struct {
		key, value    string
		colour, moves bool
	}{{"NO_COLOR", "1", false, true}, {"CI", "true", false, false}, {"TERM", "dumb", false, false}, {"CI", "false", true, true}} {
		t.Run(c.key+"="+c.value, func(t *testing.T) {
			r := newRun(begin(t))
			r.terminal = func() (int, int, bool) { return 140, 40, true }
			r.env[c.key] = c.value
			if code := r.main(t.Context(), "deploy", "-f", spec(t, "good")); code != 0 {
				t.Fatalf("exit %d: %s", code, &r.err)
			}
			if got := strings.Contains(r.out.String(), "\x1b[32m"); got != c.colour {
				t.Errorf("colours: %v", got)
			}
			if got := strings.Contains(r.out.String(), "\x1b[J"); got != c.moves {
				t.Errorf("redrawing: %v", got)
			}
		})
	}
}

func TestTerminalShowsAnOutage(t *testing.T) {
	w := begin(t)
	r := newRun(w)
	r.terminal = func() (int, int, bool) { return 140, 40, true }
	code := make(chan int, 1)
	go func() { code <- r.main(t.Context(), "deploy", "-f", spec(t, "prepared")) }()
	r.out.await(t, "waiting for hosts")
	if err := w.server.Kill(); err != nil {
		t.Fatal(err)
	}
	r.out.await(t, "reconnecting")
	if err := w.server.Start(); err != nil {
		t.Fatal(err)
	}
	r.out.await(t, "connected again")
	for _, e := range tellMore(w, "01D1", "rest") {
		w.service.Emit(e)
	}
	if got := <-code; got != 0 {
		t.Fatalf("exit %d: %s", got, &r.err)
	}
	if strings.Contains(r.err.String(), "connect") {
		t.Errorf("the picture was disturbed by %q", &r.err)
	}
}

func tellMore(w *world, id, name string) []deploy.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stories[id]
	told := len(s.Events)
	stories()[name](s)
	return s.Events[told:]
}

func TestInterrupt(t *testing.T) {
	t.Run("while it waits", func(t *testing.T) {
		r := newRun(begin(t))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		code := make(chan int, 1)
		go func() { code <- r.main(ctx, "deploy", "-f", spec(t, "prepared"), "-o", "json") }()
		r.err.await(t, "host  lb2: ready")
		cancel()
		if got := <-code; got != deploy.ExitInterrupted {
			t.Fatalf("exit %d", got)
		}
		if !strings.Contains(r.err.String(), "detached: the Deploy goes on\n  watch: cutover watch 01D1\n  abort: cutover abort 01D1\n") {
			t.Errorf("%s", &r.err)
		}
		var v deploy.View
		if err := json.Unmarshal([]byte(r.out.String()), &v); err != nil || v.DeployID != "01D1" || v.State != deploy.Running {
			t.Errorf("%v %s", err, &r.out)
		}
	})
	t.Run("before the answer", func(t *testing.T) {
		r := newRun(begin(t))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if got := r.main(ctx, "deploy", "-f", spec(t, "good"), "--idempotency-key", "run 7"); got != deploy.ExitInterrupted {
			t.Fatalf("exit %d", got)
		}
		if !strings.Contains(r.err.String(), "the request may have arrived") || !strings.Contains(r.err.String(), "--idempotency-key") {
			t.Errorf("%s", &r.err)
		}
	})
	t.Run("a log that is followed", func(t *testing.T) {
		r := newRun(begin(t))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		code := make(chan int, 1)
		go func() { code <- r.main(ctx, "logs", "shop", "-f") }()
		r.out.await(t, "shop.2.1.x  stdout of shop.2.1.x")
		cancel()
		if got := <-code; got != deploy.ExitInterrupted {
			t.Fatalf("exit %d", got)
		}
	})
}

func TestFollowedLogEndsWithItsTask(t *testing.T) {
	r := newRun(begin(t))
	if code := r.main(t.Context(), "logs", "shop.1.0.x", "-f", "--tail", "24"); code != 0 {
		t.Fatalf("exit %d: %s", code, &r.err)
	}
	if r.out.String() != "stdout of shop.1.0.x\n" {
		t.Errorf("%q", &r.out)
	}
}

func TestFollowedLogGoesOnAfterRotation(t *testing.T) {
	w := begin(t)
	calls := 0
	w.service.OnLogs = func(_, _ string, offset int64, _ int) (api.LogChunk, error) {
		calls++
		switch {
		case calls == 1:
			return api.LogChunk{Data: "before\n", Offset: 993, Next: 1000}, nil
		case offset == 1000: // the file has only 6 bytes now
			return api.LogChunk{Offset: 6, Next: 6}, nil
		default:
			return api.LogChunk{Data: "after\n"[offset:], Offset: offset, Next: 6}, nil
		}
	}
	r := newRun(w)
	if code := r.main(t.Context(), "logs", "shop.1.0.x", "-f", "--tail", "7"); code != 0 {
		t.Fatalf("exit %d: %s", code, &r.err)
	}
	if !strings.HasSuffix(r.out.String(), "after\n") || strings.Count(r.out.String(), "after") != 1 {
		t.Errorf("%q", &r.out)
	}
	if !strings.Contains(r.err.String(), "was rotated") {
		t.Errorf("it does not say that something may be missing: %q", &r.err)
	}
}

func TestTokenInClearIsNamed(t *testing.T) {
	r := newRun(begin(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nothing is asked of that address
	r.main(ctx, "apps", "--api", "http://orchestrator.example.org")
	if !strings.Contains(r.err.String(), "travels in clear") {
		t.Errorf("%s", &r.err)
	}
}

// An orchestrator that hangs keeps nobody long who asks for its version.
func TestVersionOfAnOrchestratorThatHangs(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	r := newRun(begin(t))
	started := time.Now()
	if code := r.main(t.Context(), "version", "--api", server.URL); code != deploy.ExitUnreachable {
		t.Fatalf("exit %d: %s", code, &r.err)
	}
	if time.Since(started) > generous {
		t.Errorf("it took %s", time.Since(started))
	}
	for _, want := range []string{"did not answer within", "it hangs or was stopped"} {
		if !strings.Contains(r.err.String(), want) {
			t.Errorf("no %q in:\n%s", want, &r.err)
		}
	}
}

// An answer that takes long is waited for, and that is said, on a terminal and off.
func TestSlowAnswerIsSaid(t *testing.T) {
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprintf("terminal %t", tty), func(t *testing.T) {
			t.Parallel()
			said := make(chan struct{})
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				select {
				case <-said:
					_, _ = w.Write([]byte(`{"apps":[]}`))
				case <-r.Context().Done():
				}
			}))
			defer server.Close()
			r := &run{env: map[string]string{}, terminal: func() (int, int, bool) { return 80, 24, tty }}
			code := make(chan int, 1)
			go func() { code <- r.main(t.Context(), "apps", "--api", server.URL) }()
			r.err.await(t, "waiting for the orchestrator at "+server.URL+": no answer for 2s, giving up in")
			close(said)
			if got := <-code; got != 0 {
				t.Errorf("exit %d: %s", got, &r.err)
			}
		})
	}
}

// What lb resolve waits for is said while it waits, once.
func TestResolveSaysWhatItWaitsFor(t *testing.T) {
	w := begin(t)
	asked := 0
	w.service.OnResolve = func(string, api.Meta) (api.Resolution, error) {
		asked++
		return api.Resolution{Resolved: asked > 3, Hosts: []wire.HostResolution{{Name: "lb1", Resolved: asked > 3, Remaining: []string{"it is not connected: it has said nothing for 3s"}}}}, nil
	}
	r := newRun(w)
	if code := r.main(t.Context(), "lb", "resolve", "lb1"); code != 0 {
		t.Fatalf("exit %d: %s", code, &r.err)
	}
	if want := "cutover: waiting, for 10s at most: lb1: it is not connected: it has said nothing for 3s\n"; strings.Count(r.err.String(), want) != 1 || strings.Count(r.err.String(), "at most") != 1 {
		t.Errorf("%q, want %q", &r.err, want)
	}
}
