package orchestrator

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"go.yaml.in/yaml/v3"
)

// LoadHosts reads the file that declares Groups and Hosts. Membership is declared, never "who is connected now".
//
//	groups: [public, internal]        # a Group may have no Host yet
//	hosts:
//	  - {name: lb-1, group: public, agent_url: "https://10.0.0.1:8600"}
func LoadHosts(file string) ([]Host, []string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("read the declared hosts: %w", err)
	}
	var doc struct {
		Groups []string `yaml:"groups"`
		Hosts  []Host   `yaml:"hosts"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&doc); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	var errs []error
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
	return doc.Hosts, doc.Groups, errors.Join(errs...)
}
