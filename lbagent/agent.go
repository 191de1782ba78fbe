package lbagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/lbagent/participant/journal"
)

// Bounds of the daemon.
const (
	inboxSize = 1024
	maxCalls  = 256 // calls under way at once
	// keptCalls of them are for what ends transactions: those that wait for checks must not keep it out (ROLLBACK-IS-FREE).
	keptCalls    = 64
	maxWatchers  = 64
	maxWork      = 16 // driver calls at once, for different Apps
	workTimeout  = 60 * time.Second
	readTimeout  = 5 * time.Second
	checkTimeout = 15 * time.Second
	reopenPause  = 5 * time.Second
	// shutdownGrace is for the last answers to leave; calls and streams have ended by then.
	shutdownGrace = 500 * time.Millisecond
	stopTimeout   = 10 * time.Second
	// maxBehind is how many bytes may be appended after a snapshot before it is installed in any case.
	maxBehind = 4 << 20
	// checkPatience is how long a Prepare waits for the first Check after a start.
	checkPatience = 5 * time.Second
)

// Agent is one participant: New wires it, Start lets it serve, Stop ends it. The proxy serves on in any case.
type Agent struct {
	opts Options
	log  *slog.Logger
	m    *metrics

	state atomic.Pointer[participant.State]
	inbox chan input
	kick  chan struct{} // wakes the reader
	// lookAgain wakes the survey.
	lookAgain chan struct{}
	calls     callers
	watch     watchers
	contract  contract
	clients   atomic.Pointer[clients] // nil: not counted
	slots     chan struct{}           // limits driver calls
	delivered delivered

	// What follows is the actor's once it has started.
	journal  *journal.Journal
	snapshot *journal.Snapshot // encoded, and not installed yet
	work     map[string]*running
	encoded  chan *journal.Snapshot

	mu      sync.Mutex
	addr    net.Addr
	server  *http.Server
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	stopped bool
	failed  chan error
	ending  chan struct{} // closed when Stop begins
}

// stopping is closed when the Agent ends.
func (a *Agent) stopping() <-chan struct{} { return a.ending }

// New opens the journal and wires the Agent. On error nothing is left open, the Driver apart.
func New(opts Options) (*Agent, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	a := &Agent{
		opts: opts, log: opts.Logger.With("host", opts.Name),
		inbox: make(chan input, inboxSize), kick: make(chan struct{}, 1), lookAgain: make(chan struct{}, 1),
		slots: make(chan struct{}, maxWork), work: map[string]*running{}, failed: make(chan error, 2), encoded: make(chan *journal.Snapshot),
		ending: make(chan struct{}), contract: contract{first: make(chan struct{})},
	}
	var err error
	if a.m, err = newMetrics(opts.Registry, a.driftGauge); err != nil {
		return nil, fmt.Errorf("register the metrics of lbagent: %w", err)
	}
	if err := a.openJournal(); err != nil {
		return nil, err
	}
	a.contract.set(driver.Info{}, fmt.Errorf("the contract with the proxy has not been checked yet: %w", driver.ErrProxyDown))
	return a, nil
}

// openJournal replays the journal and sets the state to what it says.
func (a *Agent) openJournal() error {
	j, d, err := journal.Open(journal.Options{Dir: a.opts.Dir, FS: a.opts.JournalFS, MaxSize: a.opts.JournalSize})
	if err != nil {
		return fmt.Errorf("open the journal of %s: %w", a.opts.Name, err)
	}
	if j.Torn > 0 {
		a.log.Warn("dropped the torn tail of the journal: it was never acknowledged", "bytes", j.Torn)
	}
	a.journal = j
	self := participant.Identity{Cluster: a.opts.Cluster, Group: a.opts.Group}
	s := participant.Recover(self, d, time.Now())
	a.state.Store(&s)
	a.m.journalSize.Set(float64(j.Size()))
	return nil
}

// Start listens and serves until Stop. It returns once the port is open.
func (a *Agent) Start(ctx context.Context) error {
	ln := a.opts.Listener
	if ln == nil {
		var lc net.ListenConfig
		var err error
		if ln, err = lc.Listen(ctx, "tcp", a.opts.Listen); err != nil {
			return fmt.Errorf("lbagent %s: %w", a.opts.Name, err)
		}
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped || a.cancel != nil {
		cancel()
		return errors.Join(errors.New("lbagent: Start after Start or Stop"), ln.Close())
	}
	ready, err := a.listenReady(ctx)
	if err != nil {
		cancel()
		return errors.Join(err, ln.Close())
	}
	a.cancel, a.addr, a.server = cancel, ln.Addr(), a.newServer()
	if ready != nil {
		a.spawn(func() { a.serveReady(run, ready) })
	}
	a.spawn(func() { a.act(run) })
	a.spawn(func() { a.readLoop(run) })
	a.spawn(func() { a.checkLoop(run) })
	a.spawn(func() { a.surveyLoop(run) })
	a.spawn(func() { a.countLoop(run) })
	a.spawn(func() {
		var err error
		if a.opts.TLS != nil {
			err = a.server.ServeTLS(ln, "", "")
		} else {
			err = a.server.Serve(ln)
		}
		if !errors.Is(err, http.ErrServerClosed) {
			a.failed <- fmt.Errorf("lbagent %s: serve %s: %w", a.opts.Name, ln.Addr(), err)
		}
	})
	a.log.Info("lbagent listens", "addr", ln.Addr().String(), "group", a.opts.Group, "cluster", a.opts.Cluster)
	return nil
}

func (a *Agent) spawn(f func()) {
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		f()
	}()
}

