package engine

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/txn"
)

func cpu() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func TestTmpScale(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := cpu()
		for i := range 1000 {
			w.submit(yamlSpec(fmt.Sprintf("app-%d", i), 20))
			if i%100 == 99 {
				fmt.Fprintln(os.Stderr, i, "submitted cpu", cpu()-a)
			}
		}
		w.pass(5 * time.Second)
		w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Activating })
		v := w.submit(yamlSpec("app-7", 20, "version: v2"))
		_ = v
		w.pass(2 * time.Second)
		fmt.Fprintln(os.Stderr, "app-7:", w.deploy(v.DeployID).Step, "cpu", cpu()-a)
		b := cpu()
		w.restart()
		w.pass(time.Millisecond)
		fmt.Fprintln(os.Stderr, "restart cpu", cpu()-b, w.deploy(v.DeployID).Step)
		_ = deploy.StepDone
	})
}
