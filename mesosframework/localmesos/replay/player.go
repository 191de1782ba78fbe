package replay

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Target is the cluster under test.
type Target interface {
	// Address returns the host:port of "master", "agent-1", ...
	Address(to string) string
	// Act does what the outside does in an action line that is about agents
	// or sandboxes.
	Act(l Line) error
}

// Options say how a recording is played.
type Options struct {
	// Until ends the play after that line; 0 = to the end.
	Until int
	// Skip are lines that are not played and not compared.
	Skip func(n int) bool
	// Optional are events that need not come.
	Optional map[int]bool
	// Differs replaces the expectation of a line: differences on purpose.
	Differs map[int]string
	// InKind are lines whose answer counts in kind only: its status.
	InKind map[int]bool
	// Ignore are fields of answers that are not compared.
	Ignore []string
	// NotThere are requests for what the target has not: it must say so, with
	// 501 and a sentence.
	NotThere map[int]bool
	// OneStream closes the streams there are before another is opened, where
	// the recording does not say that its client did.
	OneStream bool
	// LooseOffers compares only which agent an offer is of, and lets offers
	// come in other portions: what is free at an allocation run depends on
	// how fast processes start and end.
	LooseOffers bool
	// Rewrite changes the body of each call before it is sent.
	Rewrite func(string) string
	// Slack is added to every deadline.
	Slack time.Duration
	// Logf tells what goes on.
	Logf func(format string, args ...any)
}

// player plays one recording.
type player struct {
	o       Options
	target  Target
	bind    Bindings
	conns   map[string]*conn
	answers map[int]*answer // by line of the call
	faults  []string

	prevMS  int       // recorded time of the line before
	prevAt  time.Time // when that line was done here
	causeMS int       // recorded time of the last call or action
	causeAt time.Time
	sent    string // the bodies of all calls
	slow    bool   // the cause takes a real Mesos time that means nothing
	streams []*conn
}

type answer struct {
	resp *http.Response
	body []byte
	err  error
}

// Play plays a recording against the target, with placeholders already bound,
// and returns every fault that it found.
func Play(lines []Line, target Target, bind Bindings, o Options) []string {
	now := time.Now()
	p := &player{o: o, target: target, bind: bind, conns: map[string]*conn{}, answers: map[int]*answer{}, prevAt: now, causeAt: now}
	defer p.close()
	for _, l := range lines {
		if (l.Dir == "call" || l.What == "RESCIND") && (o.Until == 0 || l.N <= o.Until) {
			b, _ := json.Marshal(l.Body)
			p.sent += unescape(b)
		}
	}
	for _, l := range causesFirst(lines) {
		if o.Until > 0 && l.N > o.Until {
			break
		}
		if l.Dir == "note" || o.Skip != nil && o.Skip(l.N) {
			continue
		}
		if d, ok := o.Differs[l.N]; ok {
			l.Body = nil
			if err := json.Unmarshal([]byte(d), &l.Body); err != nil {
				p.fault(l, "bad Differs: %v", err)
			}
		}
		p.line(l)
		if len(p.faults) > 0 {
			return p.faults // what follows would only be confused by it
		}
		p.prevMS, p.prevAt = l.TMS, time.Now()
	}
	p.leftovers()
	return p.faults
}

// causesFirst brings requests before the events that they caused: an event is
// recorded when it was read, a request when its answer was.
func causesFirst(lines []Line) []Line {
	const race = 30 // ms
	out := append([]Line(nil), lines...)
	for i := range out {
		if out[i].Dir != "http" || out[i].Request.Method != http.MethodPost {
			continue
		}
		for j := i; j > 0 && consequence(out[j-1]) && out[j].TMS-out[j-1].TMS <= race; j-- {
			out[j-1], out[j] = out[j], out[j-1]
		}
	}
	return out
}

// consequence reports whether a line is an event of a kind that operator
// requests cause.
func consequence(l Line) bool {
	switch l.What {
	case "EOF", "RESCIND", "UPDATE", "FAILURE":
		return l.Dir == "event"
	}
	return false
}

