package resource

import (
	"fmt"
	"testing"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"pgregory.net/rapid"
)

func TestParseAndString(t *testing.T) {
	s, err := Parse("cpus:4;mem:8192;disk:20000;ports:[31000-31099]")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.String(); got != "ports:[31000-31099];cpus:4;mem:8192;disk:20000" {
		t.Fatal(got)
	}
	for _, bad := range []string{"cpus", "cpus:x", "cpus:-1", "ports:[1-2", "ports:[2-1]", ":4"} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) accepted", bad)
		}
	}
}

func TestTextIsMesosText(t *testing.T) {
	role, typ := "*", mesos.SCALAR
	got := Text([]mesos.Resource{
		{Name: "cpus", Type: &typ, Scalar: &mesos.Value_Scalar{Value: 3.999}, AllocationInfo: &mesos.Resource_AllocationInfo{Role: &role}},
		{Name: "mem", Type: &typ, Scalar: &mesos.Value_Scalar{Value: 8191}},
		{Name: "ports", Type: mesos.RANGES.Enum(), Ranges: &mesos.Value_Ranges{Range: []mesos.Value_Range{{Begin: 80, End: 80}}}},
	})
	if want := "cpus(allocated: *):3.999; mem:8191; ports:[80-80]"; got != want {
		t.Fatalf("%q, want %q", got, want)
	}
}

func genSet(t *rapid.T, label string) Set {
	text := fmt.Sprintf("cpus:%v;mem:%d", float64(rapid.IntRange(0, 9000).Draw(t, label+"cpus"))/1000, rapid.IntRange(0, 500).Draw(t, label+"mem"))
	for i := range rapid.IntRange(0, 4).Draw(t, label+"n") {
		b := rapid.IntRange(1, 60).Draw(t, fmt.Sprint(label, "b", i))
		text += fmt.Sprintf(";ports:[%d-%d]", b, b+rapid.IntRange(0, 9).Draw(t, fmt.Sprint(label, "l", i)))
	}
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestLaws checks the laws that the allocator relies on.
func TestLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := genSet(t, "a"), genSet(t, "b")
		sum := a.Add(b)
		if !sum.Contains(a) || !sum.Contains(b) {
			t.Fatalf("%v + %v does not contain both", a, b)
		}
		if rest := a.Sub(b); a.Contains(b) {
			if got := rest.Add(b).String(); got != a.String() {
				t.Fatalf("(a-b)+b = %v, want %v", got, a)
			}
		} else if rest.Contains(a) && !b.Empty() && a.String() != rest.String() {
			t.Fatalf("a-b grew: %v - %v = %v", a, b, rest)
		}
		if d := a.Sub(a); !d.Empty() {
			t.Fatalf("a-a = %v", d)
		}
		if got := Of(a.Mesos("r")).String(); got != a.String() {
			t.Fatalf("round trip %v, want %v", got, a)
		}
	})
}
