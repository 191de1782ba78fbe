package agent

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

type entry struct {
	name, body, link string
	kind             byte
}

func tarball(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: 0o755, Size: int64(len(e.body)), Linkname: e.link}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fetchOne fetches a file of that name and content by HTTP into an empty
// sandbox, which it returns.
func fetchOne(t *testing.T, name string, content []byte) (string, error) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }))
	defer srv.Close()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	f := fetcher{root: root, report: io.Discard, client: srv.Client()}
	return dir, f.fetch(t.Context(), mesos.CommandInfo_URI{Value: srv.URL + "/" + name})
}

func TestFetchTar(t *testing.T) {
	dir, err := fetchOne(t, "a.tgz", tarball(t, entry{name: "bin/", kind: tar.TypeDir}, entry{name: "bin/run", body: "#!/bin/sh\n"},
		entry{name: "current", link: "bin/run", kind: tar.TypeSymlink}))
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(dir, "current"))
	if err != nil || st.Mode()&0o111 == 0 {
		t.Fatalf("%v %v", st, err)
	}
}

// TestFetchStaysInside: archives that reach for the outside are refused, and
// nothing is written there.
func TestFetchStaysInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.Mkdir(outside, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, entries := range map[string][]entry{
		"dots":     {{name: "../../x", body: "x"}},
		"absolute": {{name: outside + "/x", body: "x"}},
		"by link":  {{name: "l", link: outside, kind: tar.TypeSymlink}, {name: "l/x", body: "x"}},
		"device":   {{name: "d", kind: tar.TypeChar}},
	} {
		if _, err := fetchOne(t, "a.tar.gz", tarball(t, entries...)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Fatalf("written outside: %v", left)
	}
}

func TestFetchZipAndGzip(t *testing.T) {
	var z bytes.Buffer
	w := zip.NewWriter(&z)
	f, err := w.Create("d/f.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.Write([]byte("zip"))
	_ = w.Close()
	dir, err := fetchOne(t, "a.zip", z.Bytes())
	if b, _ := os.ReadFile(filepath.Join(dir, "d/f.txt")); err != nil || string(b) != "zip" {
		t.Fatalf("%q %v", b, err)
	}
	var g bytes.Buffer
	gz := gzip.NewWriter(&g)
	_, _ = gz.Write([]byte("gz"))
	_ = gz.Close()
	dir, err = fetchOne(t, "f.txt.gz", g.Bytes())
	if b, _ := os.ReadFile(filepath.Join(dir, "f.txt")); err != nil || string(b) != "gz" {
		t.Fatalf("%q %v", b, err)
	}
	if _, err := fetchOne(t, "a.tar.xz", nil); err == nil || !strings.Contains(err.Error(), "xz") {
		t.Fatalf("%v", err)
	}
}
