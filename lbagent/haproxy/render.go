package haproxy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// frameVersion is part of the Frame's mark: raise it when rendered text changes in a way that a running worker must load.
const frameVersion = 1

// frontendPrefix begins the names of the Group's frontends.
const frontendPrefix = "cutover_fe_"

// renderFrame renders 00-frame.cfg and its mark. The mark is set in the worker that loaded the file and read back from
// it: it says which Frame runs, whatever any exit code said.
func renderFrame(o Options) (text []byte, mark string) {
	var b bytes.Buffer
	routes, warm := o.mapFile(routesMap), o.mapFile(warmMap)
	for _, f := range o.Frontends {
		fmt.Fprintf(&b, "frontend %s\n    mode http\n", f.inHAProxy())
		for _, bind := range f.Binds {
			fmt.Fprintf(&b, "    bind %s\n", bindAddress(bind))
		}
		// Who may see the mark is who knows it: it is a hash of this very file, which only we and HAProxy can read.
		b.WriteString(`    http-request return status 200 content-type text/plain lf-string "%pid %[var(proc.cutover_frame)]\n" if { path /.well-known/cutover-frame } { req.hdr(x-cutover-frame),strcmp(proc.cutover_frame) eq 0 }
    http-request set-var(txn.cutover_path) path
`)
		fmt.Fprintf(&b, "    http-request set-var(txn.cutover_route) req.hdr(host),host_only,lower,concat(|,txn.cutover_path,/),map_beg(%s)\n", routes)
		fmt.Fprintf(&b, "    http-request set-var(txn.cutover_route) str(*|),concat(,txn.cutover_path,/),map_beg(%s) unless { var(txn.cutover_route) -m found }\n", routes)
		b.WriteString(`    http-request return status 404 content-type text/plain string "No App has a route here.\n" unless { var(txn.cutover_route) -m found }
    http-request set-var(txn.cutover_strip) var(txn.cutover_route),field(2,:)
`)
		for n := 1; n <= maxStrip; n++ {
			fmt.Fprintf(&b, "    http-request set-path /%%[path,field(%d,/,0)] if { var(txn.cutover_strip) -m str %d }\n", n+2, n)
		}
		// A set whose upstreams are checked in two ways lives in two backends: the next one serves while those before it
		// have no usable server (NEVER-ZERO).
		for n := 1; n < len(classes); n++ {
			cond := fmt.Sprintf("{ var(txn.cutover_route),field(%d,:) -m len gt 0 }", n+3)
			for k := range n {
				field := 1
				if k > 0 {
					field = k + 3
				}
				cond += fmt.Sprintf(" { var(txn.cutover_route),field(%d,:),nbsrv eq 0 }", field)
			}
			cond += fmt.Sprintf(" { var(txn.cutover_route),field(%d,:),nbsrv gt 0 }", n+3)
			fmt.Fprintf(&b, "    use_backend %%[var(txn.cutover_route),field(%d,:)] if %s\n", n+3, cond)
		}
		b.WriteString("    use_backend %[var(txn.cutover_route),field(1,:)]\n")
	}
	// The agent's own way in: a request to exactly one server through the worker that serves the clients. Headers that
	// start with x-cutover- end here. http-response rules run only for what an upstream answered, never for HAProxy's own
	// errors: so the header x-cutover-upstream proves whose status it is.
	fmt.Fprintf(&b, `frontend cutover_agent
    mode http
    no log
    bind unix@%s mode 600
    timeout client 60s
    http-request return status 200 content-type text/plain lf-string "%%pid %%[var(proc.cutover_frame)]\n" unless { req.hdr(x-cutover-backend) -m found }
    http-request set-var(txn.cutover_backend) req.hdr(x-cutover-backend)
    http-request set-var(txn.cutover_server) req.hdr(x-cutover-server)
    http-request set-var(txn.cutover_timeout) req.hdr(x-cutover-timeout)
    http-request set-var(txn.cutover_warm) req.hdr(x-cutover-server),map(%s,0)
    http-request del-header x-cutover- -m beg
    http-response set-header x-cutover-upstream %%b/%%s
    use_backend %%[var(txn.cutover_backend)]
`, o.agentSocket(), warm)
	sum := sha256.Sum256(fmt.Appendf(b.Bytes(), "frame %d\n", frameVersion))
	mark = hex.EncodeToString(sum[:16])
	head := fmt.Sprintf("# The Frame of Cutover: written by lbagent, overwritten without asking.\nglobal\n    set-var proc.cutover_frame str(%s)\n", mark)
	return append([]byte(head), b.Bytes()...), mark
}

func bindAddress(a netip.AddrPort) string {
	if a.Addr().Is6() {
		return fmt.Sprintf("ipv6@%s:%d", a.Addr(), a.Port())
	}
	return fmt.Sprintf("ipv4@%s", a)
}

// published is what a slot's file says: the upstreams that HAProxy loads when it starts. It never holds Warm ones.
type published struct {
	App       string
	Upstreams []driver.Upstream
}

