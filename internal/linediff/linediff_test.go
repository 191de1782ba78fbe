package linediff

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestUnified(t *testing.T) {
	a := "1\n2\n3\n4\n5\n6\n7\n8\n9\n"
	b := "1\n2\n3\n4\nfive\n6\n7\n8\n9\n10\n"
	want := "--- wanted\n+++ found\n@@ -2,8 +2,9 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n 9\n+10\n"
	if got := Unified("wanted", a, "found", b, 1<<10); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := Unified("wanted", "", "found", "x\n", 1<<10); !strings.HasSuffix(got, "@@ -1,0 +1,1 @@\n+x\n") {
		t.Errorf("from nothing: %s", got)
	}
	if got := Unified("a", a, "b", a, 1<<10); got != "" {
		t.Errorf("equal texts: %q", got)
	}
	long := Unified("a", strings.Repeat("x\n", 3000), "b", strings.Repeat("y\n", 3000), 500)
	if len(long) > 600 || !strings.HasSuffix(long, "(the rest is left out)\n") {
		t.Errorf("a long diff has %d bytes", len(long))
	}
}

// The edit script leads from one text to the other, whatever they are.
func TestCompareLaw(t *testing.T) {
	text := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 12)
	rapid.Check(t, func(t *rapid.T) {
		a, b := text.Draw(t, "a"), text.Draw(t, "b")
		var left, right []string
		for _, o := range compare(a, b) {
			if o.kind != '+' {
				left = append(left, o.line)
			}
			if o.kind != '-' {
				right = append(right, o.line)
			}
		}
		if strings.Join(left, "") != strings.Join(a, "") || strings.Join(right, "") != strings.Join(b, "") {
			t.Fatalf("%v and %v give %v and %v", a, b, left, right)
		}
	})
}
