package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// requestTimeout bounds a Request whose upstream's health names no timeout.
const requestTimeout = 5 * time.Second

// Request sends a GET of the upstream's health path through the running worker, by HAProxy's listener for the agent, to
// exactly the named server of the App's own backend. The worker adds a header with the server's name to what a server
// answered and to nothing else; so a status with the right name is the upstream's own and passes, whatever it is.
//
// Where health is TCP or none the connect is what counts: an answer that HAProxy could not understand (502) or did not
// get in time (504) comes after a connect, while a connect that failed is 503.
func (d *Driver) Request(ctx context.Context, app, name, host string) error {
	at, server, err := d.locate(ctx, app, name)
	if err != nil {
		return fmt.Errorf("request to %s of %s: %w", name, app, err)
	}
	health, known := d.healthOf(app)[name]
	if !known {
		return fmt.Errorf("request to %s of %s: its health path is not known: Converge or Publish the Section first", name, app)
	}
	path, timeout := "/", health.Timeout
	if health.Kind == driver.HealthHTTP {
		path = health.Path
	}
	if timeout <= 0 {
		timeout = requestTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout+requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://cutover"+path, nil)
	if err != nil {
		return fmt.Errorf("request to %s of %s: %w", name, app, err)
	}
	if host != "" && host != "*" {
		req.Host = host
	} else {
		req.Host = "localhost"
	}
	req.Header.Set("User-Agent", "cutover-lbagent")
	req.Header.Set("X-Cutover-Backend", at.backend())
	req.Header.Set("X-Cutover-Server", server)
	req.Header.Set("X-Cutover-Timeout", strconv.FormatInt(timeout.Milliseconds(), 10))
	transport := d.agentTransport()
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("request to %s of %s: %w: %w", name, app, driver.ErrProxyDown, err)
		}
		return fmt.Errorf("request to %s of %s through haproxy: %w", name, app, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
	want := at.backend() + "/" + server
	switch by := resp.Header.Get("X-Cutover-Upstream"); {
	case by == want:
		return nil
	case by != "":
		return fmt.Errorf("request to %s of %s: haproxy sent it to %s, because it does not route to %s", name, app, by, want)
	case health.Kind != driver.HealthHTTP && (resp.StatusCode == http.StatusBadGateway || resp.StatusCode == http.StatusGatewayTimeout):
		return nil
	default:
		return fmt.Errorf("request to %s of %s: haproxy itself answered %s: it could not reach the upstream", name, app, resp.Status)
	}
}

// locate finds the upstream's current server in the running worker.
func (d *Driver) locate(ctx context.Context, app, name string) (slot, string, error) {
	held := d.tree.slotsOf(app)
	if len(held) == 0 {
		return slot{}, "", fmt.Errorf("haproxy holds nothing of App %s", app)
	}
	var slots []slot
	for _, s := range held {
		slots = append(slots, s)
	}
	slices.SortFunc(slots, slot.compare)
	obs, err := d.observe(ctx, slots)
	if err != nil {
		return slot{}, "", err
	}
	var (
		best     slot
		server   string
		bestLife int
	)
	for s, rows := range obs.servers {
		for _, row := range rows {
			if n, life := row.upstream(); n == name && row.mode() != 0 && life > bestLife {
				best, server, bestLife = s, row.name, life
			}
		}
	}
	if server == "" {
		return slot{}, "", errors.New("haproxy has no such server")
	}
	return best, server, nil
}

// Cut closes the sessions of a draining upstream in the current worker and in those that are leaving.
func (d *Driver) Cut(ctx context.Context, app, name string) error {
	held := d.tree.slotsOf(app)
	slots := make([]slot, 0, len(held))
	for _, s := range held {
		slots = append(slots, s)
	}
	obs, err := d.observe(ctx, slots)
	if err != nil {
		return fmt.Errorf("cut %s of %s: %w", name, app, err)
	}
	for s, rows := range obs.servers {
		for _, row := range rows {
			n, _ := row.upstream()
			switch {
			case n != name || row.mode() == 0:
			case row.mode() != driver.Draining:
				return fmt.Errorf("cut %s of %s: it is %s, and only a draining upstream is cut", name, app, row.mode())
			default:
				err := d.command(ctx, obs.info.pid, []string{fmt.Sprintf("shutdown sessions server %s/%s", s.backend(), row.name)})
				if err != nil {
					return fmt.Errorf("cut %s of %s: %w", name, app, err)
				}
			}
		}
		// A leaving worker may know the upstream by another life's name.
		for _, pid := range obs.procs.leaving {
			if err := d.cutLeaving(ctx, pid, s, name); err != nil {
				return fmt.Errorf("cut %s of %s: %w", name, app, err)
			}
		}
	}
	d.cutNow(app, name)
	return nil
}

// cutLeaving closes the upstream's sessions in a leaving worker one by one: there the backend counts as disabled, and
// "shutdown sessions server" is refused.
func (d *Driver) cutLeaving(ctx context.Context, pid int, at slot, name string) error {
	answers, err := d.master.ask(ctx, fmt.Sprintf("@!%d show sess", pid))
	if err != nil {
		return err
	}
	for _, session := range parseSessions(answers[0]) {
		if n, _, _ := strings.Cut(session.server, ":"); session.backend != at.backend() || n != name {
			continue
		}
		// One that has ended meanwhile is refused, which is as good.
		if _, err := d.master.ask(ctx, fmt.Sprintf("@!%d shutdown session %s", pid, session.id)); err != nil {
			return err
		}
	}
	return nil
}

func mentions(text, word string) bool { return strings.Contains(strings.ToLower(text), word) }
