package orchestrator

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
)

// LoadHosts reads the file that declares Groups and Hosts. Membership is declared, never "who is connected now".
//
//	groups:
//	  - internal                      # the defaults; a Group may have no Host yet
//	  - {name: public, policy: all-but(1), admit: declared, drift: repair}
//	hosts:
//	  - {name: lb-1, group: public, agent_url: "https://10.0.0.1:8600"}
//
// A Group that only a Host names has the defaults: policy all (or all-but(K), percent(P)), admit declared (or announced, or
// operator), drift repair (or report).
func LoadHosts(file string) ([]Host, []registry.Group, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("read the declared hosts: %w", err)
	}
	var doc struct {
		Groups []groupEntry `yaml:"groups"`
		Hosts  []Host       `yaml:"hosts"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&doc); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	var errs []error
	groups := make([]registry.Group, 0, len(doc.Groups))
	for _, g := range doc.Groups {
		if slices.ContainsFunc(groups, func(o registry.Group) bool { return o.Name == g.Name }) {
			errs = append(errs, fmt.Errorf("%s: line %d: group %s is declared twice", file, g.line, g.Name))
		}
		groups = append(groups, g.Group)
	}
	seen := map[string]bool{}
	for i, h := range doc.Hosts {
		if h.Name == "" || h.Group == "" || h.AgentURL == "" {
			errs = append(errs, fmt.Errorf("%s: host %d needs name, group and agent_url", file, i+1))
		}
		if seen[h.Name] {
			errs = append(errs, fmt.Errorf("%s: host %s is declared twice", file, h.Name))
		}
		seen[h.Name] = true
	}
	return doc.Hosts, groups, errors.Join(errs...)
}

// groupEntry is one entry of groups: a name alone, or a mapping.
type groupEntry struct {
	registry.Group
	line int
}

// UnmarshalYAML reads the entry; every error names its line.
func (g *groupEntry) UnmarshalYAML(n *yaml.Node) error {
	g.line = n.Line
	g.Admit, g.Drift = registry.AdmitDeclared, registry.DriftRepair
	switch n.Kind {
	case yaml.ScalarNode:
		g.Name = n.Value
	case yaml.MappingNode:
		seen := map[string]bool{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if seen[key.Value] {
				return fmt.Errorf("line %d: key %s is there twice", key.Line, key.Value)
			}
			seen[key.Value] = true
			if value.Kind != yaml.ScalarNode {
				return fmt.Errorf("line %d: %s: want a text", value.Line, key.Value)
			}
			var err error
			switch key.Value {
			case "name":
				g.Name = value.Value
			case "policy":
				g.Policy, err = txn.ParsePolicy(value.Value)
			case "admit":
				g.Admit, err = registry.ParseAdmit(value.Value)
			case "drift":
				g.Drift, err = registry.ParseDrift(value.Value)
			default:
				err = fmt.Errorf("unknown key %q of a group: want name, policy, admit or drift", key.Value)
			}
			if err != nil {
				return fmt.Errorf("line %d: %w", value.Line, err)
			}
		}
	default:
		return fmt.Errorf("line %d: a group is a name, or a mapping with name, policy, admit and drift", n.Line)
	}
	if g.Name == "" {
		return fmt.Errorf("line %d: a group needs a name", n.Line)
	}
	return nil
}
