package healthcheck

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestStepTable(t *testing.T) {
	check, err := Check{Kind: TCP, Rise: 2, Fall: 3, Grace: 10 * time.Second}.Normalize()
	if err != nil {
		t.Fatal(err)
	}
	type step struct {
		at     int // seconds
		result string
		phase  Phase
		change Change
	}
	const ok, bad = "", "connection refused to 127.0.0.1:1"
	for name, steps := range map[string][]step{
		"rise counts in a row": {{0, ok, Starting, None}, {1, bad, Starting, None}, {2, ok, Starting, None}, {3, ok, Healthy, BecameHealthy}},
		"failures within grace do not count": {{0, bad, Starting, None}, {1, bad, Starting, None}, {2, bad, Starting, None}, {3, bad, Starting, None},
			{4, ok, Starting, None}, {5, ok, Healthy, BecameHealthy}, {6, bad, Healthy, None}, {7, bad, Healthy, None}, {8, ok, Healthy, None}, {9, bad, Healthy, None}},
		"fall in a row, then back": {{0, ok, Starting, None}, {1, ok, Healthy, BecameHealthy}, {2, bad, Healthy, None}, {3, bad, Healthy, None},
			{4, bad, Unhealthy, BecameUnhealthy}, {5, bad, Unhealthy, None}, {50, ok, Unhealthy, None}, {51, ok, Healthy, BecameHealthy}},
		"grace expires once, health may still come": {{9, bad, Starting, None}, {10, bad, Starting, GraceExpired}, {11, bad, Starting, None},
			{12, ok, Starting, None}, {13, ok, Healthy, BecameHealthy}, {30, bad, Healthy, None}},
		"grace ends between two good results": {{9, ok, Starting, None}, {10, ok, Healthy, BecameHealthy}},
	} {
		t.Run(name, func(t *testing.T) {
			s := State{Since: epoch}
			for i, st := range steps {
				var c Change
				s, c = Step(check, s, Result{Err: st.result}, epoch.Add(time.Duration(st.at)*time.Second))
				if s.Phase != st.phase || c != st.change {
					t.Fatalf("step %d: %s %s, want %s %s", i, s.Phase, c, st.phase, st.change)
				}
			}
			if name != "grace ends between two good results" && s.LastError != bad {
				t.Errorf("last error %q", s.LastError)
			}
		})
	}
	if s, c := Expire(check, State{Since: epoch}, epoch.Add(10*time.Second)); c != GraceExpired || !s.GraceExpired {
		t.Error("Expire did not report the end of the grace")
	}
}

func TestStepProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		check, err := Check{
			Kind: TCP, Rise: rapid.IntRange(1, 4).Draw(t, "rise"), Fall: rapid.IntRange(1, 4).Draw(t, "fall"),
			Grace: time.Duration(rapid.IntRange(1, 20).Draw(t, "grace")) * time.Second,
		}.Normalize()
		if err != nil {
			t.Fatal(err)
		}
		s, now := State{Since: epoch}, epoch
		expired, goodRun, badRun := 0, 0, 0
		for range rapid.IntRange(0, 60).Draw(t, "n") {
			now = now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			before := s
			var c Change
			good := rapid.Bool().Draw(t, "good")
			if good {
				goodRun, badRun = goodRun+1, 0
				s, c = Step(check, s, Result{}, now)
			} else {
				goodRun, badRun = 0, badRun+1
				s, c = Step(check, s, Result{Err: "x"}, now)
			}
			switch {
			case (c == BecameHealthy) != (s.Phase == Healthy && before.Phase != Healthy):
				t.Fatalf("%s but %s -> %s", c, before.Phase, s.Phase)
			case c == BecameHealthy && goodRun < check.Rise:
				t.Fatalf("healthy after %d of %d", goodRun, check.Rise)
			case c == BecameUnhealthy && badRun < check.Fall:
				t.Fatalf("unhealthy after %d of %d", badRun, check.Fall)
			case goodRun >= check.Rise && s.Phase != Healthy:
				t.Fatalf("%d good in a row and still %s", goodRun, s.Phase)
			case badRun >= check.Fall && s.Phase == Healthy:
				t.Fatalf("%d bad in a row and still healthy", badRun)
			case s.Phase == Starting && before.Phase != Starting:
				t.Fatal("went back to starting")
			case s.Phase == Starting && now.Sub(epoch) >= check.Grace && !s.GraceExpired:
				t.Fatal("the grace ended unseen")
			}
			if c == GraceExpired {
				expired++
			}
			if expired > 1 {
				t.Fatal("grace expired twice")
			}
		}
	})
}

func TestNormalize(t *testing.T) {
	got, err := Check{Kind: HTTP}.Normalize()
	want := Check{Kind: HTTP, Path: "/", Interval: time.Second, Timeout: time.Second, Grace: time.Minute, Rise: 1, Fall: 3}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(d, err)
	}
	for _, c := range []Check{
		{}, {Kind: "grpc"}, {Kind: HTTP, Path: "x"}, {Kind: HTTP, Path: "/a b"}, {Kind: HTTP, Path: "/\r\nX: y"}, {Kind: HTTP, HostHeader: "a\r\nb"},
		{Kind: TCP, Path: "/"}, {Kind: TCP, Interval: time.Millisecond}, {Kind: TCP, Timeout: -1}, {Kind: TCP, Timeout: time.Hour}, {Kind: TCP, Grace: -1}, {Kind: TCP, Rise: -1},
	} {
		if _, err := c.Normalize(); err == nil {
			t.Errorf("%+v passed", c)
		}
	}
}
