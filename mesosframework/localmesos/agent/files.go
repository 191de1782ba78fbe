package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"github.com/cutover/cutover/mesosframework/localmesos/reply"
	"github.com/cutover/cutover/mesosframework/localmesos/wire"
)

// maxRead is what one /files/read gives at most: 16 pages.
const maxRead = 16 * 4096

// errNoFile says that a path names nothing that a client may see.
var errNoFile = errors.New("no such file")

// place is a path inside a sandbox. Everything is opened through root, so that
// no name and no symbolic link leads out of the sandbox.
type place struct {
	root *os.Root
	name string // relative to root, "." for the sandbox itself
}

// find resolves a virtual path (/frameworks/F/executors/E/runs/RUN/...) or the
// real path of a sandbox. The caller closes root.
func (a *Agent) find(p string) (place, error) {
	id := a.idNow()
	if id == "" || !path.IsAbs(p) {
		return place{}, errNoFile
	}
	base := filepath.Join(a.workDir(), "slaves", id)
	rel := strings.TrimPrefix(path.Clean(p), "/")
	if real, err := filepath.Rel(base, path.Clean(p)); err == nil && filepath.IsLocal(real) {
		rel = real
	}
	parts := strings.Split(rel, "/")
	if len(parts) < 6 || parts[0] != "frameworks" || parts[2] != "executors" || parts[4] != "runs" {
		return place{}, errNoFile
	}
	for _, part := range parts {
		if part == ".." || part == "." || part == "" {
			return place{}, errNoFile
		}
	}
	runs := filepath.Join(append([]string{base}, parts[:5]...)...)
	run := parts[5]
	if run == "latest" {
		target, err := os.Readlink(filepath.Join(runs, "latest"))
		if err != nil || strings.Contains(target, "/") {
			return place{}, errNoFile
		}
		run = target
	}
	root, err := os.OpenRoot(filepath.Join(runs, run))
	if err != nil {
		return place{}, errNoFile
	}
	name := "."
	if len(parts) > 6 {
		name = filepath.Join(parts[6:]...)
	}
	return place{root, name}, nil
}

// fileInfo is one row of /files/browse.
type fileInfo struct {
	GID   string  `json:"gid"`
	Mode  string  `json:"mode"`
	MTime float64 `json:"mtime"`
	NLink uint64  `json:"nlink"`
	Path  string  `json:"path"`
	Size  int64   `json:"size"`
	UID   string  `json:"uid"`

	bits uint32
}

// list returns the entries of a directory, [] for a file, sorted by path.
func (a *Agent) list(p string) ([]fileInfo, error) {
	at, err := a.find(p)
	if err != nil {
		return nil, err
	}
	defer at.root.Close()
	f, err := at.root.Open(at.name)
	if err != nil {
		return nil, errNoFile
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, errNoFile
	}
	out := []fileInfo{}
	if !st.IsDir() {
		return out, nil
	}
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p, err)
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			continue // gone meanwhile
		}
		row := fileInfo{Mode: modeText(st.Mode()), MTime: float64(st.ModTime().Unix()), Path: path.Join(p, e.Name()), Size: st.Size()}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			row.NLink, row.bits = uint64(sys.Nlink), sys.Mode //nolint:unconvert // 32 bits on arm64
			row.UID, row.GID = owner(sys.Uid, sys.Gid)
		}
		out = append(out, row)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out, nil
}

func owner(uid, gid uint32) (string, string) {
	u, g := strconv.Itoa(int(uid)), strconv.Itoa(int(gid))
	if who, err := user.LookupId(u); err == nil {
		u = who.Username
	}
	if which, err := user.LookupGroupId(g); err == nil {
		g = which.Name
	}
	return u, g
}

// modeText is the ls form, such as "-rw-r--r--" or "drwxr-xr-x".
func modeText(m fs.FileMode) string {
	kind := byte('-')
	switch {
	case m.IsDir():
		kind = 'd'
	case m&fs.ModeSymlink != 0:
		kind = 'l'
	case m&fs.ModeNamedPipe != 0:
		kind = 'p'
	case m&fs.ModeSocket != 0:
		kind = 's'
	}
	return string(kind) + m.Perm().String()[1:]
}

// readError is a refused read: a status and a text.
type readError struct {
	status int
	text   string
}

func (e *readError) Error() string { return e.text }