func (p *player) fault(l Line, format string, args ...any) {
	p.faults = append(p.faults, fmt.Sprintf("line %d (%s %s %s): %s", l.N, l.Dir, l.Conn, l.What, fmt.Sprintf(format, args...)))
}

func (p *player) line(l Line) {
	switch l.Dir {
	case "call":
		p.pace(l)
		p.call(l)
	case "http":
		p.pace(l)
		p.http(l)
	case "action":
		p.pace(l)
		p.act(l)
	case "response":
		a := p.answers[l.Re]
		if l.What == "SUBSCRIBE" {
			a = p.answers[-1]
		}
		if a == nil {
			p.fault(l, "there was no such call")
			return
		}
		p.compareAnswer(l, a)
	case "event":
		p.event(l)
	}
}

// pace waits as long as the recording did, if it was on purpose.
func (p *player) pace(l Line) {
	gap := time.Duration(l.TMS-p.prevMS) * time.Millisecond
	if gap > 50*time.Millisecond {
		time.Sleep(time.Until(p.prevAt.Add(gap)))
	}
	p.causeMS, p.causeAt, p.slow = l.TMS, time.Now(), l.What == "agent start"
}

// invent makes a value of the right kind for a placeholder of a request.
func invent(p string) string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	if strings.HasPrefix(p, "<uuid-") {
		return base64.StdEncoding.EncodeToString(b)
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (p *player) substitute(s string) string { return p.bind.Substitute(s, invent) }

// conn returns the connection of a name; ACKNOWLEDGE goes out on others.
func (p *player) conn(name string) *conn {
	c := p.conns[name]
	if c == nil {
		c = newConn(&http.Client{Transport: &http.Transport{DisableCompression: true, MaxConnsPerHost: 1}})
		p.conns[name] = c
	}
	return c
}

func (p *player) call(l Line) {
	body, _ := json.Marshal(l.Body)
	raw := unescape(body)
	if p.o.Rewrite != nil {
		raw = p.o.Rewrite(raw)
	}
	path := l.Path
	if path == "" {
		path = "/api/v1/scheduler"
	}
	payload, err := encodeCall(p.substitute(raw), l)
	if err != nil {
		p.fault(l, "%v", err)
		return
	}
	url := "http://" + p.target.Address("master") + path
	if l.What == "SUBSCRIBE" {
		p.subscribe(l, url, payload)
		return
	}
	c := p.conn(l.Conn)
	client := c.client
	if l.What == "ACKNOWLEDGE" {
		client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	}
	p.answers[l.N] = p.do(client, "POST", url, l.Headers, payload)
}

// unescape undoes the escapes of json.Marshal that would hide placeholders.
func unescape(b []byte) string {
	return strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(b))
}

func (p *player) do(client *http.Client, method, url string, headers map[string]string, body []byte) *answer {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return &answer{err: err}
	}
	for k, v := range headers {
		req.Header.Set(k, p.substitute(v))
	}
	noRedirect := *client
	noRedirect.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := noRedirect.Do(req)
	if err != nil {
		return &answer{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return &answer{resp: resp, body: b, err: err}
}

// subscribe opens a stream; its answer is compared when its line comes.
func (p *player) subscribe(l Line, url string, payload []byte) {
	if p.o.OneStream {
		for _, old := range p.streams {
			old.cancel()
			<-old.done
		}
		p.streams = nil
	}
	c := p.conn(l.Conn)
	if c.done != nil { // a new stream under the same name
		c = newConn(c.client)
		p.conns[l.Conn] = c
	}
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, "POST", url, bytes.NewReader(payload))
	if err != nil {
		cancel()
		p.fault(l, "%v", err)
		return
	}
	for k, v := range l.Headers {
		req.Header.Set(k, p.substitute(v))
	}
	transport := &http.Transport{DisableCompression: true, DisableKeepAlives: true, ResponseHeaderTimeout: 20 * time.Second}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		cancel()
		p.fault(l, "%v", err)
		return
	}
	a := &answer{resp: resp}
	p.answers[l.N], p.answers[-1] = a, a
	if resp.StatusCode != http.StatusOK {
		a.body, _ = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		cancel()
		return
	}
	c.response, c.cancel, c.done = resp, cancel, make(chan struct{})
	p.streams = append(p.streams, c)
	go c.read()
}