// Handler is what the Agent serves on its listener.
func (a *Agent) Handler() http.Handler {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.server.Handler
}

// Addr is where the Agent listens; nil before Start.
func (a *Agent) Addr() net.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.addr
}

// Stop ends all goroutines, closes the journal and the Driver, and waits for them, bounded by ctx. The proxy is left as
// it is. It is idempotent.
func (a *Agent) Stop(ctx context.Context) error {
	a.mu.Lock()
	if a.stopped {
		a.mu.Unlock()
		return nil
	}
	a.stopped = true
	close(a.ending)
	cancel, server := a.cancel, a.server
	a.mu.Unlock()
	var errs []error
	if cancel != nil {
		cancel() // Watch streams and waiting calls end with it
		grace, done := context.WithTimeout(ctx, shutdownGrace)
		if err := server.Shutdown(grace); err != nil {
			errs = append(errs, server.Close())
		}
		done()
		ended := make(chan struct{})
		go func() {
			a.wg.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-ctx.Done():
			return errors.Join(append(errs, fmt.Errorf("lbagent %s: a driver call does not end: %w", a.opts.Name, ctx.Err()))...)
		}
	}
	return errors.Join(append(errs, a.journal.Close(), a.opts.Driver.Close())...)
}

// Run is Start, then Stop when ctx ends or the server fails.
func (a *Agent) Run(ctx context.Context) error {
	err := a.Start(ctx)
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-a.failed:
		}
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return errors.Join(err, a.Stop(stop))
}

// contract is what the last Check of the owner's configuration found.
type contract struct {
	mu   sync.Mutex
	info driver.Info
	err  error
	held bool
	once sync.Once
	// first is closed when the first Check has ended.
	first chan struct{}
}

// waitFirst gives the first Check a moment, so that a Prepare right after a start is not refused for nothing.
func (c *contract) waitFirst(ctx context.Context) {
	select {
	case <-c.first:
	case <-ctx.Done():
	case <-time.After(checkPatience):
	}
}

// begun waits until the first Check has ended (checkTimeout bounds it). Before that nothing is known of the proxy, and what
// is not known must not be told as a proxy that is down: a Verified transaction would lapse because its agent restarted.
func (c *contract) begun(ctx context.Context) {
	select {
	case <-c.first:
	case <-ctx.Done():
	}
}

func (c *contract) set(info driver.Info, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.info, c.held = info, true
	}
	c.err = err
}

// unchecked is the error that keeps the driver from being used: until the contract has held once. Later the driver's own
// calls say what is wrong, and a Check that fell into a restart of the proxy blinds nobody.
func (c *contract) unchecked() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held {
		return nil
	}
	return c.err
}

// veto is what keeps this Host from voting Ready: a base configuration that is known to be bad.
func (c *contract) veto() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held && (errors.Is(c.err, driver.ErrProxyDown) || errors.Is(c.err, driver.ErrBusy)) {
		return nil // the transaction has its own patience with a proxy that restarts
	}
	return c.err
}

// vetoRefusal is the Refusal for what veto says. A configuration that breaks the contract is not a proxy that is down: the
// one has to be corrected, the other started.
func vetoRefusal(veto error) *participant.Refusal {
	r := &participant.Refusal{Reason: participant.InvalidConfig, Message: veto.Error()}
	var refused *driver.RefusedError
	switch {
	case errors.As(veto, &refused):
		r.Output = refused.Output
	case errors.Is(veto, driver.ErrProxyDown):
		r.Reason = participant.ProxyDown
	case errors.Is(veto, driver.ErrProxyMismatch):
		r.Reason = participant.ProxyMismatch
	}
	return r
}

func (c *contract) get() (driver.Info, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info, c.err
}

// checkLoop verifies the contract with the owner's configuration: soon again while it is broken, now and then otherwise.
func (a *Agent) checkLoop(ctx context.Context) {
	const whileBroken, whileGood = time.Second, 30 * time.Second
	listed := false
	for pause := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		c, cancel := context.WithTimeout(ctx, checkTimeout)
		info, err := a.opts.Driver.Check(c)
		if _, was := a.contract.get(); (was == nil) != (err == nil) && ctx.Err() == nil {
			switch {
			case errors.Is(err, driver.ErrProxyDown):
				a.log.Warn("the contract with the proxy could not be checked", "err", err)
			case err != nil:
				a.log.Error("the proxy's base configuration breaks the contract", "err", err)
			default:
				a.log.Info("the contract with the proxy holds", "proxy", info.Proxy, "version", info.Version)
			}
		}
		if err == nil && !listed {
			var apps []string
			if apps, err = a.opts.Driver.Apps(c); err == nil {
				listed = a.send(ctx, input{event: participant.AppsFound{Apps: apps}})
			}
		}
		cancel()
		a.contract.set(info, err)
		a.contract.once.Do(func() { close(a.contract.first) })
		a.wakeReader()
		pause = whileGood
		if err != nil {
			pause = whileBroken
		}
	}
}
