package participant

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkTransaction measures one whole transaction (Prepare to Drained) in the machine, the model's part included.
// It must not grow with the number of other Apps on the Host by more than what listing them costs.
func BenchmarkTransaction(b *testing.B) {
	for _, apps := range []int{10, 1000} {
		b.Run(fmt.Sprintf("apps=%d", apps), func(b *testing.B) {
			w := newWorld(b)
			sync := Sync{To: w.next(), Fence: fenced(1), Order: 1}
			for i := range apps {
				app := fmt.Sprintf("app%d", i)
				names := []string{}
				for j := range 20 {
					names = append(names, fmt.Sprintf("%s-%d", app, j))
				}
				sync.Sections = append(sync.Sections, Committed{Section: *section(app, names...), Version: Version{Txn: 1}})
			}
			w.step(sync)
			for len(w.answers) == 0 {
				for w.work() {
				}
				w.read()
			}
			for w.work() {
			}
			w.journal, w.trace = nil, nil
			order, base := uint64(1), uint64(1)
			b.ResetTimer()
			for range b.N {
				order++
				id := fmt.Sprintf("t%d", order)
				w.step(Prepare{To: w.next(), Fence: fenced(1), TxnID: id, Order: order, Deadline: time.Minute,
					Changes: []Change{{App: "app0", Base: Version{Txn: base}, Target: section("app0", id)}}})
				for w.s.Durable.Txns[id] == nil || w.s.Durable.Txns[id].Phase != Ready {
					w.work()
					w.read()
				}
				w.step(Activate{To: w.next(), Fence: fenced(1), TxnID: id, Order: order})
				for w.s.Durable.Txns[id].Phase != Verified {
					w.work()
					w.read()
				}
				w.step(Commit{To: w.next(), Fence: fenced(1), TxnID: id, Order: order})
				for len(w.s.Durable.Sections["app0"].Draining) > 0 || len(w.works) > 0 {
					w.work()
					w.read()
				}
				base = order
				w.journal, w.trace = nil, nil
			}
		})
	}
}
