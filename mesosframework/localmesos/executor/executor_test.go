package executor

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"pgregory.net/rapid"
)

var t0 = time.Unix(1000, 0)

// show prints effects, one word each.
func show(effects []Effect) string {
	var out []string
	for _, e := range effects {
		switch e := e.(type) {
		case Send:
			s := strings.TrimPrefix(e.Update.State.String(), "TASK_")
			if e.Update.Healthy != nil {
				s += fmt.Sprintf("(healthy=%t)", *e.Update.Healthy)
			}
			if e.Update.Message != "" {
				s += "[" + e.Update.Message + "]"
			}
			out = append(out, s)
		case Signal:
			out = append(out, "sig"+fmt.Sprint(int(e.Signal)))
		case SetGrace:
			out = append(out, "grace="+e.After.String())
		case SetCompletion:
			out = append(out, "completion="+e.After.String())
		case StartChecks:
			out = append(out, "checks")
		case StopChecks:
			out = append(out, "nochecks")
		}
	}
	return strings.Join(out, " ")
}

type step struct {
	at    time.Duration
	event Event
	want  string
}

func exit(code int) Exited { return Exited{Status: syscall.WaitStatus(code << 8), Known: true} }
func sig(s int) Exited     { return Exited{Status: syscall.WaitStatus(s), Known: true} }