func (p *player) act(l Line) {
	if l.Conn != "" && strings.Contains(l.What, "closes subscription") {
		c := p.conn(l.Conn)
		c.cancel()
		<-c.done
		return
	}
	if err := p.target.Act(l); err != nil {
		p.fault(l, "%v", err)
	}
}

// compareAnswer compares status, headers and body of an answer.
func (p *player) compareAnswer(l Line, a *answer) {
	if a.err != nil {
		p.fault(l, "%v", a.err)
		return
	}
	if p.o.NotThere[l.N] {
		if a.resp.StatusCode != http.StatusNotImplemented || !strings.Contains(string(a.body), "does not implement") {
			p.fault(l, "status %d (%.100s), want 501 and a sentence", a.resp.StatusCode, a.body)
		}
		return
	}
	if a.resp.StatusCode != l.Status {
		p.fault(l, "status %d (%s), want %d", a.resp.StatusCode, a.body, l.Status)
		return
	}
	text, isText := l.Body.(string)
	if p.o.InKind[l.N] || strings.HasPrefix(text, "(") && strings.HasSuffix(text, ")") {
		return // "(omitted)", "(as GET)", "(4828 bytes)": not recorded
	}
	for k, want := range l.Headers {
		got := a.resp.Header.Get(k)
		switch k {
		case "Transfer-Encoding":
			got = strings.Join(a.resp.TransferEncoding, ",")
		case "Content-Length":
			if l.Body != nil && (!isText || strings.Contains(text, "<") || cxxText(text)) {
				continue // of a body that is compared as a document
			}
			got = strconv.FormatInt(a.resp.ContentLength, 10)
		}
		if !p.bind.matchString(want, got) {
			p.fault(l, "header %s: %q, want %q", k, got, want)
		}
	}
	switch {
	case l.Body == nil:
		if len(a.body) > 0 {
			p.fault(l, "body %q, want none", a.body)
		}
	case isText && cxxText(text):
		if !strings.HasPrefix(string(a.body), cxxPrefix) {
			p.fault(l, "body %q, want it to begin with %q", a.body, cxxPrefix)
		}
	case isText:
		if !p.bind.matchString(text, string(a.body)) {
			p.fault(l, "body %q, want %q", a.body, text)
		}
	default:
		if d := p.compareBody(l, a.body); d != "" {
			p.fault(l, "%s", d)
		}
	}
}

const cxxPrefix = "Failed to parse body into JSON: "

// cxxText reports whether a text is of the C++ parser, which counts in kind
// only.
func cxxText(s string) bool { return strings.HasPrefix(s, cxxPrefix) }

// leftovers are faults: something came that the recording has not.
func (p *player) leftovers() {
	time.Sleep(300 * time.Millisecond) // a stray event would come at once
	for _, c := range p.streams {
		c.mu.Lock()
		for _, e := range c.unused() {
			switch {
			case e.what == "HEARTBEAT", e.what == "OFFERS":
			case e.what == "RESCIND" && !p.named(e):
				// Of an offer that the recording has not: when offers come
				// counts in kind only.
			default:
				p.faults = append(p.faults, fmt.Sprintf("not in the recording: %s %s", e.what, text(e.body)))
			}
		}
		c.mu.Unlock()
	}
}

// named reports whether the offer of a RESCIND is one of the recording's.
func (p *player) named(e *event) bool {
	id := rescindedID(e.body)
	for _, v := range p.bind {
		if v == id {
			return true
		}
	}
	return false
}

func (p *player) close() {
	for _, c := range p.streams {
		c.cancel()
		<-c.done
	}
	for _, c := range p.conns {
		c.client.CloseIdleConnections()
	}
}
