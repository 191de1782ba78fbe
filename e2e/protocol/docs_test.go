package protocol

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	tableBegin = "<!-- search:begin -->\n"
	tableEnd   = "<!-- search:end -->"
)

// TestProtocolTellsHowItIsSearched: the table in docs/protocol.md names the scenarios and the mutants that are here. With
// -update it is written anew, with the counts and the processor time of that run.
func TestProtocolTellsHowItIsSearched(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "protocol.md")
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(doc), tableBegin)
	table, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no %s", path, strings.TrimSpace(tableBegin))
	}
	if *update {
		if err := os.WriteFile(path, []byte(before+tableBegin+newTable(t)+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	numbers := regexp.MustCompile(`\| [0-9,]+\+? \| [0-9,]+ \| [0-9.]+ s \|`)
	var want strings.Builder
	for _, sc := range scenarios {
		want.WriteString(sc.row("|\n"))
	}
	got := numbers.ReplaceAllString(table[strings.Index(table, "| ---")+len(tableHead)-strings.Index(tableHead, "| ---"):], "|")
	if got != want.String() {
		t.Errorf("the table of %s tells of other scenarios: run go test ./e2e/protocol -run Protocol -update\ngot:\n%s\nwant:\n%s", path, got, want.String())
	}
	for _, m := range mutants {
		if !strings.Contains(string(doc), strings.ReplaceAll(m.name, "-", " ")) {
			t.Errorf("%s does not name the mutant %q", path, strings.ReplaceAll(m.name, "-", " "))
		}
	}
}

const tableHead = "| scenario | hosts | states | moves | time |\n| --- | --- | --- | --- | --- |\n"

func (sc scenario) row(rest string) string {
	return fmt.Sprintf("| %s | %d %s", sc.name, sc.hosts, rest)
}

// newTable searches every scenario, one after the other.
func newTable(t *testing.T) string {
	var b strings.Builder
	b.WriteString(tableHead)
	for _, sc := range scenarios {
		begin := processorTime(t)
		s := sc.explore(t, limitOf(t))
		more := ""
		if s.full {
			more = "+"
		}
		b.WriteString(sc.row(fmt.Sprintf("| %s%s | %s | %.1f s |\n", grouped(len(s.seen)), more, grouped(s.moves), (processorTime(t) - begin).Seconds())))
	}
	return b.String()
}

// processorTime is what this process has used: on a busy machine the only time that can be compared.
func processorTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func grouped(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
