package agent

import (
	"archive/tar"
	"archive/zip"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// maxFetch bounds what one URI may bring, archives unpacked included.
const maxFetch = 8 << 30

// stallTimeout bounds the wait for the first byte of an answer.
const stallTimeout = time.Minute

// fetchAll brings the URIs of the command into the sandbox, one after the
// other. What happened is told in the sandbox's stderr, as Mesos's fetcher does.
func (t *task) fetchAll(ctx context.Context, transport http.RoundTripper) *refusal {
	uris := t.info.Command.GetURIs()
	if len(uris) == 0 {
		return nil
	}
	for _, u := range uris {
		if out := u.GetOutputFile(); path.IsAbs(out) || !filepath.IsLocal(orDot(out)) {
			return launchFailed("Could not fetch: URI output file must be within the sandbox directory")
		}
	}
	root, err := os.OpenRoot(t.sandbox())
	if err != nil {
		return launchFailed("%v", err)
	}
	defer root.Close()
	report, err := root.OpenFile("stderr", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return launchFailed("%v", err)
	}
	defer report.Close()
	f := fetcher{root: root, report: report, client: &http.Client{Transport: transport}}
	for _, u := range uris {
		if err := f.fetch(ctx, u); err != nil {
			_, _ = fmt.Fprintf(report, "Failed to fetch '%s': %v\n", u.Value, err)
			return launchFailed("Failed to fetch all URIs for container '%s': exited with status 1", t.container)
		}
	}
	return nil
}

func orDot(p string) string {
	if p == "" {
		return "."
	}
	return p
}

// fetcher writes only below root.
type fetcher struct {
	root   *os.Root
	report io.Writer
	client *http.Client
}

func (f *fetcher) fetch(ctx context.Context, u mesos.CommandInfo_URI) error {
	_, _ = fmt.Fprintf(f.report, "Fetching URI '%s'\n", u.Value)
	in, name, err := f.open(ctx, u.Value)
	if err != nil {
		return err
	}
	defer in.Close()
	if u.GetOutputFile() != "" {
		name = filepath.Clean(u.GetOutputFile())
	}
	if !filepath.IsLocal(name) || name == "." {
		return fmt.Errorf("no usable file name in %q", u.Value)
	}
	mode := os.FileMode(0o644)
	if u.GetExecutable() {
		mode = 0o755
	}
	if err := f.write(name, in, mode); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(f.report, "Fetched '%s' to '%s'\n", u.Value, filepath.Join(f.root.Name(), name))
	if u.GetExecutable() || !u.GetExtract() {
		return nil
	}
	return f.extract(ctx, name)
}

// open opens a URI: a file of this machine, or HTTP.
func (f *fetcher) open(ctx context.Context, uri string) (io.ReadCloser, string, error) {
	file, isFile := strings.CutPrefix(uri, "file://")
	if isFile || path.IsAbs(uri) {
		in, err := os.Open(file)
		if err != nil {
			return nil, "", err
		}
		if st, err := in.Stat(); err != nil || !st.Mode().IsRegular() {
			_ = in.Close()
			return nil, "", fmt.Errorf("%s is not a regular file", file)
		}
		return in, path.Base(file), nil
	}
	parsed, err := url.Parse(uri)
	if err != nil {
		return nil, "", err
	}
	if parsed.Scheme != "http" && parsed.Scheme != "https" {
		return nil, "", errors.New("only file, http and https URIs and absolute paths can be fetched")
	}
	// The deadline is for the answer to begin; the task's end ends the rest.
	ctx, cancel := context.WithCancel(ctx)
	stall := time.AfterFunc(stallTimeout, cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		cancel()
		return nil, "", err
	}
	resp, err := f.client.Do(req)
	stall.Stop()
	if err != nil {
		cancel()
		return nil, "", err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		cancel()
		return nil, "", fmt.Errorf("unexpected HTTP answer %s", resp.Status)
	}
	return &body{resp.Body, cancel}, path.Base(parsed.Path), nil
}

type body struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *body) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// write copies at most maxFetch bytes into a new file of the sandbox.
func (f *fetcher) write(name string, in io.Reader, mode os.FileMode) error {
	if dir := filepath.Dir(name); dir != "." {
		if err := f.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	out, err := f.root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(in, maxFetch+1))
	if err == nil && n > maxFetch {
		err = fmt.Errorf("more than %d bytes", int64(maxFetch))
	}
	if err == nil {
		err = out.Chmod(mode)
	}
	return errors.Join(err, out.Close())
}

