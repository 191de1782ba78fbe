package nginx

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cutover/cutover/internal/ownfile"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/nginx/probe"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

// common is what both drivers have: the ways to nginx, the checks, and the goroutines that end with Close.
type common struct {
	o       Options
	p       paths
	log     *slog.Logger
	frame   string // the published Frame, by its digest
	control *control
	checker *checker
	prober  *probe.Prober
	client  *probe.Client
	files   ownfile.Checker

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (c *common) open(o Options, proxy, frame string) {
	c.o, c.p, c.frame = o, paths{o.Dir}, frame
	c.log = o.Logger.With("proxy", proxy)
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.control, c.checker = newControl(c.p.agentSocket()), newChecker(c.ctx, o)
	c.client = &probe.Client{ProbeSocket: c.p.probeSocket(), ConnectSocket: c.p.connectSocket()}
}

// check starts the checks of all Sections, with the hooks of the driver in cfg.
func (c *common) check(cfg probe.Config, sections map[string]driver.Section) {
	cfg.Client, cfg.Alive, cfg.Concurrency, cfg.Logger = c.client, c.alive, c.o.ProbeConcurrency, c.log
	c.prober = probe.New(cfg)
	for app, s := range sections {
		c.prober.Set(app, targets(s))
	}
}

// Close ends the driver's goroutines. nginx runs on.
func (c *common) Close() error {
	c.cancel()
	c.prober.Close()
	c.wg.Wait()
	c.checker.wait()
	c.control.client.CloseIdleConnections()
	return nil
}

func (c *common) alive(ctx context.Context) bool {
	_, err := c.control.whoami(ctx)
	return err == nil
}

// serves verifies that the nginx that was seen runs the published Frame and alone holds the frontends.
func (c *common) serves(f family, frame string) error {
	if frame != c.frame {
		return fmt.Errorf("%w: nginx runs the Frame %s, published is %s: kill -HUP %d", driver.ErrProxyMismatch, frame, c.frame, f.master.PID)
	}
	return ownsListeners(f.master.PID, c.o.Listen)
}

// Request sends one real request to an upstream through one of nginx's workers.
func (c *common) Request(ctx context.Context, app, name, host string) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	return request(ctx, c.client, c.prober, app, name, host)
}

// checkSection refuses what neither driver can hold.
func checkSection(s driver.Section) error {
	if err := sectionfile.Check(s); err != nil {
		return &driver.RefusedError{Checker: "cutover section check", Output: err.Error(), Err: err}
	}
	return nil
}
