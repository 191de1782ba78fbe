package orchestrator

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
)

func load(t *testing.T, text string) ([]Host, []registry.Group, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "hosts.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return LoadHosts(file)
}

func TestHostsFile(t *testing.T) {
	hosts, groups, err := load(t, `
groups:
  - internal
  - {name: public, policy: all-but(1), admit: operator, drift: report}
  - name: edge
    policy: percent(80)
hosts:
  - {name: lb-1, group: public, agent_url: "https://10.0.0.1:8600"}
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []registry.Group{
		{Name: "internal", Admit: registry.AdmitDeclared, Drift: registry.DriftRepair},
		{Name: "public", Policy: txn.Policy{AllBut: 1}, Admit: registry.AdmitOperator, Drift: registry.DriftReport},
		{Name: "edge", Policy: txn.Policy{Percent: 80}, Admit: registry.AdmitDeclared, Drift: registry.DriftRepair},
	}
	if d := cmp.Diff(want, groups); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]Host{{Name: "lb-1", Group: "public", AgentURL: "https://10.0.0.1:8600"}}, hosts); d != "" {
		t.Error(d)
	}
}

func TestHostsFileIsStrict(t *testing.T) {
	for text, want := range map[string]string{
		"groups: [{name: a, polcy: all}]":                       `line 1: unknown key "polcy" of a group`,
		"groups:\n- {name: a}\n- {name: b, policy: most}":       `line 3: policy "most": want all, all-but(K)`,
		"groups: [{name: a, drift: fix}]":                       `drift "fix": want report or repair`,
		"groups: [{name: a, admit: anyone}]":                    `admit "anyone": want declared, announced or operator`,
		"groups: [{policy: all}]":                               `a group needs a name`,
		"groups: [{name: a, name: b}]":                          `key name is there twice`,
		"groups: [{name: a, policy: {all-but: 1}}]":             `policy: want a text`,
		"groups: [[a]]":                                         `a group is a name, or a mapping`,
		"groups: [a, {name: a}]":                                `group a is declared twice`,
		"hosts: [{name: a, group: g}]":                          `host 1 needs name, group and agent_url`,
		"hosts: [{name: a, group: g, agent_url: x, colour: 1}]": `colour`,
	} {
		if _, _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngives %v\nwant %s", text, err, want)
		}
	}
}
