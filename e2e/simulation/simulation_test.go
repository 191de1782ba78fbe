package simulation

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutover/cutover/internal/leaktest"
)

func TestMain(m *testing.M) {
	// One thread: what is ready at the same instant runs in the same order each time.
	runtime.GOMAXPROCS(1)
	leaktest.Main(m)
}

// outcome is what two runs of one seed have in common.
type outcome struct {
	steps  int
	digest uint64
	counts map[string]int
	story  []string
	trace  []string
	failed []string
	took   time.Duration // of virtual time
}

// run is one seed from beginning to end.
func run(t *testing.T, seed uint64, trouble time.Duration, traced bool) (out outcome) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		dice := newSchedule(seed).chance("size")
		w := newWorld(t, seed, 2+dice.IntN(2), 1+dice.IntN(3))
		w.traced = traced
		w.setFaults(faults{lose: 60 + dice.IntN(400), twice: 20 + dice.IntN(100), slow: 20 + dice.IntN(200), driver: 100 + dice.IntN(500), store: 300 + dice.IntN(1000)})
		reloads := dice.IntN(4) // 0: all of them reload for each change; 1: the first one does
		for i, h := range w.hosts {
			h.proxy.reloads = reloads == 0 || reloads == 1 && i == 0
			w.after(time.Millisecond, "start "+h.name, h.start)
		}
		w.after(2*time.Millisecond, "lead", w.lead)
		time.Sleep(time.Second)
		l := &workload{w: w, dice: w.chance("users"), until: time.Now().Add(trouble)}
		l.users()
		(&workload{w: w, dice: w.chance("luck"), until: l.until}).luck()
		for time.Now().Before(l.until) {
			time.Sleep(w.instant(250 * time.Millisecond))
			w.observe()
		}
		w.heal()
		why := "unknown"
		for deadline := time.Now().Add(20 * time.Minute); why != "" && time.Now().Before(deadline); {
			time.Sleep(w.instant(time.Second))
			w.observe()
			why = w.converged()
		}
		if why != "" {
			w.fail("EVERY-STATE-ENDS: 20 minutes after the trouble: %s", why)
		}
		out.steps, out.digest = w.close()
		out.counts, out.story, out.trace, out.failed, out.took = w.counts, w.log, w.trace, w.failures, time.Since(begin)
		w.end()
	})
	return out
}

// end stops everything that still runs.
func (w *world) end() {
	w.mu.Lock()
	w.ending = true
	terms := w.terms
	w.mu.Unlock()
	for _, inc := range terms {
		if !inc.isDead() {
			inc.crash()
		}
	}
	for _, h := range w.hosts {
		h.mu.Lock()
		h.wanted = false
		h.mu.Unlock()
		h.crash()
		<-h.stopped
	}
	w.stops.Wait()
	_ = w.store.Close()
}

func number(t *testing.T, name string, or int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return or
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s=%q: %v", name, v, err)
	}
	return n
}

// TestSeeds runs SIM_SEEDS seeds from SIM_SEED on, each with a minute of trouble and the time that it takes to come to
// rest. To see a failing one again: SIM_SEED=n SIM_SEEDS=1 -v; with
// SIM_STORIES=DIR its whole story is in a file.
func TestSeeds(t *testing.T) {
	first, seeds := number(t, "SIM_SEED", 1), number(t, "SIM_SEEDS", 12)
	if testing.Short() {
		seeds = min(seeds, 3)
	}
	steps, virtual, counts := 0, time.Duration(0), map[string]int{}
	for seed := first; seed < first+seeds; seed++ {
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
			out := run(t, uint64(seed), time.Minute, false)
			steps += out.steps
			virtual += out.took
			for k, n := range out.counts {
				counts[k] += n
			}
			for _, f := range out.failed {
				t.Errorf("%s", f)
			}
			if t.Failed() || testing.Verbose() {
				tellStory(t, seed, out)
			}
		})
		if !ok {
			t.Errorf("replay: SIM_SEED=%d SIM_SEEDS=1 go test -run TestSeeds -v ./e2e/simulation", seed)
		}
	}
	t.Logf("%d seeds from %d: %d steps, %v of virtual time, %v", seeds, first, steps, virtual.Round(time.Second), counts)
}

func tellStory(t *testing.T, seed int, out outcome) {
	t.Helper()
	dir := os.Getenv("SIM_STORIES")
	if dir == "" {
		for _, line := range out.story[max(0, len(out.story)-60):] {
			t.Log(line)
		}
		return
	}
	file := filepath.Join(dir, fmt.Sprintf("%d.txt", seed))
	data := ""
	for _, line := range out.story {
		data += line + "\n"
	}
	if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
		t.Error(err)
	}
	t.Logf("%d steps, digest %x, %v: the story is in %s", out.steps, out.digest, out.counts, file)
}

// TestReplay: one seed, one story, step by step. What is left to chance is the runtime's: which of several ready cases a
// select takes, and in which order a map is walked. So a run has a few tries to be told again.
func TestReplay(t *testing.T) {
	for seed := uint64(1); seed <= 6; seed++ {
		first := run(t, seed, 20*time.Second, true)
		var again outcome
		for try := 0; try < 60 && again.digest != first.digest; try++ {
			again = run(t, seed, 20*time.Second, true)
		}
		if first.digest == again.digest {
			continue
		}
		for i := range min(len(first.trace), len(again.trace)) {
			if first.trace[i] != again.trace[i] {
				t.Fatalf("runs of seed %d differ at step %d:\n%s\nand\n%s", seed, i,
					strings.Join(first.trace[max(0, i-3):i+1], "\n"), strings.Join(again.trace[max(0, i-3):i+1], "\n"))
			}
		}
		t.Fatalf("runs of seed %d differ: %d steps and %d", seed, first.steps, again.steps)
	}
}
