package lbagent

import (
	"context"
	"slices"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant"
)

// How often the running proxy is read.
const (
	urgentEvery  = 20 * time.Millisecond  // something waits for green or for a proof
	urgentGap    = 5 * time.Millisecond   // the least pause before a reading that is asked for anew
	watchedEvery = 200 * time.Millisecond // a vote was given, or something drains
	processEvery = 500 * time.Millisecond
	// All Apps are read, and all files looked at, as often as takes a hundredth of the time, within these bounds.
	allEvery    = 2 * time.Second
	allEveryMax = 10 * time.Second
	allShare    = 100
)

// allPause is how long to wait until everything is looked at again (drift, the health of what serves), after a look that
// took so long.
func allPause(took time.Duration) time.Duration {
	return min(max(allEvery, allShare*took), allEveryMax)
}

// wakeReader lets the reader look at its plan again.
func (a *Agent) wakeReader() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// readLoop reads the running proxy as the state asks for it. All Apps that are due go into one Read.
func (a *Agent) readLoop(ctx context.Context) {
	var last, lastWatched, lastAll, lastProcess time.Time
	var allTook time.Duration
	timer := time.NewTimer(0)
	defer timer.Stop()
	proxy := proxyWatch{open: a.opts.WatchProcess}
	defer proxy.close()
	a.contract.begun(ctx)
	for {
		s := a.state.Load()
		proxy.follow(s.Process)
		now := time.Now()
		plan := s.ReadPlan()
		all := plan.All || now.Sub(lastAll) >= allPause(allTook)
		var apps []string
		if now.Sub(last) >= urgentGap {
			apps = plan.Urgent
		}
		watched := len(plan.Watched) > 0 && now.Sub(lastWatched) >= watchedEvery
		if watched {
			apps = append(slices.Clone(apps), plan.Watched...)
		}
		switch {
		case all && now.Sub(last) >= urgentGap:
			last, lastWatched, lastAll, lastProcess = now, now, now, now
			a.read(ctx, nil)
			allTook = time.Since(now)
		case len(apps) > 0:
			last, lastProcess = now, now
			if watched {
				lastWatched = now
			}
			a.read(ctx, apps)
		case now.Sub(lastProcess) >= processEvery:
			lastProcess = now
			a.seeProcess(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		proxy.follow(a.state.Load().Process)
		pause := processEvery
		if len(plan.Urgent) > 0 || plan.All {
			pause = urgentEvery
		} else if len(plan.Watched) > 0 {
			pause = watchedEvery / 2
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-proxy.gone:
			a.log.Warn("the proxy's process has ended", "master", proxy.process.MasterPID, "worker", proxy.process.WorkerPID)
			a.sendAndWait(ctx, participant.ProcessGone{Process: proxy.process})
			proxy.told()
		case <-a.kick:
			// Something changed: look again at once, but give the proxy a moment between two readings.
			if gap := urgentGap - time.Since(last); gap > 0 {
				timer.Reset(gap)
				select {
				case <-ctx.Done():
					return
				case <-timer.C:
				}
			}
		}
	}
}

// read reports one Read to the actor and waits until it has been stepped, so that the next plan knows of it.
func (a *Agent) read(ctx context.Context, apps []string) {
	started := time.Now()
	var r driver.Reading
	err := a.contract.unchecked()
	if err == nil {
		c, cancel := context.WithTimeout(ctx, readTimeout)
		r, err = a.opts.Driver.Read(c, apps...)
		cancel()
	}
	var ev participant.Event = participant.Reading{Started: started, All: len(apps) == 0, Apps: apps, Reading: r}
	if err != nil {
		if ctx.Err() != nil {
			return
		}
		a.m.readErrors.Inc()
		a.log.Debug("the proxy could not be read", "err", err)
		ev = participant.ReadFailed{Started: started, Err: err}
	} else {
		a.m.reads.Observe(time.Since(started).Seconds())
	}
	a.sendAndWait(ctx, ev)
}

// sendAndWait hands an event to the actor and waits until it has been stepped.
func (a *Agent) sendAndWait(ctx context.Context, ev participant.Event) {
	done := make(chan struct{})
	if !a.send(ctx, input{event: ev, done: done}) {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// seeProcess looks for a proxy that was restarted or reloaded by its owner.
func (a *Agent) seeProcess(ctx context.Context) {
	if a.contract.unchecked() != nil {
		return
	}
	c, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	if p, err := a.opts.Driver.Process(c); err == nil {
		a.send(ctx, input{event: participant.ProcessSeen{Process: p}})
	}
}
