package participant

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/cutover/cutover/lbagent/driver"
)

// TestScripts replays the stories in testdata/scripts: each command, and below it what the machine journaled, did and answered.
//
//	prepare txn=t order=N base=N app=a to=(u v) [deadline=10s] [epoch=N]   to=() scales to zero, no to: removes
//	activate|commit|abort|verify txn=t order=N     amend app=a order=N base=N remove=(..) insert=(..) retire=(..)
//	sync order=N app=a:txn:(u,v) ...               run | pass 5s | crash | restart | show | state
//	foreign u=gone|draining|weight|here ...: somebody else changes the running proxy
//	policy repair|report   surveyed app=PLACE ...   mended   drifts   repaired: what differs and what is done about it
//	health u=red|green|pending ...                 sessions u=3   stage-refuse app=a   request-fail u   down | up
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		w := newWorld(t)
		w.takeTrace()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			return w.command(t, d)
		})
	})
}

func (w *world) command(t *testing.T, d *datadriven.TestData) string {
	arg := func(key, def string) string {
		for _, a := range d.CmdArgs {
			if a.Key == key && len(a.Vals) > 0 {
				return a.Vals[0]
			}
		}
		return def
	}
	has := func(key string) bool {
		for _, a := range d.CmdArgs {
			if a.Key == key {
				return true
			}
		}
		return false
	}
	list := func(key string) []string {
		for _, a := range d.CmdArgs {
			if a.Key == key {
				var out []string
				for _, v := range a.Vals {
					out = append(out, strings.Fields(v)...)
				}
				return out
			}
		}
		return nil
	}
	num := func(key string) uint64 {
		n, err := strconv.ParseUint(arg(key, "0"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	dur := func(key, def string) time.Duration {
		v, err := time.ParseDuration(arg(key, def))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	epoch := uint64(1)
	if has("epoch") {
		epoch = num("epoch")
	}
	ups := func(key string) []Upstream {
		var out []Upstream
		for _, n := range list(key) {
			out = append(out, up(n))
		}
		return out
	}
	app := arg("app", "shop")
	w.now = w.now.Add(time.Millisecond)
	switch d.Cmd {
	case "prepare":
		c := Change{App: app, Base: Version{Txn: num("base")}}
		if has("to") {
			c.Target = section(app, list("to")...)
		}
		w.step(Prepare{To: w.next(), Fence: fenced(epoch), TxnID: arg("txn", ""), Order: num("order"), Changes: []Change{c},
			Deadline: dur("deadline", "60s"), Origin: Origin{Actor: "test"}})
	case "activate":
		w.step(Activate{To: w.next(), Fence: fenced(epoch), TxnID: arg("txn", ""), Order: num("order"), Deadline: dur("deadline", "0s")})
	case "verify":
		w.step(Verify{To: w.next(), Fence: fenced(epoch), TxnIDs: list("txn")})
	case "commit":
		w.step(Commit{To: w.next(), Fence: fenced(epoch), TxnID: arg("txn", ""), Order: num("order")})
	case "abort":
		ev := Abort{To: w.next(), Fence: fenced(epoch), TxnID: arg("txn", ""), Order: num("order"), Apps: []string{app}}
		if has("with") {
			ev.Replacements = []Section{{App: app, Upstreams: ups("with")}}
		}
		w.step(ev)
	case "amend":
		w.step(Amend{To: w.next(), Fence: fenced(epoch), App: app, Order: num("order"), Base: Version{Txn: num("base")},
			Remove: list("remove"), Insert: ups("insert"), Retire: list("retire"), Deadline: dur("deadline", "60s")})
	case "sync":
		ev := Sync{To: w.next(), Fence: fenced(epoch), Order: num("order")}
		for _, a := range d.CmdArgs {
			name, version, ok := strings.Cut(a.Key, "@")
			if !ok {
				continue
			}
			v, err := strconv.ParseUint(version, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			c := Committed{Section: *section(name, strings.Fields(strings.Join(a.Vals, " "))...), Version: Version{Txn: v}}
			if len(a.Vals) == 1 && a.Vals[0] == "removed" {
				c = Committed{Section: Section{App: name}, Version: Version{Txn: v}, Removed: true}
			}
			ev.Sections = append(ev.Sections, c)
		}
		w.step(ev)
	case "work":
		w.work()
	case "read":
		w.read()
	case "read-all":
		w.readAll()
	case "run":
		w.run(20 * time.Second)
	case "pass":
		v, err := time.ParseDuration(d.CmdArgs[0].Key)
		if err != nil {
			t.Fatal(err)
		}
		w.pass(v)
	case "crash":
		w.crash()
	case "restart":
		w.restart()
	case "health":
		for _, a := range d.CmdArgs {
			w.health[a.Key] = strings.TrimPrefix(a.Vals[0], "green")
		}
	case "sessions":
		for _, a := range d.CmdArgs {
			n, err := strconv.Atoi(a.Vals[0])
			if err != nil {
				t.Fatal(err)
			}
			w.sessions[a.Key] = n
		}
	case "stage-refuse":
		w.stageErr[app] = &driver.RefusedError{Checker: "proxy -c", Output: "line 3: no", Err: errors.New("exit status 1")}
	case "stage-allow":
		delete(w.stageErr, app)
	case "request-fail":
		w.reqErr[d.CmdArgs[0].Key] = errors.New("503 made by the proxy")
	case "request-ok":
		delete(w.reqErr, d.CmdArgs[0].Key)
	case "policy":
		w.step(Hello{To: w.next(), Fence: fenced(epoch), Drift: Policy(d.CmdArgs[0].Key)})
	case "surveyed": // each argument is APP=PLACE, "-" for no App
		ev := Surveyed{Started: w.now}
		for _, a := range d.CmdArgs {
			drift := Drift{App: strings.TrimPrefix(a.Key, "-"), Cause: EditedFile, Place: a.Vals[0], Summary: "the file was changed", Diff: "+x\n"}
			drift.Manual = drift.Place == "base"
			ev.Drifts = append(ev.Drifts, drift)
		}
		w.step(ev)
	case "mended":
		w.step(Mended{})
	case "drifts":
		return describeDrifts(w.s.Drifts())
	case "repaired":
		return describeDrifts(w.s.RecentRepairs())
	case "converge-mismatch":
		w.workErr = fmt.Errorf("port 80 is not ours: %w", driver.ErrProxyMismatch)
	case "converge-ok":
		w.workErr = nil
	case "disk-full":
		w.brokenAt = 0
	case "down":
		w.down = true
	case "up":
		w.down = false
	case "foreign":
		for _, a := range d.CmdArgs {
			u := w.rows[app][a.Key]
			switch a.Vals[0] {
			case "gone":
				delete(w.rows[app], a.Key)
				continue
			case "draining":
				u.Mode = driver.Draining
			case "weight":
				u.Weight = 1
			case "here":
				n := up(a.Key)
				u = driver.Upstream{Name: n.Name, Address: n.Address, Weight: 50, Mode: driver.Serving}
			}
			w.rows[app][a.Key] = u
		}
	case "tamper":
		w.files[app] = driver.Section{App: app, Routes: []driver.Route{{Host: "evil", Path: "/"}}}
	case "show":
		return w.show()
	case "state":
		r := w.s.Report(app)
		out := fmt.Sprintf("  %s at %d.%d", app, r.Version.Txn, r.Version.Amendments)
		if r.Removed {
			out += " removed"
		}
		if r.Open != nil {
			out += fmt.Sprintf(", %s %s", r.Open.TxnID, r.Open.Phase)
			if r.Open.Fallback {
				out += " fallback"
			}
			if r.Open.Refusal != nil {
				out += " because " + r.Open.Refusal.Error()
			}
		}
		return out + "\n"
	default:
		t.Fatalf("unknown command %q", d.Cmd)
	}
	return w.takeTrace()
}

func describeDrifts(list []Drift) string {
	var b strings.Builder
	for _, d := range list {
		fmt.Fprintf(&b, "  %q %s in %s: %s", d.App, d.Cause, d.Place, d.Summary)
		if d.Left {
			b.WriteString(" (left alone)")
		}
		if d.Manual {
			b.WriteString(" (for the owner)")
		}
		b.WriteString("\n")
		for line := range strings.Lines(d.Diff) {
			b.WriteString("    " + line)
		}
	}
	if b.Len() == 0 {
		return "  (none)\n"
	}
	return b.String()
}
