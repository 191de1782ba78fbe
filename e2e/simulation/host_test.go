package simulation

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/cutover/cutover/lbagent"
	"github.com/cutover/cutover/lbagent/driver"
)

// host is one load-balancer Host: a proxy, a disk, and an lbagent that dies and comes back.
type host struct {
	w     *world
	name  string
	proxy *proxy
	disk  *disk
	dir   string // of the journal's lock only

	mu      sync.Mutex
	agent   *lbagent.Agent
	life    context.Context
	die     context.CancelFunc
	stopped chan struct{} // closed when the last process has let go of the lock
	cutOff  bool
	wanted  bool // its supervisor starts it again
}

func newHost(w *world, name, dir string) *host {
	h := &host{w: w, name: name, dir: dir, proxy: newProxy(w, name), disk: newDisk(w.chance("disk " + name)), stopped: make(chan struct{}), wanted: true}
	close(h.stopped)
	return h
}

// start runs an lbagent on what the journal says. A disk that cannot be used keeps it from starting, and it is tried again.
func (h *host) start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.agent != nil || !h.wanted {
		return
	}
	select {
	case <-h.stopped:
	default:
		h.w.after(100*time.Millisecond, "start "+h.name+" later", h.start)
		return
	}
	life, die := context.WithCancel(context.Background())
	a, err := lbagent.New(lbagent.Options{
		Name: h.name, Group: group, Cluster: cluster, Dir: h.dir, Listen: "127.0.0.1:1", Listener: newQuiet(), JournalFS: h.disk.fs(),
		Driver: &reach{proxy: h.proxy, dead: life}, Version: "simulated", WatchProcess: h.proxy.watch,
		Logger: slog.New(&storyteller{s: h.w.schedule, who: h.name, alive: life}),
	})
	if err == nil {
		err = a.Start(life)
	}
	if err != nil {
		die()
		h.w.tell("%s: lbagent does not start: %v", h.name, err)
		h.w.after(time.Second, "start "+h.name+" again", h.start)
		return
	}
	h.agent, h.life, h.die, h.stopped = a, life, die, make(chan struct{})
}

// crash is kill -9: what was not synced may be lost, and nothing that the process had begun goes on.
func (h *host) crash() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.agent == nil {
		return
	}
	a, stopped := h.agent, h.stopped
	h.agent = nil
	h.die()
	h.disk.crash()
	go func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := a.Stop(ctx); err != nil && errors.Is(err, context.DeadlineExceeded) {
			h.w.fail("%s: the lbagent does not stop: %v", h.name, err)
		}
	}()
}

// serve returns the running lbagent's handler, and the context of its process.
func (h *host) serve() (http.Handler, context.Context, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.agent == nil {
		return nil, nil, false
	}
	return h.agent.Handler(), h.life, true
}

func (h *host) apart() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cutOff
}

func (h *host) cut(off bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cutOff = off
}

// watch tells the end of a proxy process, as the kernel does.
func (p *proxy) watch(pid int) (lbagent.ProcessWatch, time.Time, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down || p.pid != pid {
		return nil, time.Time{}, driver.ErrProxyDown
	}
	return &processWatch{gone: p.gone, closed: make(chan struct{})}, p.started, nil
}

type processWatch struct {
	gone, closed chan struct{}
	once         sync.Once
}

// Wait implements lbagent.ProcessWatch.
func (w *processWatch) Wait() bool {
	select {
	case <-w.gone:
		return true
	case <-w.closed:
		return false
	}
}

// Close implements lbagent.ProcessWatch.
func (w *processWatch) Close() { w.once.Do(func() { close(w.closed) }) }

// storyteller is a log handler that writes into the story of the run.
type storyteller struct {
	s     *schedule
	who   string
	alive context.Context
	with  []slog.Attr
}

// Enabled implements slog.Handler.
func (h *storyteller) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle implements slog.Handler.
func (h *storyteller) Handle(_ context.Context, r slog.Record) error {
	select {
	case <-h.alive.Done():
		return nil // what a dead process still says is nobody's story
	default:
	}
	line := h.who + ": " + r.Message
	add := func(a slog.Attr) bool {
		if s := a.Value.String(); s != "" && a.Key != "part" && a.Key != "host" {
			line += " " + a.Key + "=" + s
		}
		return true
	}
	for _, a := range h.with {
		add(a)
	}
	r.Attrs(add)
	h.s.tell("%s", line)
	return nil
}

// WithAttrs implements slog.Handler.
func (h *storyteller) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.with = append(append([]slog.Attr{}, h.with...), attrs...)
	return &c
}

// WithGroup implements slog.Handler.
func (h *storyteller) WithGroup(string) slog.Handler { return h }
