package orchestrator_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/txn"
)

var update = flag.Bool("update", false, "draw the diagrams of docs/protocol.md again")

const protocol = "../docs/protocol.md"

// The state diagrams in docs/protocol.md are those of the code.
func TestTheDiagramsAreTheCode(t *testing.T) {
	text, err := os.ReadFile(protocol)
	if err != nil {
		t.Fatal(err)
	}
	drawn := string(text)
	for name, diagram := range map[string]string{"txn": txnDiagram(), "deploy": deployDiagram()} {
		begin, end := "<!-- "+name+":begin -->\n", "<!-- "+name+":end -->"
		head, rest, ok := strings.Cut(drawn, begin)
		if !ok {
			t.Fatalf("%s has no %s", protocol, begin)
		}
		_, foot, ok := strings.Cut(rest, end)
		if !ok {
			t.Fatalf("%s has no %s", protocol, end)
		}
		drawn = head + begin + diagram + end + foot
	}
	if drawn == string(text) {
		return
	}
	if *update {
		if err := os.WriteFile(protocol, []byte(drawn), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("the diagrams of %s are not those of the code: go test ./orchestrator -run Diagrams -update", protocol)
}

type arrow struct{ from, to, on string }

func txnDiagram() string {
	var arrows []arrow
	for _, tr := range txn.Transitions() {
		from := tr.From.String()
		if tr.From == 0 {
			from = "[*]"
		}
		arrows = append(arrows, arrow{from, tr.To.String(), tr.On})
	}
	return mermaid(arrows)
}

func deployDiagram() string {
	var arrows []arrow
	for _, tr := range deploy.Transitions() {
		arrows = append(arrows, arrow{string(tr.From), string(tr.To), tr.Input})
	}
	return mermaid(arrows)
}

// mermaid draws the arrows, those between the same two states as one.
func mermaid(arrows []arrow) string {
	var order []string
	on := map[string][]string{}
	for _, a := range arrows {
		key := fmt.Sprintf("%s --> %s", node(a.from), node(a.to))
		if _, ok := on[key]; !ok {
			order = append(order, key)
		}
		if !slices.Contains(on[key], a.on) {
			on[key] = append(on[key], a.on)
		}
	}
	var b strings.Builder
	b.WriteString("```mermaid\nstateDiagram-v2\n")
	for _, key := range order {
		fmt.Fprintf(&b, "    %s: %s\n", key, strings.Join(on[key], " / "))
	}
	b.WriteString("```\n")
	return b.String()
}

// node makes a name that mermaid takes for one word.
func node(s string) string {
	if s == "[*]" {
		return s
	}
	return strings.ReplaceAll(s, "-", "_")
}
