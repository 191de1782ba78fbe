package api

import (
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

const securityToken = "token"

// schemaNames are the names in the OpenAPI document where the Go name would say too little outside of its package.
var schemaNames = map[reflect.Type]string{
	reflect.TypeFor[deploy.View]():         "Deploy",
	reflect.TypeFor[deploy.AppView]():      "App",
	reflect.TypeFor[deploy.TaskView]():     "Task",
	reflect.TypeFor[deploy.HostView]():     "HostVote",
	reflect.TypeFor[deploy.EvidenceView](): "Evidence",
	reflect.TypeFor[deploy.UpstreamView](): "Upstream",
	reflect.TypeFor[deploy.DrainView]():    "Drain",
	reflect.TypeFor[deploy.StepRecord]():   "Step",
	reflect.TypeFor[deploy.Problem]():      "InputProblem",
	reflect.TypeFor[wire.ProblemDetails](): "Problem",
}

func schemaName(t reflect.Type, hint string) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if name, ok := schemaNames[t]; ok {
		return name
	}
	return huma.DefaultSchemaNamer(t, hint)
}

// tidySchemas makes the document say what is so: lists are never null (wire.Complete), errors are never huma's own, and answers may
// get new fields, while a request with an unknown one is refused.
func tidySchemas(schemas huma.Registry) {
	all := schemas.Map()
	delete(all, "ErrorModel")
	delete(all, "ErrorDetail")
	for name, s := range all {
		if !strings.HasSuffix(name, "Body") {
			s.AdditionalProperties = nil
		}
		for _, p := range s.Properties {
			if p.Type == huma.TypeArray {
				p.Nullable = false
			}
		}
	}
}

// operation describes one operation. Its failures are all one shape; every POST takes an idempotency key.
func operation(api huma.API, method, path, id, tag, summary, description string) huma.Operation {
	problem := &huma.MediaType{Schema: api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[wire.ProblemDetails](), true, "")}
	return huma.Operation{
		OperationID: id, Method: method, Path: path, Tags: []string{tag}, Summary: summary, Description: description,
		Responses: map[string]*huma.Response{
			"default": {Description: "What went wrong", Content: map[string]*huma.MediaType{wire.ProblemContentType: problem}},
		},
		// readBody has read and bounded the body already.
		MaxBodyBytes: wire.MaxBodyBytes + 1<<20,
	}
}

func get(api huma.API, path, id, tag, summary, description string) huma.Operation {
	return operation(api, http.MethodGet, path, id, tag, summary, description)
}

func post(api huma.API, path, id, tag, summary, description string) huma.Operation {
	return operation(api, http.MethodPost, path, id, tag, summary, description)
}

// open marks an operation that needs no token.
func open(op huma.Operation) huma.Operation {
	op.Security = []map[string][]string{}
	return op
}
