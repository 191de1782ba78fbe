package lbagent

import (
	"context"
	"slices"
	"sync"
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
	// maxBesideAll is how many Apps are read while a reading of all is under way.
	maxBesideAll = 64
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

// readLoop reads the running proxy as the state asks for it. All Apps that are due go into one Read. A reading of all Apps
// takes long on a Host that has many, so it goes on beside those that a transaction waits for.
func (a *Agent) readLoop(ctx context.Context) {
	var last, lastWatched, lastAll, lastProcess time.Time
	var allTook time.Duration
	allEnded, allRuns := make(chan time.Duration, 1), false
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
		all := plan.All || now.Sub(lastAll) >= allPause(allTook) || plan.Failed && now.Sub(lastAll) >= processEvery
		var apps []string
		if now.Sub(last) >= urgentGap {
			apps = plan.Urgent
		}
		watched := len(plan.Watched) > 0 && now.Sub(lastWatched) >= watchedEvery
		if watched {
			apps = append(slices.Clone(apps), plan.Watched...)
		}
		if all && !allRuns && now.Sub(last) >= urgentGap {
			last, lastAll, allRuns = now, now, true
			a.spawn(func() {
				a.read(ctx, nil)
				allEnded <- time.Since(now)
			})
		}
		switch {
		case allRuns && (len(apps) > maxBesideAll || plan.All):
			// What is due is a large part of everything: the next look at the plan tells what is left of it.
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
		case allTook = <-allEnded:
			allRuns = false
		case <-proxy.gone:
			a.log.Warn("the proxy's process has ended", "master", proxy.process.MasterPID, "worker", proxy.process.WorkerPID)
			a.delivered.gone()
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
	done := make(chan struct{})
	if !a.deliver(ctx, r.Process, started, input{event: ev, done: done}) {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// delivered is the newest word on the proxy's process that was handed to the actor.
type delivered struct {
	mu      sync.Mutex
	at      time.Time
	process driver.Process
}

// gone notes that the process has ended: what was read of it before is passed over from now on.
func (d *delivered) gone() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at, d.process = time.Now(), driver.Process{}
}

// deliver hands what was read of a process, by a look that began at the given time, to the actor, unless another process was
// told of since: which of the two looks is the newer one cannot be known, since between the look itself and its delivery a
// reading of many Apps is taken apart, and the older would bring back a process that is gone. The next look tells. It reports
// false if it was passed over or ctx ended first.
func (a *Agent) deliver(ctx context.Context, p driver.Process, began time.Time, in input) bool {
	a.delivered.mu.Lock()
	defer a.delivered.mu.Unlock()
	if p != (driver.Process{}) { // else it tells why nothing could be read
		if began.Before(a.delivered.at) && !p.Same(a.delivered.process) {
			return false
		}
		a.delivered.at, a.delivered.process = time.Now(), p
	}
	return a.send(ctx, in)
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
	began := time.Now()
	if p, err := a.opts.Driver.Process(c); err == nil {
		a.deliver(ctx, p, began, input{event: participant.ProcessSeen{Process: p}})
	}
}
