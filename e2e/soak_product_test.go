//go:build soak

package e2e

import (
	"slices"
	"testing"
)

// The whole product: each moment of the orchestrator with each of the lbagents, on each driver, with either decision. It takes
// hours, and prints each pair as it goes.
func TestSoakCrashProduct(t *testing.T) {
	t.Run("commit", func(t *testing.T) {
		t.Parallel()
		d := newCrashDrill(t)
		product(d, orchestratorCommits, slices.Concat(agentToVerified, agentCommits), func(m moments, _ int) { d.commits(m) })
	})
	t.Run("abort", func(t *testing.T) {
		t.Parallel()
		d := newCrashDrill(t)
		product(d, orchestratorAborts, slices.Concat(agentToVerified, agentAborts), func(m moments, n int) {
			for i := range d.hosts { // each Host in turn is the one that is held
				d.aborts(m, d.hosts[(n+i)%len(d.hosts)])
			}
		})
	})
}

// product calls run with each pair: all Hosts that come to the moment die there.
func product(d *crashDrill, orchestrator, agent []string, run func(moments, int)) {
	n := 0
	for _, o := range orchestrator {
		for _, a := range agent {
			m := moments{orchestrator: o, agents: map[string]string{}}
			for _, h := range d.hosts {
				if len(of(h, []string{a})) > 0 {
					m.agents[h] = a
				}
			}
			run(m, n)
			n++
		}
	}
}
