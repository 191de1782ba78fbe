package participant

import (
	"errors"
	"testing"
	"time"
)

// A Collect is journaled before and after its reload, is joined while it runs, and does not begin while anything is open.
func TestCollect(t *testing.T) {
	w := newWorld(t)
	w.journal = nil
	first, second := w.next(), w.next()
	w.step(Collect{To: first, Fence: fenced(1), Origin: Origin{Actor: "cutover"}})
	w.step(Collect{To: second, Fence: fenced(1)})
	if len(w.works) != 1 || !w.works[0].Collect || w.works[0].App != "" {
		t.Fatalf("works: %+v", w.works)
	}
	if last := w.journal[len(w.journal)-1]; last.Kind != KindCollect || last.Origin.Actor != "cutover" {
		t.Fatalf("journal: %+v", last)
	}
	seq := w.works[0].Seq
	w.works, w.now = nil, w.now.Add(time.Second)
	w.step(WorkDone{Seq: seq})
	if last := w.journal[len(w.journal)-1]; last.Kind != KindCollected {
		t.Fatalf("journal: %+v", last)
	}
	for _, to := range []Token{first, second} {
		if a, ok := w.answers[to]; !ok || a.Refusal != nil {
			t.Errorf("answer %+v, %t", a, ok)
		}
	}
	if !w.s.ReadPlan().All {
		t.Error("the new process is not read")
	}

	failing := w.next()
	w.step(Collect{To: failing, Fence: fenced(1)})
	seq = w.works[0].Seq
	w.works = nil
	w.step(WorkDone{Seq: seq, Err: errors.New("no")})
	if a := w.answers[failing]; a.Refusal == nil {
		t.Errorf("answer %+v", a)
	}

	w.step(Prepare{To: w.next(), Fence: fenced(1), TxnID: "t", Order: 5, Deadline: time.Minute, Changes: []Change{{App: "a", Target: section("a", "u")}}})
	busy := w.next()
	w.step(Collect{To: busy, Fence: fenced(1)})
	if a := w.answers[busy]; a.Refusal == nil || a.Refusal.Reason != Busy {
		t.Errorf("answer while a transaction is open: %+v", a)
	}
}