// read returns up to length bytes from offset, and the file's size. A negative
// length means to the end; never more than maxRead.
func (a *Agent) read(p string, offset, length int64) (data []byte, size int64, err error) {
	at, err := a.find(p)
	if err != nil {
		return nil, 0, err
	}
	defer at.root.Close()
	st, err := at.root.Stat(at.name)
	if err != nil {
		return nil, 0, errNoFile
	}
	if st.IsDir() {
		return nil, 0, &readError{http.StatusBadRequest, "Cannot read a directory.\n"}
	}
	if !st.Mode().IsRegular() { // a pipe would block for ever
		return nil, 0, errNoFile
	}
	size = st.Size()
	if offset < 0 || offset >= size {
		return nil, size, nil
	}
	if length < 0 || length > maxRead {
		length = maxRead
	}
	f, err := at.root.Open(at.name)
	if err != nil {
		return nil, 0, errNoFile
	}
	defer f.Close()
	data = make([]byte, min(length, size-offset))
	n, err := f.ReadAt(data, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("read %s: %w", p, err)
	}
	return data[:n], size, nil
}

func (a *Agent) serveBrowse(w http.ResponseWriter, r *http.Request) {
	p := r.URL.Query().Get("path")
	if p == "" {
		reply.Text(w, http.StatusBadRequest, "Expecting 'path=value' in query.\n")
		return
	}
	rows, err := a.list(p)
	if err != nil {
		fileError(w, err)
		return
	}
	reply.JSON(w, r, rows)
}

func fileError(w http.ResponseWriter, err error) {
	var re *readError
	switch {
	case errors.As(err, &re):
		reply.Text(w, re.status, "%s", re.text)
	case errors.Is(err, errNoFile):
		reply.Text(w, http.StatusNotFound, "")
	default:
		reply.Text(w, http.StatusInternalServerError, "%s", err.Error()+"\n")
	}
}

func (a *Agent) serveRead(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	p := q.Get("path")
	if p == "" {
		reply.Text(w, http.StatusBadRequest, "Expecting 'path=value' in query.\n")
		return
	}
	number := func(name string) (int64, bool) {
		text := q.Get(name)
		if text == "" {
			return -1, true
		}
		v, err := strconv.ParseInt(text, 10, 64)
		switch {
		case err != nil:
			reply.Text(w, http.StatusBadRequest, "Failed to parse %s: Failed to convert '%s' to number.\n", name, text)
		case v < -1:
			reply.Text(w, http.StatusBadRequest, "Negative %s provided: %d.\n", name, v)
		default:
			return v, true
		}
		return 0, false
	}
	offset, ok := number("offset")
	if !ok {
		return
	}
	length, ok := number("length")
	if !ok {
		return
	}
	data, size, err := a.read(p, offset, length)
	if err != nil {
		fileError(w, err)
		return
	}
	if offset < 0 {
		offset = size
	}
	reply.Bytes(w, wire.JSON, readBody(data, offset))
}

// readBody is {"data":...,"offset":...} with the bytes as they are in the file,
// valid UTF-8 or not: that is what Mesos does, and clients page on bytes.
func readBody(data []byte, offset int64) []byte {
	b := []byte(`{"data":"`)
	for _, c := range data {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c < 0x20 || c == 0x7f:
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			b = append(b, c)
		}
	}
	return fmt.Appendf(b, `","offset":%d}`, offset)
}

func (a *Agent) serveDownload(w http.ResponseWriter, r *http.Request) {
	p := r.URL.Query().Get("path")
	if p == "" {
		reply.Text(w, http.StatusBadRequest, "Expecting 'path=value' in query.\n")
		return
	}
	at, err := a.find(p)
	if err != nil {
		reply.NotFound(w, r)
		return
	}
	defer at.root.Close()
	st, err := at.root.Stat(at.name)
	switch {
	case err != nil:
		reply.NotFound(w, r)
		return
	case st.IsDir():
		reply.Text(w, http.StatusBadRequest, "Cannot download a directory.\n")
		return
	case !st.Mode().IsRegular():
		reply.NotFound(w, r)
		return
	}
	f, err := at.root.Open(at.name)
	if err != nil {
		reply.NotFound(w, r)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", "attachment; filename="+path.Base(p))
	w.Header().Set("Content-Length", strconv.FormatInt(st.Size(), 10))
	_, _ = io.CopyN(w, f, st.Size())
}
