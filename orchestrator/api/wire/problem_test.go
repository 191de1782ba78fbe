package wire

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/orchestrator/deploy"
)

func TestKindsHaveOneStatusAndOneExitCode(t *testing.T) {
	for kind, want := range map[deploy.RefusalKind][2]int{
		deploy.RefusedInvalid:      {422, 1},
		deploy.RefusedNotFound:     {404, 1},
		deploy.RefusedState:        {409, 1},
		deploy.RefusedLocked:       {409, 8},
		deploy.RefusedIdempotency:  {422, 8},
		deploy.RefusedUnavailable:  {503, 9},
		deploy.RefusedUnauthorized: {401, 9},
		KindInternal:               {500, 1},
		"from a newer release":     {500, 1},
	} {
		if got := [2]int{StatusOf(kind), ExitOf(kind)}; got != want {
			t.Errorf("%s: %v, want %v", kind, got, want)
		}
	}
}

func TestForeignAnswers(t *testing.T) {
	for _, c := range []struct {
		status      int
		contentType string
		body        string
		want        deploy.RefusalKind
	}{
		{502, "text/html", "<h1>Bad\x1b[31m Gateway</h1>", deploy.RefusedUnavailable},
		{503, "", "", deploy.RefusedUnavailable},
		{401, "text/plain", "no", deploy.RefusedUnauthorized},
		{404, "text/html", strings.Repeat("x", 10000), deploy.RefusedNotFound},
		{500, ProblemContentType, "{", KindInternal},
		{500, ProblemContentType, `{"title":"someone else's"}`, KindInternal},
		{200, "application/json", `[]`, KindInternal},
	} {
		p := DecodeProblem(c.status, c.contentType, []byte(c.body))
		if p.Kind != c.want {
			t.Errorf("%d %q: kind %s, want %s", c.status, c.body, p.Kind, c.want)
		}
		if strings.ContainsRune(p.Detail, 0x1b) || len(p.Detail) > 600 {
			t.Errorf("%d: detail %q", c.status, p.Detail)
		}
	}
}

func FuzzDecodeProblem(f *testing.F) {
	f.Add(409, ProblemContentType, []byte(`{"type":"urn:cutover:problem:locked","title":"t","status":409,"detail":"d","kind":"locked","open_deploy":"01D"}`))
	f.Add(422, ProblemContentType+"; charset=utf-8", []byte(`{"kind":"invalid","problems":[{"line":1,"column":2,"field":"a","reason":"b"}]}`))
	f.Add(502, "text/html", []byte("<html>\xff"))
	f.Add(0, "", []byte(nil))
	f.Fuzz(func(t *testing.T, status int, contentType string, body []byte) {
		p := DecodeProblem(status, contentType, body)
		if p == nil || p.Kind == "" || p.Detail == "" || p.Type == "" || p.Title == "" {
			t.Fatalf("incomplete: %+v", p)
		}
		if !utf8.ValidString(p.Detail) {
			t.Fatalf("detail is no UTF-8: %q", p.Detail)
		}
		if code := ExitOf(p.Kind); code != 1 && code != 8 && code != 9 {
			t.Fatalf("exit code %d of a refusal", code)
		}
		// What was decoded travels again and is the same.
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, DecodeProblem(p.Status, ProblemContentType, again)); diff != "" && p.Status != 0 {
			t.Fatal(diff)
		}
	})
}

func FuzzRefusalSurvives(f *testing.F) {
	f.Add("locked", "a Deploy is open", 0, 0, "", "", "01D")
	f.Add("invalid", "the Spec is wrong", 3, 9, "health.port", "out of range", "")
	f.Fuzz(func(t *testing.T, kind, detail string, line, column int, field, reason, open string) {
		for _, s := range []string{kind, detail, field, reason, open} {
			if !utf8.ValidString(s) {
				t.Skip("JSON is UTF-8")
			}
		}
		if kind == "" || detail == "" {
			t.Skip("the orchestrator always says what and why")
		}
		want := &deploy.Refusal{Kind: deploy.RefusalKind(kind), Detail: detail, OpenDeploy: open,
			Problems: []deploy.Problem{{Line: line, Column: column, Field: field, Reason: reason}}}
		body, err := json.Marshal(FromRefusal(want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, DecodeProblem(StatusOf(want.Kind), ProblemContentType, body).Refusal()); diff != "" {
			t.Fatal(diff)
		}
	})
}