const (
	slotHeader     = "# cutover slot 1 "
	upstreamHeader = "# cutover upstream "
)

// plainHealthPath is a health path that can be an argument of a converter without quoting.
var plainHealthPath = regexp.MustCompile(`^/[A-Za-z0-9/._~-]*$`)

// commonHealthPath is the path that the slot's file names as the default of its health map: that of the first upstream,
// so that a Section whose upstreams all have one path needs no entry in health.map on disk.
func commonHealthPath(ups []driver.Upstream) string {
	for _, u := range ups {
		if u.Health.Kind == driver.HealthHTTP && plainHealthPath.MatchString(u.Health.Path) {
			return u.Health.Path
		}
	}
	return "/"
}

// slotHead is what the first line of a slot's file says. A file that was cut off between two upstreams is told from a whole
// one by their number.
type slotHead struct {
	App string `json:"app"`
	// Upstreams is 0 where an earlier version wrote the file.
	Upstreams int `json:"upstreams,omitempty"`
}

// renderSlot renders the file of a slot: the generic backend of its class, and the published upstreams. The comments
// hold all that was asked for, so the file alone says what is published: parseSlotFile is the inverse.
func renderSlot(o Options, s slot, p published) []byte {
	c := classNamed(s.class)
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s%s\nbackend %s\n    mode http\n    balance roundrobin\n", slotHeader, mustJSON(slotHead{p.App, len(p.Upstreams)}), s.backend())
	if c.http {
		fmt.Fprintf(&b, "    option httpchk\n    http-check send meth GET uri-lf %%[srv_name,map(%s,%s)] ver HTTP/1.1 hdr Host localhost\n",
			o.mapFile(healthMap), commonHealthPath(p.Upstreams))
		fmt.Fprintf(&b, "    timeout check %dms\n", c.timeout.Milliseconds())
	}
	fmt.Fprintf(&b, `    http-request set-timeout server var(txn.cutover_timeout) if { var(txn.cutover_timeout) -m found }
    use-server %%[var(txn.cutover_server)] if { var(txn.cutover_server) -m found }
    load-server-state-from-file local
    server-state-file-name %s
`, o.stateFile())
	for _, u := range driver.SortedUpstreams(p.Upstreams) {
		weight := u.Weight
		if u.Mode == driver.Draining {
			weight = 0
		}
		fmt.Fprintf(&b, "%s%s\n    server %s %s weight %d%s\n", upstreamHeader, mustJSON(u), u.Name, u.Address, weight, checkWords(u.Health))
	}
	return b.Bytes()
}

// fastest bounds the pace of checks while an upstream is on its way up or down: green comes within Rise of these.
const fastest = 100 * time.Millisecond

// checkWords are the keywords of a server's check, with a blank before; none for HealthNone.
func checkWords(h driver.Health) string {
	if h.Kind == driver.HealthNone {
		return ""
	}
	fast := min(h.Interval, fastest).Milliseconds()
	return fmt.Sprintf(" check inter %d fastinter %d downinter %d rise %d fall %d", h.Interval.Milliseconds(), fast, fast, h.Rise, h.Fall)
}

// withoutChecks is the check of a HealthNone upstream while it is warm: a connect, so that green means that one worked.
func withoutChecks() driver.Health {
	return driver.Health{Kind: driver.HealthTCP, Interval: time.Second, Rise: 1, Fall: 1}
}

// parseSlotFile reads what renderSlot wrote. It trusts nothing but the comments, and the caller compares the bytes. With an
// error it returns what it could read.
func parseSlotFile(text []byte) (published, error) {
	var p published
	var head slotHead
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<16)
	first := true
	for lines.Scan() {
		line := lines.Text()
		if first {
			rest, ok := strings.CutPrefix(line, slotHeader)
			if !ok {
				return p, fmt.Errorf("the first line is not %q", slotHeader)
			}
			if err := json.Unmarshal([]byte(rest), &head); err != nil {
				return p, fmt.Errorf("first line: %w", err)
			}
			p.App, first = head.App, false
			continue
		}
		if rest, ok := strings.CutPrefix(line, upstreamHeader); ok {
			var u driver.Upstream
			if err := json.Unmarshal([]byte(rest), &u); err != nil {
				return p, fmt.Errorf("upstream: %w", err)
			}
			p.Upstreams = append(p.Upstreams, u)
		}
	}
	if err := lines.Err(); err != nil {
		return p, err
	}
	if first {
		return p, fmt.Errorf("the file is empty")
	}
	if n := len(p.Upstreams); head.Upstreams != 0 && n != head.Upstreams {
		return p, fmt.Errorf("%d upstreams of %d", n, head.Upstreams)
	}
	return p, nil
}

// mustJSON encodes values of our own types, which cannot fail.
func mustJSON(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("haproxy: encode %T: %v", v, err))
	}
	return text
}

// inHAProxy is the frontend's name there.
func (f Frontend) inHAProxy() string { return frontendPrefix + f.Name }
