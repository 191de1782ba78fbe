package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// The moments of the protocol, by what has to happen for a process to come there. "before" and "after" are those of a durable
// write, of a message (after: its answer has arrived and nothing is made of it yet), of a journal entry and of a driver's call;
// "answered" is when the answer has left the Host. docs/testing.md says which is which row of the crash matrix.
var (
	orchestratorCommits = around("write-engine", "write-txn", "send-prepare", "write-mark", "send-activate", "write-decision", "send-commit",
		"write-ended", "kill")
	orchestratorAborts = around("write-engine", "write-txn", "send-prepare", "write-mark", "send-activate", "write-abort-cause", "send-abort",
		"write-ended", "kill")
	orchestratorAmends = around("write-amendment", "send-amend", "write-amendment-over", "kill")
	orchestratorSyncs  = around("send-sync")

	agentToVerified = append(around("stage-preparing", "staged", "converge-preparing", "warm", "activating", "publish-activating",
		"converge-activating", "request-activating", "verified"),
		"answered-ready", "answered-verified", "during-converge", "before-reload", "during-reload")
	agentCommits = append(around("committed", "drained"), "answered-committed")
	agentAborts  = append(around("restoring", "publish-restoring", "converge-restoring", "aborted"), "answered-aborted")
	agentAmends  = append(around("amended"), "answered-amended")
	agentSyncs   = append(around("epoch", "synced"), "answered-synced")

	// agentRows are the rows of the matrix before the decision: with an abort, one moment of each is enough for every day.
	agentRows = []string{"before-staged", "after-warm", "answered-ready", "after-activating", "after-publish-activating", "during-reload",
		"answered-verified"}

	// decidedLabels come only when the decision of a deploy that nothing else disturbs is durable.
	decidedLabels = append(append(around("send-commit", "write-ended", "kill", "committed", "drained"), "after-write-decision"),
		"answered-committed")
)

func around(what ...string) []string {
	var out []string
	for _, w := range what {
		out = append(out, "before-"+w, "after-"+w)
	}
	return out
}

// of keeps the moments to which a Host with this name comes: only HAProxy is told in several commands, and only nginx without
// Lua reloads for each change.
func of(host string, labels []string) []string {
	return slices.DeleteFunc(slices.Clone(labels), func(label string) bool {
		switch {
		case strings.HasSuffix(label, "-reload"):
			return host != "lb-nginx-reload-1"
		case label == "during-converge":
			return host != "lb-haproxy-1"
		default:
			return false
		}
	})
}

// patience is how often a moment may be missed, because another crash made things go another way, before that is an error.
const patience = 5

// oneOfTwo keeps, of the moments before and after the same thing, one that is drawn; TestSoakCrashProduct has all.
func oneOfTwo(rng *rand.Rand, labels []string) []string {
	var out []string
	for _, label := range labels {
		what, before := strings.CutPrefix(label, "before-")
		if other := "after-" + what; before && slices.Contains(labels, other) {
			out = append(out, []string{label, other}[rng.IntN(2)])
			continue
		}
		what, after := strings.CutPrefix(label, "after-")
		if !after || !slices.Contains(labels, "before-"+what) {
			out = append(out, label)
		}
	}
	return out
}

// momentsToCome are the moments that have still to come, by "orchestrator" or Host.
type momentsToCome struct {
	rng    *rand.Rand
	labels map[string][]string
	missed map[string]int
}

func newMoments(rng *rand.Rand, d *crashDrill, orchestrator, agent []string) *momentsToCome {
	p := &momentsToCome{rng: rng, labels: map[string][]string{"orchestrator": oneOfTwo(rng, orchestrator)}, missed: map[string]int{}}
	for _, h := range d.hosts {
		p.labels[h] = oneOfTwo(rng, of(h, agent))
	}
	for _, who := range slices.Sorted(maps.Keys(p.labels)) {
		rng.Shuffle(len(p.labels[who]), func(i, j int) { l := p.labels[who]; l[i], l[j] = l[j], l[i] })
	}
	return p
}