// extract unpacks name next to itself if its name is that of an archive.
func (f *fetcher) extract(ctx context.Context, name string) error {
	var open func(io.Reader) (io.Reader, error)
	switch {
	case hasSuffix(name, ".tar.gz", ".tgz"):
		open = func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }
	case hasSuffix(name, ".tar.bz2", ".tbz2"):
		open = func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }
	case hasSuffix(name, ".tar"):
		open = func(r io.Reader) (io.Reader, error) { return r, nil }
	case hasSuffix(name, ".zip"):
		return f.unzip(ctx, name)
	case hasSuffix(name, ".gz"):
		return f.gunzip(name)
	case hasSuffix(name, ".tar.xz", ".txz"):
		return errors.New("local Mesos cannot unpack xz archives: use .tar.gz, or extract: false")
	default:
		return nil
	}
	in, err := f.root.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	r, err := open(in)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	if err := f.untar(ctx, r); err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	return nil
}

func hasSuffix(name string, suffixes ...string) bool {
	for _, s := range suffixes {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return false
}

func (f *fetcher) untar(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(io.LimitReader(r, maxFetch))
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			if n == 0 {
				return errors.New("empty or no archive")
			}
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Clean(h.Name)
		if name == "." {
			continue
		}
		if !filepath.IsLocal(name) {
			return fmt.Errorf("entry %q leaves the sandbox", h.Name)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = f.root.MkdirAll(name, 0o755)
		case tar.TypeReg:
			err = f.write(name, tr, h.FileInfo().Mode().Perm())
		case tar.TypeSymlink:
			err = f.link(name, func() error { return f.root.Symlink(h.Linkname, name) })
		case tar.TypeLink:
			err = f.link(name, func() error { return f.root.Link(filepath.Clean(h.Linkname), name) })
		default:
			err = fmt.Errorf("entry %q is neither file, directory nor link", h.Name)
		}
		if err != nil {
			return err
		}
	}
}

// link makes a link in the place of what is there. A symbolic link may point
// anywhere: nothing of the agent follows one out of the sandbox.
func (f *fetcher) link(name string, make func() error) error {
	if err := f.root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	_ = f.root.Remove(name)
	return make()
}

func (f *fetcher) unzip(ctx context.Context, name string) error {
	in, err := f.root.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	zr, err := zip.NewReader(in, st.Size())
	if err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	for _, e := range zr.File {
		if err := ctx.Err(); err != nil {
			return err
		}
		entry := filepath.Clean(e.Name)
		if !filepath.IsLocal(entry) {
			return fmt.Errorf("unpack %s: entry %q leaves the sandbox", name, e.Name)
		}
		if e.FileInfo().IsDir() {
			err = f.root.MkdirAll(entry, 0o755)
		} else {
			err = f.unzipFile(e, entry)
		}
		if err != nil {
			return fmt.Errorf("unpack %s: %w", name, err)
		}
	}
	return nil
}

func (f *fetcher) unzipFile(e *zip.File, name string) error {
	in, err := e.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	mode := e.Mode().Perm()
	if mode == 0 {
		mode = 0o644
	}
	return f.write(name, in, mode)
}

// gunzip writes NAME without .gz and keeps the archive.
func (f *fetcher) gunzip(name string) error {
	in, err := f.root.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	r, err := gzip.NewReader(in)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	return f.write(strings.TrimSuffix(name, ".gz"), r, 0o644)
}
