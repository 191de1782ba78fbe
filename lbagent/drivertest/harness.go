package drivertest

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/driver"
)

// Deadline bounds every single wait of the suite. It is generous because it is reached only when something is broken.
const Deadline = 20 * time.Second

// Proxy is one real proxy with the driver under test on it. Its methods fail the test themselves; NewProxy registers
// the cleanup that stops everything it started.
type Proxy interface {
	// Driver returns the driver that is open now. Reopen replaces it, so callers ask again instead of keeping it.
	Driver() driver.Driver
	// FrontendURL is where clients enter, without a trailing slash: "http://127.0.1.1:8080".
	FrontendURL() string
	// Source is the address that the proxy connects and probes from; the zero Addr if it is left to the kernel.
	Source() netip.Addr

	// Kill ends the whole proxy as by kill -9 and returns when no process of it is left.
	Kill(t testing.TB)
	// Start starts a killed proxy from its files, as its supervisor would, and returns when it answers.
	Start(t testing.TB)
	// OwnerReload reloads the proxy as its owner would, without the driver, and returns when new workers serve.
	OwnerReload(t testing.TB)
	// BreakBase makes the owner's base configuration on disk one that the proxy's checker refuses; MendBase undoes it.
	BreakBase(t testing.TB)
	MendBase(t testing.TB)
	// StealPort lets a foreign process (the test) listen where the proxy's frontend listens, while the proxy runs on. The
	// returned function gives it back.
	StealPort(t testing.TB) (release func())
	// Hands are what somebody else could do to this proxy that serves the Section, and to a second, spare upstream's address.
	Hands(s driver.Section, spare driver.Upstream) []Hand
	// Reopen closes the driver and opens a new one on the same directories, as a restart of the agent does.
	Reopen(t testing.TB)
}

// Harness makes proxies for the suite.
type Harness struct {
	// Name is the name of the subtest that holds the suite: "haproxy", "nginx-lua", "nginx-reload".
	Name string
	// NewProxy starts a proxy that serves no App, with its driver open and checked.
	NewProxy func(t testing.TB) Proxy
	// Lossy: an idle keep-alive connection may be lost when the proxy changes (nginx before 1.27.4 without Lua). The
	// zero-loss tests then run with a connection per request, and Info.Limits must say so.
	Lossy bool
	// Checks is the number of random transitions of the property test; 0 means 60. A driver that reloads for each
	// asks for fewer.
	Checks int
}

// Run runs the whole suite as subtests of t.
func Run(t *testing.T, h Harness) {
	tests := []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"Check", testCheck},
		{"WarmGetsNoRequest", testWarmGetsNoRequest},
		{"GreenOnlyAfterChecks", testGreenOnlyAfterChecks},
		{"DeadUpstreamIsRed", testDeadUpstreamIsRed},
		{"SourceAddress", testSourceAddress},
		{"Request", testRequest},
		{"WeightAndRemove", testWeightAndRemove},
		{"NameComesBack", testNameComesBack},
		{"HealthKinds", testHealthKinds},
		{"Routes", testRoutes},
		{"FlipUnderLoad", testFlipUnderLoad},
		{"NaiveSwapLosesRequests", testNaiveSwapLosesRequests},
		{"DrainAndCut", testDrainAndCut},
		{"Undo", testUndo},
		{"RestartBetweenPublishAndConverge", testRestartBetweenPublishAndConverge},
		{"OwnerReloadKeepsPublished", testOwnerReloadKeepsPublished},
		{"KilledProxyIsDown", testKilledProxyIsDown},
		{"ReopenFindsEverything", testReopenFindsEverything},
		{"StageChangesNothing", testStageChangesNothing},
		{"StageRefusesBrokenBase", testStageRefusesBrokenBase},
		{"StolenPort", testStolenPort},
		{"ConvergeFromAnyState", testConvergeFromAnyState},
		{"ForeignHands", testForeignHands},
		{"ForeignHandsLeftAlone", testForeignHandsLeftAlone},
		{"OwnWorkIsNoDifference", testOwnWorkIsNoDifference},
	}
	t.Run(h.Name, func(t *testing.T) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) { tt.run(t, h) })
		}
	})
}

// deadline returns a context that ends with the test or at the Deadline.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	t.Cleanup(cancel)
	return ctx
}

// PassGrain lets so much time pass that a file which is edited from now on is surely newer than the processes that run: what
// may be as old as a process counts as loaded by it.
func PassGrain() { time.Sleep(procfs.Grain) }