func (p *momentsToCome) left() int {
	n := 0
	for _, l := range p.labels {
		n += len(l)
	}
	return n
}

// draw takes the next moment of each but the one who is held. A message or a write comes several times, and one of the times is
// drawn.
func (p *momentsToCome) draw(but string) moments {
	m := moments{agents: map[string]string{}}
	for _, who := range slices.Sorted(maps.Keys(p.labels)) {
		if who == but || len(p.labels[who]) == 0 {
			continue
		}
		label := p.labels[who][0]
		if who != "orchestrator" {
			m.agents[who] = label
			continue
		}
		m.orchestrator = label
		if p.missed[who+" "+label] > 0 {
			continue
		}
		if times := map[bool]int{strings.Contains(label, "-send-"): 3, strings.HasSuffix(label, "-write-engine"): 6}[true]; times > 0 {
			m.orchestrator = fmt.Sprintf("%s %d", label, 1+p.rng.IntN(times))
		}
	}
	return m
}

// came takes away what was reached; what was not goes to the end.
func (p *momentsToCome) came(t *testing.T, m moments, reached map[string]bool) {
	t.Helper()
	next := func(who, label string) {
		if label == "" {
			return
		}
		bare, _, _ := strings.Cut(label, " ")
		p.labels[who] = p.labels[who][1:]
		if reached[who+" "+label] {
			return
		}
		p.missed[who+" "+bare]++
		if p.missed[who+" "+bare] >= patience {
			t.Errorf("%s never comes to %s", who, bare)
			return
		}
		p.labels[who] = append(p.labels[who], bare)
	}
	next("orchestrator", m.orchestrator)
	for _, h := range slices.Sorted(maps.Keys(m.agents)) {
		next(h, m.agents[h])
	}
}

// idlest is the Host with the fewest moments left: it is the one to be held.
func (p *momentsToCome) idlest(d *crashDrill) string {
	return slices.MinFunc(d.hosts, func(a, b string) int { return len(p.labels[a]) - len(p.labels[b]) })
}

// Drill 5 and 7 at every moment of the protocol: the orchestrator and the lbagents of three Hosts, one of each driver, are
// killed between a durable write and its effect, between an effect and its answer, in pairs that a seed draws, under load, with
// either decision. No request is lost, no deploy is stuck, success is proved by every Host, and all end as was decided.
func TestCrashMatrix(t *testing.T) {
	_, rng := seedOf(t, "CRASH_SEED")
	first, second := rand.New(rand.NewPCG(rng.Uint64(), 1)), rand.New(rand.NewPCG(rng.Uint64(), 2))
	t.Run("commit and sync", func(t *testing.T) {
		t.Parallel()
		d := newCrashDrill(t)
		p := newMoments(first, d, orchestratorCommits, slices.Concat(agentToVerified, agentCommits))
		for p.left() > 0 {
			m := p.draw("")
			p.came(t, m, d.commits(m))
		}
		p = newMoments(first, d, orchestratorSyncs, agentSyncs)
		for i := 0; p.left() > 0; i++ {
			host := d.hosts[i%len(d.hosts)]
			m := p.draw("")
			m.agents = map[string]string{host: m.agents[host]}
			p.came(t, m, d.syncs(m, host))
		}
	})
	t.Run("abort and amend", func(t *testing.T) {
		t.Parallel()
		d := newCrashDrill(t)
		p := newMoments(second, d, orchestratorAborts, slices.Concat(agentRows, agentAborts))
		for p.left() > 0 {
			holder := p.idlest(d)
			m := p.draw(holder)
			p.came(t, m, d.aborts(m, holder))
		}
		p = newMoments(second, d, orchestratorAmends, agentAmends)
		for p.left() > 0 {
			m := p.draw("")
			p.came(t, m, d.amends(m))
		}
	})
}
