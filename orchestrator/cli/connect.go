package cli

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// The dev cluster that is tried when nothing is said, and the file in which one tells its address.
const (
	defaultDataDir = ".cutover"
	devFile        = "dev.json"

	maxDevFileBytes = 1 << 20
)

// connection is where the orchestrator is, as flags say it.
type connection struct {
	api, token, dataDir, ca string
}

// addConnection gives a command the flags of a client. They are not on the root: for the daemons the same words mean other things.
func addConnection(cmd *cobra.Command) *connection {
	c := &connection{}
	f := cmd.Flags()
	f.StringVar(&c.api, "api", "", "`URL` of the orchestrator's API (CUTOVER_API)")
	f.StringVar(&c.token, "token", "", "`TOKEN` of the API (CUTOVER_TOKEN, which is not seen by other users of this machine)")
	f.StringVar(&c.ca, "ca", "", "`FILE` with the authority of an https API, PEM; empty: the system's (CUTOVER_CA)")
	f.StringVar(&c.dataDir, "data-dir", "", "`DIR` of a dev cluster (cutover dev); it tells both (CUTOVER_DATA_DIR)")
	return c
}

// given reports whether a flag names an orchestrator.
func (c *connection) given() bool { return c.api != "" || c.dataDir != "" }

// address is where to ask, and with which token.
type address struct{ url, token string }

// resolve finds the orchestrator: flags go before the environment, and both before the dev cluster in the working directory. A token
// out of a dev cluster's file is used for that cluster's address only, unless the directory was named.
func (c *connection) resolve(env func(string) string) (address, error) {
	found := address{url: first(c.api, env("CUTOVER_API")), token: first(c.token, env("CUTOVER_TOKEN"))}
	dir := first(c.dataDir, env("CUTOVER_DATA_DIR"))
	// A directory in a flag goes before an address in the environment.
	if c.dataDir != "" && c.api == "" {
		found.url = ""
		if c.token == "" {
			found.token = ""
		}
	}
	if found.url != "" && found.token != "" {
		return found, nil
	}
	named := dir != ""
	if !named {
		dir = defaultDataDir
	}
	dev, err := readDev(filepath.Join(dir, devFile))
	switch {
	case err == nil:
		if found.url == "" {
			found.url = dev.APIURL
		}
		if found.token == "" && (named || sameAddress(found.url, dev.APIURL)) {
			found.token = dev.Token
		}
	case found.url == "" && named:
		return address{}, &deploy.Refusal{Kind: deploy.RefusedUnavailable, Detail: fmt.Sprintf("no dev cluster in %s: %v; start one with: cutover dev --data-dir %s", dir, err, dir)}
	case found.url == "":
		return address{}, &deploy.Refusal{Kind: deploy.RefusedUnavailable,
			Detail: "no orchestrator is named: give --api and --token (CUTOVER_API, CUTOVER_TOKEN), or --data-dir of a dev cluster; cutover dev starts one here"}
	}
	return found, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func sameAddress(a, b string) bool { return strings.TrimRight(a, "/") == strings.TrimRight(b, "/") }

// dev is the part of a dev cluster's file that a client needs.
type dev struct {
	APIURL string `json:"api_url"`
	Token  string `json:"token"`
}

func readDev(path string) (dev, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return dev{}, fmt.Errorf("%s is not there", path)
	}
	if err != nil {
		return dev{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxDevFileBytes))
	if err != nil {
		return dev{}, fmt.Errorf("%s: %w", path, err)
	}
	var d dev
	if err := json.Unmarshal(data, &d); err != nil {
		return dev{}, fmt.Errorf("%s: %w", path, err)
	}
	if d.APIURL == "" {
		return dev{}, fmt.Errorf("%s names no api_url", path)
	}
	return d, nil
}

// client makes the Client of a command. The caller closes it.
func (a *app) client(c *connection) (*client.Client, error) {
	at, err := c.resolve(a.Env)
	if err != nil {
		return nil, err
	}
	if c.dataDir != "" {
		a.suffix = " --data-dir " + quote(c.dataDir)
	} else if c.api != "" {
		a.suffix = " --api " + quote(c.api)
	}
	if at.token != "" && inClear(at.url) {
		a.note("the token travels in clear to " + at.url + "; use https")
	}
	roots, err := readCA(first(c.ca, a.Env("CUTOVER_CA")))
	if err != nil {
		return nil, &usageError{err}
	}
	out, err := client.New(client.Options{
		URL: at.url, Token: at.token, UserAgent: "cutover/" + a.Version, RootCAs: roots,
		Note: func(text string) { a.note(text) },
	})
	if err != nil {
		return nil, &usageError{err}
	}
	return out, nil
}

// maxCABytes bounds a file of authorities.
const maxCABytes = 1 << 20

// readCA reads the authorities that an https API is verified by; nil means the system's.
func readCA(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("--ca: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCABytes))
	if err != nil {
		return nil, fmt.Errorf("--ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("--ca %s: no certificate in it", file)
	}
	return pool, nil
}

// inClear reports whether others can read what goes to an address.
func inClear(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" {
		return false
	}
	if u.Hostname() == "localhost" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return ip == nil || !ip.IsLoopback()
}

// quote makes a word that a shell reads as it is.
func quote(word string) string {
	plain := strings.IndexFunc(word, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@%+=,", r))
	}) < 0
	if plain && word != "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// completeApps offers the names of Apps, as far as the orchestrator tells them at once.
func (a *app) completeApps(c *connection) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		a.note = func(string) {}
		cl, err := a.client(c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer cl.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
		defer cancel()
		apps, err := cl.Apps(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names := make([]string, len(apps))
		for i, app := range apps {
			names[i] = app.Name
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
