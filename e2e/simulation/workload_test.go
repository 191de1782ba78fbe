package simulation

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/engine"
)

var user = api.Meta{Actor: "user"}

func source(app string, instances, version int, command string, drain, deadline time.Duration) string {
	return fmt.Sprintf(`name: %s
version: v%d
command: %s
instances: %d
resources: {ports: 1}
health: {http: {path: /healthz}, interval: 200ms, rise: 1, grace: 5s}
routes: [{group: %s, path: /%s}]
deploy: {deadline: %s, drain: %s}
`, app, version, command, instances, group, app, deadline, drain)
}

// workload is what users and bad luck do to the world, at random times.
type workload struct {
	w       *world
	dice    *rand.Rand
	version int
	until   time.Time
}

// users ask for something now and then, until the trouble ends.
func (l *workload) users() {
	l.w.after(between(l.dice, 50*time.Millisecond, 4*time.Second), "user", func() {
		if time.Now().After(l.until) {
			return
		}
		l.users() // it throws the dice before ask does, or which of the two is first would be left to chance
		if e := l.w.leader().live(); e != nil {
			go l.ask(e)
		}
	})
}

func (l *workload) ask(e *engine.Engine) {
	w := l.w
	app := w.apps[l.dice.IntN(len(w.apps))]
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var what string
	var err error
	switch n := l.dice.IntN(21); {
	case n < 11:
		var spec string
		what, spec = l.spec(app)
		_, err = e.Submit(ctx, []byte(spec), user)
	case n == 20 && len(w.apps) > 1:
		app = w.apps[0] + " and " + w.apps[1]
		first, one := l.spec(w.apps[0])
		second, two := l.spec(w.apps[1])
		what = first + ", " + second
		_, err = e.Submit(ctx, []byte(one+"---\n"+two), user)
		if err == nil {
			w.count("locksteps")
		}
	case n < 13:
		k := 1 + l.dice.IntN(4)
		what = fmt.Sprintf("scale to %d", k)
		_, err = e.Scale(ctx, app, k, user)
	case n < 15:
		what = "rollback"
		_, err = e.Rollback(ctx, app, 0, user)
	case n < 19:
		what = "abort"
		_, err = e.Abort(ctx, app, user)
	default:
		what = "stop"
		w.mu.Lock()
		w.stopping[app] = true
		w.mu.Unlock()
		_, err = e.StopApp(ctx, app, user)
	}
	if err != nil {
		w.tell("user: %s of %s: %v", what, app, err)
		return
	}
	w.count("asked")
	w.tell("user: %s of %s", what, app)
}

// spec is the next version of the App; some can never run.
func (l *workload) spec(app string) (what, text string) {
	l.version++
	command := []string{"run", "run", "run", "run", "run", "run", "run", "exit", "sick"}[l.dice.IntN(9)]
	ms := func(from, to time.Duration) time.Duration { return between(l.dice, from, to).Round(time.Millisecond) }
	return fmt.Sprintf("deploy v%d (%s)", l.version, command),
		source(app, 1+l.dice.IntN(3), l.version, command, ms(0, 6*time.Second), ms(10*time.Second, time.Minute))
}

// luck does harm now and then, and takes each harm back after a while.
func (l *workload) luck() {
	l.w.after(between(l.dice, 100*time.Millisecond, 6*time.Second), "luck", func() {
		if time.Now().After(l.until) {
			return
		}
		l.harm()
		l.luck()
	})
}

func (l *workload) harm() {
	w := l.w
	h := w.hosts[l.dice.IntN(len(w.hosts))]
	app := w.apps[l.dice.IntN(len(w.apps))]
	while := between(l.dice, 10*time.Millisecond, 15*time.Second)
	if oneIn(l.dice, 3) {
		while = between(l.dice, time.Millisecond, 500*time.Millisecond)
	}
	switch l.dice.IntN(14) {
	case 0, 1, 2:
		w.tell("luck: the lbagent of %s is killed for %v", h.name, while)
		h.crash()
		w.after(while, "start "+h.name, h.start)
	case 3, 4:
		inc := w.leader()
		w.tell("luck: the orchestrator e%d is killed for %v", inc.epoch, while)
		inc.crash()
		w.leadAgain(while)
	case 5:
		old := w.leader()
		if old.isDead() {
			return
		}
		w.tell("luck: another orchestrator leads while e%d still runs", old.epoch)
		w.lead()
	case 6:
		w.tell("luck: %s is cut off for %v", h.name, while)
		h.cut(true)
		w.after(while, "join "+h.name, func() { h.cut(false) })
	case 7:
		w.tell("luck: the proxy of %s is killed for %v", h.name, while)
		h.proxy.kill()
		w.after(while, "proxy "+h.name, h.proxy.start)
	case 8:
		if t := w.mesos.pick(app, l.dice.IntN(10)); t != nil {
			w.tell("luck: %s dies", t.id)
			w.mesos.end(t, engine.Failed)
		}
	case 9:
		if t := w.mesos.pick(app, l.dice.IntN(10)); t != nil && t.command == "run" {
			w.tell("luck: %s is ill for %v", t.id, while)
			w.mesos.feel(t, false)
			w.after(while, "well "+t.id, func() { w.mesos.feel(t, true) })
		}
	case 10:
		w.tell("luck: the disk of %s is full for %v", h.name, while)
		h.disk.set(true, 0)
		w.after(while, "room on "+h.name, func() { h.disk.set(false, 0) })
	case 11:
		w.tell("luck: fsync fails on %s for %v", h.name, while)
		h.disk.set(false, 3)
		w.after(while, "disk of "+h.name, func() { h.disk.set(false, 0) })
	case 12:
		w.tell("luck: %s refuses %s, and is sluggish, for %v", h.name, app, while)
		h.proxy.set(func(p *proxy) { p.refuses[app], p.sluggish = true, true })
		w.after(while, "obeys "+h.name, func() {
			h.proxy.set(func(p *proxy) { p.refuses[app], p.sluggish = false, false })
		})
	case 13:
		if t := w.mesos.pick(app, l.dice.IntN(10)); t != nil {
			w.tell("luck: %s does not reach %s for %v, and its clock jumps", h.name, t.id, while)
			skew := between(l.dice, -time.Hour, time.Hour)
			h.proxy.set(func(p *proxy) { p.blocked[t.addr], p.skew = true, skew })
			w.after(while, "reaches "+h.name, func() {
				h.proxy.set(func(p *proxy) { p.blocked = map[netip.AddrPort]bool{} })
			})
		}
	}
}

// set changes the proxy under its lock.
func (p *proxy) set(f func(p *proxy)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

// heal ends all trouble.
func (w *world) heal() {
	w.tell("the trouble ends")
	w.setFaults(faults{})
	for _, h := range w.hosts {
		h.disk.set(false, 0)
		h.cut(false)
		h.proxy.set(func(p *proxy) {
			p.blocked, p.refuses, p.sluggish = map[netip.AddrPort]bool{}, map[string]bool{}, false
		})
		h.proxy.start()
		h.start()
	}
	w.mesos.mu.Lock()
	var ill []*task
	for _, t := range w.mesos.tasks {
		if t.command == "run" {
			ill = append(ill, t)
		}
	}
	w.mesos.mu.Unlock()
	for _, t := range ill {
		w.mesos.feel(t, true)
	}
	if w.leader().isDead() {
		w.leadAgain(time.Second)
	}
}
