package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/api/apitest"
	"github.com/cutover/cutover/orchestrator/auth"
)

var rewrite = flag.Bool("rewrite", false, "write openapi.json in the place of comparing it")

// The document is a contract: a change of it is reviewed as a diff. Regenerate with: go test ./orchestrator/api -run OpenAPI -rewrite.
func TestOpenAPIIsCommitted(t *testing.T) {
	tokens, err := auth.NewTokens()
	if err != nil {
		t.Fatal(err)
	}
	h, err := api.New(api.Options{Service: &apitest.Service{}, Auth: tokens, Registry: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler), Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	const path = "openapi.json"
	if *rewrite {
		if err := os.WriteFile(path, h.OpenAPI(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, h.OpenAPI()) {
		t.Fatalf("%s is not current; look at the difference, then run this test with -rewrite:\n%s", path, cmp.Diff(string(want), string(h.OpenAPI())))
	}
	var doc struct {
		OpenAPI string                    `json:"openapi"`
		Paths   map[string]map[string]any `json:"paths"`
	}
	if err := json.Unmarshal(want, &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1.") {
		t.Errorf("OpenAPI version %q, want 3.1", doc.OpenAPI)
	}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			text, err := json.Marshal(op)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), "application/problem+json") {
				t.Errorf("%s %s does not describe its problems", method, path)
			}
			if method == "post" && !strings.Contains(string(text), "Idempotency-Key") {
				t.Errorf("%s %s takes no Idempotency-Key", method, path)
			}
		}
	}
}
