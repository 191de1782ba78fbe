package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/spec"
)

// readSpec reads a spec file, or standard input for "-". One that is too large is refused before anything is sent.
func (a *app) readSpec(file string) ([]byte, error) {
	if file == "" {
		return nil, &usageError{errors.New("no spec is named: give -f FILE, or -f - for standard input")}
	}
	a.source = file
	in := a.In
	if file == "-" {
		a.source = "standard input"
	} else {
		f, err := os.Open(file)
		if err != nil {
			return nil, &deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: fmt.Sprintf("the spec cannot be read: %v", err)}
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, spec.MaxSource+1))
	if err != nil {
		return nil, &deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: fmt.Sprintf("the spec cannot be read: %v", err)}
	}
	if len(data) > spec.MaxSource {
		return nil, &deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: a.source + " is no spec that can be accepted",
			Problems: []deploy.Problem{{Line: 1, Reason: fmt.Sprintf("it is larger than %d bytes; a spec is a page of text, files belong into its artifacts", spec.MaxSource)}}}
	}
	return data, nil
}
