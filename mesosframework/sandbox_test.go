package mesosframework

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestSandbox(t *testing.T) {
	const content = "line 1\nline 2\xff\n"
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "agent" || p != "secret" {
			http.Error(w, "401 Unauthorized.", http.StatusUnauthorized)
			return
		}
		q := r.URL.Query()
		switch {
		case !strings.HasSuffix(q.Get("path"), "/stdout"):
			w.WriteHeader(http.StatusNotFound)
		case q.Get("path") != "/frameworks/fw-1/executors/t1/runs/latest/stdout":
			http.Error(w, "wrong path "+q.Get("path"), http.StatusBadRequest)
		case r.URL.Path == "/files/download":
			fmt.Fprint(w, content)
		case r.URL.Path == "/files/read" && q.Get("offset") == "-1":
			fmt.Fprintf(w, `{"data":"","offset":%d}`, len(content))
		case r.URL.Path == "/files/read" && q.Get("length") == "9":
			fmt.Fprintf(w, "{\"data\":\"line 2\xff\\n\",\"offset\":%s}", q.Get("offset"))
		default:
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	defer agent.Close()
	m, o := newFakeMaster(t), newOwner()
	o.id = "fw-1"
	f := start(t, o, func(o *Options) { o.AgentCredentials = &Credentials{"agent", "secret"} }, m)
	m.stream()
	ref := TaskRef{TaskID: "t1", AgentURL: agent.URL}
	c, err := f.ReadSandbox(t.Context(), ref, "stdout", 7, 9)
	if err != nil || string(c.Data) != "line 2\xff\n" || c.Offset != 7 {
		t.Errorf("%q %d %v", c.Data, c.Offset, err)
	}
	if c, err := f.ReadSandbox(t.Context(), ref, "stdout", -1, 0); err != nil || c.Offset != int64(len(content)) || len(c.Data) != 0 {
		t.Errorf("size: %+v %v", c, err)
	}
	r, err := f.DownloadSandbox(t.Context(), ref, "stdout")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	r.Close()
	if err != nil || string(b) != content {
		t.Errorf("%q %v", b, err)
	}
	if _, err := f.DownloadSandbox(t.Context(), ref, "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing file: %v", err)
	}
	for _, bad := range []string{"", "../x", "/etc/passwd", "a/../../x", "."} {
		if _, err := f.ReadSandbox(t.Context(), ref, bad, 0, 1); err == nil {
			t.Errorf("file %q passed", bad)
		}
	}
	if _, err := f.ReadSandbox(t.Context(), TaskRef{TaskID: "t1"}, "stdout", 0, 1); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Errorf("no agent: %v", err)
	}
}

func TestParseChunk(t *testing.T) {
	for _, bad := range []string{"", "{", "{}", `{"data":"x"}`, `{"data":"x","offset":-1}`, `{"data":"\x","offset":1}`, `{"data":"\u12","offset":1}`, `{"data":"`, `{"data":1,"offset":1}`, `{"other":1}`} {
		if c, err := parseChunk([]byte(bad)); err == nil {
			t.Errorf("%s: %+v", bad, c)
		}
	}
	// Whatever a correct encoder writes is read back.
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.String().Draw(t, "text")
		offset := rapid.Int64Range(0, 1<<50).Draw(t, "offset")
		b, err := json.Marshal(map[string]any{"data": want, "offset": offset})
		if err != nil {
			t.Fatal(err)
		}
		c, err := parseChunk(b)
		if err != nil || string(c.Data) != want || c.Offset != offset {
			t.Fatalf("%s: %q %d %v", b, c.Data, c.Offset, err)
		}
	})
}

func FuzzParseChunk(f *testing.F) {
	f.Add([]byte(`{"data":"a\u00e9\n","offset":3.0}`))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseChunk(b) })
}
