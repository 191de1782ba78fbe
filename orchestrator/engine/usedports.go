package engine

import (
	"net"
	"strconv"
	"sync"
)

// usedPorts is what PortBlocked answers from, outside the loop: the framework asks it while it holds its own lock.
type usedPorts struct {
	mu    sync.RWMutex
	ports map[string]int      // host:port to the number of tasks that block it
	of    map[string][]string // what each task blocks
}

// blocks says which addresses must not go to a new task because of t: those of a task that has not ended, and those whose
// upstream a Host may still know.
func blocks(t *taskRecord) []string {
	if t == nil || t.Host == "" || t.ended() && len(t.Holds) == 0 && !t.PortHeld {
		return nil
	}
	out := make([]string, 0, len(t.Ports))
	for _, p := range t.Ports {
		out = append(out, address(t.Host, p))
	}
	return out
}

func address(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

func (u *usedPorts) reset(tasks map[string]*taskRecord) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ports, u.of = map[string]int{}, map[string][]string{}
	for id, t := range tasks {
		u.add(id, t)
	}
}

// add counts what a task blocks, if it was not counted. mu must be held.
func (u *usedPorts) add(id string, t *taskRecord) {
	now := blocks(t)
	if len(now) == 0 {
		return
	}
	u.of[id] = now
	for _, a := range now {
		u.ports[a]++
	}
}

func (u *usedPorts) update(changed map[string]bool, tasks map[string]*taskRecord) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id := range changed {
		for _, a := range u.of[id] {
			if u.ports[a]--; u.ports[a] <= 0 {
				delete(u.ports, a)
			}
		}
		delete(u.of, id)
		u.add(id, tasks[id])
	}
}

// PortBlocked reports whether the address must not be given to a new task yet. It is fast, takes no part in the loop, and
// answers true until Start has loaded what is blocked.
func (e *Engine) PortBlocked(host string, port uint16) bool {
	e.used.mu.RLock()
	defer e.used.mu.RUnlock()
	return e.used.ports == nil || e.used.ports[address(host, port)] > 0
}
