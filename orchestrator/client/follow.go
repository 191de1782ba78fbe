package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// silence is how long a stream may say nothing before it counts as lost: the orchestrator sends something every 10 s.
const silence = 35 * time.Second

// Watcher is told what a Deploy does. Its methods are called one at a time, from Follow; each says whether to go on.
type Watcher interface {
	// Event is the next event. No number is left out or comes twice.
	Event(deploy.Event) (more bool)
	// View is the Deploy's state as asked for when the events alone do not say it: its events are over, or were not kept.
	View(deploy.View) (more bool)
}

// Follow tells w the events of a Deploy after the given number, until w has enough, the Deploy is at its end, ctx ends (then it
// returns ctx's error, joined with an *Unreachable if nobody answered just then), or the orchestrator refuses. A connection that breaks, or an orchestrator that is away, is no end: it
// comes back and goes on where it was.
func (c *Client) Follow(ctx context.Context, id string, after uint64, w Watcher) error {
	f := &following{client: c, id: id, last: after, watcher: w}
	for wait := newBackoff(); ; {
		last := f.last
		done, err := f.once(ctx)
		if err != nil && ctx.Err() == nil {
			f.broken = err
		}
		if f.last > last {
			wait.reset()
		}
		switch {
		case done:
			return nil
		case ctx.Err() != nil:
			return f.ended(ctx)
		case err != nil && !lost(err):
			return err
		case err != nil && !f.away:
			f.away = true
			c.opts.Note(fmt.Sprintf("%v; reconnecting (the Deploy goes on without this command)", err))
		}
		if !wait.sleep(ctx) {
			return f.ended(ctx)
		}
	}
}

// ended is what Follow returns when ctx ends: with the cause beside it if the orchestrator was away just then.
func (f *following) ended(ctx context.Context) error {
	if f.away {
		return errors.Join(ctx.Err(), f.broken)
	}
	return ctx.Err()
}

// lost reports whether an error is one of the connection, or of an orchestrator that is not ready or ends just now: worth coming
// back, since the Deploy goes on.
func lost(err error) bool {
	var unreachable *Unreachable
	var refusal *deploy.Refusal
	return errors.As(err, &unreachable) || passing(err) || errors.As(err, &refusal) && refusal.Kind == wire.KindInternal
}

type following struct {
	client  *Client
	id      string
	last    uint64 // number of the last event told
	watcher Watcher
	away    bool  // an outage was noted, and has not ended
	broken  error // the last error of a connection
}

// once follows over one connection. It returns true when the watcher has enough or the Deploy is at its end.
func (f *following) once(ctx context.Context) (done bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watchdog.Stop()

	r, err := f.client.request(ctx, http.MethodGet, "/v1/deploys/"+url.PathEscape(f.id)+"/events", nil, nil)
	if err != nil {
		return false, err
	}
	r.Header.Set("Accept", "text/event-stream")
	if f.last > 0 {
		r.Header.Set("Last-Event-ID", strconv.FormatUint(f.last, 10))
	}
	resp, err := f.client.send(r)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if f.away {
		f.away = false
		f.client.opts.Note("connected again")
	}

	told := false
	for frames := newFrameReader(resp.Body); ; {
		fr, err := frames.next()
		if errors.Is(err, io.EOF) {
			if told {
				return false, nil // a reader that was too slow, or a restart: go on after the last one
			}
			return f.ask(ctx)
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return false, &Unreachable{URL: f.client.URL(), Sent: true, Err: err}
		}
		watchdog.Reset(silence)
		if fr.Comment {
			continue
		}
		var e deploy.Event
		if err := json.Unmarshal(fr.Data, &e); err != nil {
			return false, fmt.Errorf("client: event %q of Deploy %s is not what this release understands: %w", fr.ID, f.id, err)
		}
		if e.Seq <= f.last {
			continue
		}
		f.last, told = e.Seq, true
		if !f.watcher.Event(e) || e.Type == "end" {
			return true, nil
		}
	}
}

// errSilent is why a stream is given up that says nothing.
var errSilent = errors.New("the stream has been silent for " + silence.String())

// ask asks for the Deploy itself, because a stream ended without saying anything new.
func (f *following) ask(ctx context.Context) (done bool, err error) {
	v, err := f.client.Deploy(ctx, f.id)
	if err != nil {
		return false, err
	}
	return !f.watcher.View(v), nil
}
