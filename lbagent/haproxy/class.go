package haproxy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// class is a kind of generic backend. What HAProxy fixes per backend when it loads its configuration (HTTP checks or
// not, the read timeout of a check) makes a class; everything else is per server and set at runtime.
type class struct {
	name    string
	http    bool
	timeout time.Duration // of a check, after the connect; zero: class t, where the connect is the check
	share   int           // a pool of n starts with n/share backends
}

// classes in the order of preference. A health timeout is rounded up to that of its class.
var classes = []class{
	{name: "h1", http: true, timeout: time.Second, share: 1},
	{name: "h5", http: true, timeout: 5 * time.Second, share: 4},
	{name: "h30", http: true, timeout: 30 * time.Second, share: 4},
	{name: "t", share: 1},
}

// initial is the number of backends that the class starts with in a pool of n.
func (c class) initial(n int) int { return max(2, n/c.share) }

// maxHealthTimeout is the longest timeout of an HTTP check that any class offers.
const maxHealthTimeout = 30 * time.Second

// classOf returns the class of backend that can check an upstream so. The Health is valid.
func classOf(h driver.Health) class {
	for _, c := range classes {
		if c.http == (h.Kind == driver.HealthHTTP) && (!c.http || h.Timeout <= c.timeout) {
			return c
		}
	}
	panic(fmt.Sprintf("haproxy: no class for the valid health %+v", h)) // unreachable: validateSection bounds the timeout
}

// slot is one backend of the pool, by class and number from 1.
type slot struct {
	class  string
	number int
}

// backend is the slot's name in HAProxy.
func (s slot) backend() string {
	number := strconv.Itoa(s.number)
	return "cutover_" + s.class + "_" + "0000"[min(len(number), 4):] + number
}

func (s slot) compare(o slot) int {
	return cmp.Or(cmp.Compare(classIndex(s.class), classIndex(o.class)), cmp.Compare(s.number, o.number))
}

// parseSlot is the inverse of backend; false for a backend that is not of the pool.
func parseSlot(backend string) (slot, bool) {
	rest, ok := strings.CutPrefix(backend, "cutover_")
	name, number, ok2 := strings.Cut(rest, "_")
	if !ok || !ok2 || len(number) > 6 || !slices.ContainsFunc(classes, func(c class) bool { return c.name == name }) {
		return slot{}, false
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 {
		return slot{}, false
	}
	s := slot{class: name, number: n}
	return s, s.backend() == backend
}

func classNamed(name string) class { return classes[classIndex(name)] }

func classIndex(name string) int {
	for i, c := range classes {
		if c.name == name {
			return i
		}
	}
	panic("haproxy: unknown class " + name) // unreachable: names come from classes or from parseSlot
}