func TestMachine(t *testing.T) {
	second := time.Second
	for _, tt := range []struct {
		name  string
		cfg   Config
		steps []step
	}{
		{"finishes", Config{}, []step{
			{0, Started{}, "STARTING RUNNING checks"},
			{1, exit(0), "nochecks FINISHED[Command exited with status 0]"},
			{2, exit(0), ""},
		}},
		{"fails", Config{}, []step{
			{0, Started{}, "STARTING RUNNING checks"},
			{1, sig(11), "nochecks FAILED[Command terminated with signal Segmentation fault]"},
		}},
		{"killed with grace, exit 0 is KILLED all the same", Config{KillingState: true, Grace: 5 * second}, []step{
			{0, Started{}, "STARTING RUNNING checks"},
			{1, Kill{}, "nochecks KILLING sig15 grace=5s"},
			{2, Kill{Grace: &second}, ""},
			{5 * second, GraceOver{}, "sig9"},
			{6 * second, exit(0), "nochecks KILLED[Command exited with status 0]"},
		}},
		{"a repeated KILL shortens when policies are honoured", Config{HonourPolicy: true, Grace: 9 * second}, []step{
			{0, Started{}, "STARTING RUNNING checks"},
			{second, Kill{}, "nochecks sig15 grace=9s"},
			{2 * second, Kill{Grace: ptr(4 * second)}, "grace=3s"},
			{3 * second, Kill{Grace: ptr(30 * second)}, ""},
			{4 * second, Kill{Grace: ptr(second)}, "grace=0s"},
		}},
		{"health", Config{HasHealth: true, HealthFails: 2, HealthGrace: 4 * second, Grace: 3 * second, KillingState: true}, []step{
			{0, Started{}, "STARTING RUNNING checks"},
			{second, Health{false}, ""},
			{2 * second, Health{true}, "RUNNING(healthy=true)"},
			{3 * second, Health{true}, ""},
			{4 * second, Health{false}, "RUNNING(healthy=false)"},
			{5 * second, Health{true}, "RUNNING(healthy=true)"},
			{6 * second, Health{false}, "RUNNING(healthy=false)"},
			{7 * second, Health{false}, "RUNNING(healthy=false) nochecks KILLING sig15 grace=3s"},
			{8 * second, sig(15), "nochecks KILLED(healthy=false)[Command terminated with signal Terminated]"},
		}},
		{"health never comes", Config{HasHealth: true, HealthFails: 1, HealthGrace: 4 * second, Grace: 3 * second}, []step{
			{0, Started{}, "STARTING RUNNING checks"},
			{4 * second, Health{false}, ""},
			{5 * second, Health{false}, "RUNNING(healthy=false) nochecks sig15 grace=3s"},
		}},
		{"time", Config{MaxCompletion: 2 * second, KillingState: true}, []step{
			{0, Started{}, "STARTING RUNNING checks completion=2s"},
			{2 * second, TimeOver{}, "nochecks sig15 sig9"},
			{2 * second, sig(9), "nochecks FAILED[Command terminated with signal Killed]"},
		}},
		{"unknown end", Config{}, []step{
			{0, Started{}, "STARTING RUNNING checks"},
			{1, Exited{}, "nochecks FAILED[Executor terminated]"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := Machine{Config: tt.cfg}
			for i, s := range tt.steps {
				var got []Effect
				m, got = m.Step(s.event, t0.Add(s.at))
				if show(got) != s.want {
					t.Fatalf("step %d %T: %q, want %q", i, s.event, show(got), s.want)
				}
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

func TestCheckOnlyChanges(t *testing.T) {
	m := Machine{Config: Config{CheckType: mesos.CheckInfo_COMMAND}}
	m, _ = m.Step(Started{}, t0)
	code := func(c int32) Check {
		s := EmptyCheck(mesos.CheckInfo_COMMAND)
		s.Command.ExitCode = &c
		return Check{s}
	}
	var words []string
	for _, e := range []Event{Check{EmptyCheck(mesos.CheckInfo_COMMAND)}, code(1), code(1), code(0), Kill{}} {
		var out []Effect
		m, out = m.Step(e, t0)
		words = append(words, show(out))
	}
	if diff := cmp.Diff([]string{"", "RUNNING", "", "RUNNING", "nochecks sig15 grace=0s"}, words); diff != "" {
		t.Fatal(diff)
	}
}

// TestOneTerminalUpdate: whatever happens, exactly one terminal update is
// sent, it is the last, and it comes with the exit.
func TestOneTerminalUpdate(t *testing.T) {
	events := []Event{Kill{}, Kill{Grace: ptr(time.Second)}, Health{true}, Health{false}, GraceOver{}, TimeOver{}, exit(0), sig(9), Exited{}}
	rapid.Check(t, func(t *rapid.T) {
		m := Machine{Config: Config{
			KillingState: rapid.Bool().Draw(t, "killing"), HonourPolicy: rapid.Bool().Draw(t, "honour"),
			HealthFails: uint32(rapid.IntRange(1, 3).Draw(t, "fails")), Grace: time.Second, MaxCompletion: time.Second,
		}}
		m, _ = m.Step(Started{}, t0)
		terminal := 0
		for i, n := range rapid.SliceOfN(rapid.IntRange(0, len(events)-1), 1, 30).Draw(t, "events") {
			var out []Effect
			before := m.Ended
			m, out = m.Step(events[n], t0.Add(time.Duration(i)*time.Second))
			for _, e := range out {
				s, ok := e.(Send)
				if !ok {
					continue
				}
				if terminal > 0 {
					t.Fatalf("%v after the end", s.Update.State)
				}
				switch s.Update.State {
				case mesos.TASK_FINISHED, mesos.TASK_FAILED, mesos.TASK_KILLED:
					terminal++
				}
			}
			if m.Ended != (terminal == 1) || (before && len(out) > 0) {
				t.Fatalf("ended %t with %d terminal updates", m.Ended, terminal)
			}
		}
	})
}

func TestStream(t *testing.T) {
	var s Stream
	u := func(id byte) mesos.TaskStatus { return mesos.TaskStatus{UUID: []byte{id}} }
	if !s.Push(u(1)) || s.Push(u(2)) {
		t.Fatal("only the first is the head")
	}
	var waits []time.Duration
	for range 9 {
		waits = append(waits, s.Wait()/time.Second)
	}
	if diff := cmp.Diff([]time.Duration{10, 20, 40, 80, 160, 320, 600, 600, 600}, waits); diff != "" {
		t.Fatal(diff)
	}
	if s.Ack([]byte{2}) != nil || s.Ack([]byte{1}) == nil || s.Ack([]byte{1}) != nil {
		t.Fatal("only the head can be acknowledged, once")
	}
	if got := s.Wait(); got != RetryMin {
		t.Fatalf("the next head waits %v", got)
	}
	if s.Head().UUID[0] != 2 || s.Last().UUID[0] != 2 || s.Ack([]byte{2}) == nil || s.Head() != nil {
		t.Fatal("order lost")
	}
}
