package nginx

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
)

//go:embed templates/*.tmpl
var templateFiles embed.FS

//go:embed lua/*.lua
var luaFiles embed.FS

var templates = template.Must(template.ParseFS(templateFiles, "templates/*.tmpl"))

// luaSources are the files of the Lua Frame beside its configuration.
var luaSources = []string{"cutover.lua", "control.lua"}

// frameData is what the templates of both Frames read. All strings are checked by Options.normal or made here, so none
// needs quoting.
type frameData struct {
	Lua        bool
	Frame      string // digest
	Tree       string // directory of the Frame
	Apps       string
	Epoch      string // file
	Run        string
	Source     string
	Listen     []netip.AddrPort
	DictMiB    int
	Generation uint64
	Socket     string // of the generation
	Routes     []routeData
}

func newFrameData(o Options) frameData {
	d := frameData{Apps: (paths{o.Dir}).apps(), Epoch: (paths{o.Dir}).epoch(), Run: (paths{o.Dir}).run(), Listen: o.Listen, DictMiB: o.DictMiB}
	if o.SourceAddress.IsValid() {
		d.Source = o.SourceAddress.String()
	}
	return d
}

func render(name string, d frameData) ([]byte, error) {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, d); err != nil {
		return nil, fmt.Errorf("render %s: %w", name, err)
	}
	return b.Bytes(), nil
}

// luaFrame renders the Frame of the Lua driver: the name of its directory (its digest) and its files.
func luaFrame(o Options) (digest string, files map[string][]byte, err error) {
	d := newFrameData(o)
	d.Lua = true
	conf, err := render("frame-lua.conf.tmpl", d)
	if err != nil {
		return "", nil, err
	}
	h := sha256.New()
	h.Write(conf)
	files = make(map[string][]byte)
	for _, name := range luaSources {
		text, err := luaFiles.ReadFile("lua/" + name)
		if err != nil {
			return "", nil, err
		}
		fmt.Fprintf(h, "%s %d\n", name, len(text))
		h.Write(text)
		files[name] = text
	}
	// The digest names the directory, and is in the files only after it was taken.
	digest = hex.EncodeToString(h.Sum(nil))[:16]
	d.Frame, d.Tree = digest, filepath.Join((paths{o.Dir}).frames(), digest)
	files["cutover.conf"], err = render("frame-lua.conf.tmpl", d)
	return digest, files, err
}

// ExampleBase says what an example of an owner's base configuration should hold.
type ExampleBase struct {
	// Lua loads the http-lua module and what it needs.
	Lua bool
	// Binary is asked where its modules are; default "nginx".
	Binary string
	// Workers is the number of worker processes; default 2, negative: one for each CPU.
	Workers int
	// PIDFile, ErrorLog and TempDir are absolute, or relative to the prefix that nginx is started with. TempDir is where
	// bodies go that do not fit into memory; it exists, and default is the prefix itself. ErrorLog "stderr" is standard error.
	PIDFile  string
	ErrorLog string
	TempDir  string
}

var modulesPath = regexp.MustCompile(`--modules-path=(\S+)`)

// RenderExampleBase renders a base configuration that fulfils the contract, for "cutover dev", tests and owners who start
// from nothing.
func RenderExampleBase(e ExampleBase) ([]byte, error) {
	if e.Binary == "" {
		e.Binary = "nginx"
	}
	if e.Workers == 0 {
		e.Workers = 2
	}
	if e.PIDFile == "" {
		e.PIDFile = "nginx.pid"
	}
	if e.ErrorLog == "" {
		e.ErrorLog = "error.log"
	}
	if e.TempDir != "" {
		e.TempDir = strings.TrimRight(e.TempDir, "/") + "/"
	}
	data := struct {
		ExampleBase
		Modules []string
	}{ExampleBase: e}
	if e.Lua {
		out, err := exec.Command(e.Binary, "-V").CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("%s -V: %w: %s (is nginx installed?)", e.Binary, err, out)
		}
		m := modulesPath.FindSubmatch(out)
		if m == nil {
			return nil, fmt.Errorf("%s -V does not say its --modules-path", e.Binary)
		}
		// Absolute: nginx would look for a relative one below the prefix that it is started with.
		for _, name := range []string{"ndk_http_module.so", "ngx_http_lua_module.so"} {
			file := filepath.Join(string(m[1]), name)
			if _, err := os.Stat(file); err != nil {
				return nil, fmt.Errorf("nginx's Lua module: %w (on Debian: apt install libnginx-mod-http-lua libluajit2-5.1-2)", err)
			}
			data.Modules = append(data.Modules, file)
		}
	}
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, "base.conf.tmpl", data); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
