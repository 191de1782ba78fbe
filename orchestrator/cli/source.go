package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/spec"
)

// specFile is where one of several files begins in what is sent.
type specFile struct {
	name string
	line int // its first, from 1
}

// readSpecs reads spec files into one source of several documents.
func (a *app) readSpecs(files []string) ([]byte, error) {
	if len(files) == 0 {
		files = []string{""}
	}
	var all []byte
	var names []string
	for i, file := range files {
		data, err := a.readSpec(file)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			all = append(bytes.TrimRight(all, "\n"), "\n---\n"...)
		}
		a.files = append(a.files, specFile{a.source, 1 + bytes.Count(all, []byte("\n"))})
		names = append(names, a.source)
		all = append(all, data...)
	}
	a.source = strings.Join(names, ", ")
	if len(all) > spec.MaxSource {
		return nil, &deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: fmt.Sprintf("%s have more than %d bytes together", a.source, spec.MaxSource)}
	}
	return all, nil
}

// located puts problems of several files where they are: in the file that the line is of.
func (a *app) located(p *wire.ProblemDetails) *wire.ProblemDetails {
	if len(a.files) < 2 {
		return p
	}
	out := *p
	out.Problems = slices.Clone(p.Problems)
	for i, problem := range out.Problems {
		if problem.Line < 1 {
			continue
		}
		at := a.files[0]
		for _, f := range a.files {
			if f.line <= problem.Line {
				at = f
			}
		}
		out.Problems[i].Line -= at.line - 1
		out.Problems[i].Reason = at.name + ": " + problem.Reason
	}
	return &out
}

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
	if isEmpty(data) {
		return nil, &deploy.Refusal{Kind: deploy.RefusedInvalid,
			Detail: a.source + " is empty: nothing but blanks and comments is in it; cutover validate --help shows a spec to begin with"}
	}
	if len(data) > spec.MaxSource {
		return nil, &deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: a.source + " is no spec that can be accepted",
			Problems: []deploy.Problem{{Line: 1, Reason: fmt.Sprintf("it is larger than %d bytes; a spec is a page of text, files belong into its artifacts", spec.MaxSource)}}}
	}
	return data, nil
}

// isEmpty reports whether there is no spec at all in what was read.
func isEmpty(data []byte) bool {
	for line := range bytes.Lines(data) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && string(line) != "---" && string(line) != "..." {
			return false
		}
	}
	return true
}

// exampleSpec is a whole spec of the usual kind.
const exampleSpec = `  name: shop
  kind: service
  version: "1.4.2"
  instances: 4
  command: exec ./server --listen $HOST:$PORT0
  resources: {cpus: 0.1, memory: 64MiB, ports: 1}
  health: {http: {path: /healthz, port: 0}, interval: 500ms, timeout: 1s, rise: 2, fall: 3, grace: 20s}
  routes: [{group: public, host: "*", path: /shop, port: 0}]
  deploy: {strategy: blue-green, deadline: 2m, drain: 30s}`
