package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// streamWriteTimeout is how long one event may take to leave: a reader that hangs must not hold its stream for ever.
const streamWriteTimeout = 10 * time.Second

// eventTypeEnd is the last event of a Deploy.
const eventTypeEnd = "end"

type eventsInput struct {
	DeployPath
	After       uint64 `query:"after" doc:"sequence number of the last event that the reader has; Last-Event-ID goes before it"`
	LastEventID string `header:"Last-Event-ID" maxLength:"20" doc:"as a browser sends it when it comes back"`
}

func (in *eventsInput) after() (uint64, error) {
	if in.LastEventID == "" {
		return in.After, nil
	}
	n, err := strconv.ParseUint(in.LastEventID, 10, 64)
	if err != nil {
		return 0, wire.FromRefusal(&deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: "the request is not valid",
			Problems: []deploy.Problem{{Field: "Last-Event-ID", Reason: "expected the sequence number of an event"}}})
	}
	return n, nil
}

func (h *Handler) registerEvents(api huma.API) {
	op := get(api, "/v1/deploys/{id}/events", "followDeploy", "Deploys", "Follow a Deploy",
		"Server-sent events: those after the given number, then live ones. `id` is the sequence number, `event` the type, `data` one Event. "+
			"A comment is sent at least every 10 s. The stream ends after the event of type `end`; a stream that ends before it (a restart of the orchestrator, a slow reader) "+
			"is taken up again with Last-Event-ID, and loses and doubles nothing.")
	op.Responses["200"] = &huma.Response{Description: "The events", Content: map[string]*huma.MediaType{
		"text/event-stream": {Schema: api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[deploy.Event](), true, "")},
	}}
	huma.Register(api, op, func(ctx context.Context, in *eventsInput) (*huma.StreamResponse, error) {
		after, err := in.after()
		if err != nil {
			return nil, err
		}
		select {
		case h.streams <- struct{}{}:
		default:
			return nil, wire.NewProblem(deploy.RefusedUnavailable, 0,
				fmt.Sprintf("%d event streams are open, which is the limit; ask for the Deploy itself, or come back later", h.opts.MaxStreams))
		}
		ctx, cancel := context.WithCancel(ctx)
		events, err := h.service(ctx).Events(ctx, in.ID, after)
		if err != nil {
			cancel()
			<-h.streams
			return nil, h.failure(ctx, "following the Deploy", err)
		}
		return &huma.StreamResponse{Body: func(c huma.Context) {
			defer func() {
				cancel()
				<-h.streams
			}()
			h.metrics.streams.Inc()
			defer h.metrics.streams.Dec()
			c.SetHeader("Content-Type", "text/event-stream")
			c.SetHeader("Cache-Control", "no-store")
			c.SetHeader("X-Accel-Buffering", "no")
			c.SetStatus(http.StatusOK)
			h.stream(ctx, newEventWriter(c.BodyWriter().(http.ResponseWriter)), events)
		}}, nil
	})
}

// stream writes events until the last one, or until the reader, the Service or the server is gone. Its return ends the connection;
// the reader decides from the last event that it has whether to come back.
func (h *Handler) stream(ctx context.Context, w *eventWriter, events <-chan deploy.Event) {
	if w.comment("cutover") != nil {
		return
	}
	beat := time.NewTicker(h.opts.Heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.closing:
			_ = w.comment("the orchestrator ends; come back with the last id")
			return
		case <-beat.C:
			if w.comment("still here") != nil {
				return
			}
		case e, ok := <-events:
			if !ok {
				return
			}
			if w.event(wire.CompleteEvent(e)) != nil {
				return
			}
			h.metrics.events.Inc()
			beat.Reset(h.opts.Heartbeat)
			if e.Type == eventTypeEnd {
				return
			}
		}
	}
}

// eventWriter writes one server-sent event at a time, each with a deadline of its own.
type eventWriter struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func newEventWriter(w http.ResponseWriter) *eventWriter {
	rc := http.NewResponseController(w)
	// The server's deadline for reading a request would end the stream's context; a recorder of a test has none.
	_ = rc.SetReadDeadline(time.Time{})
	return &eventWriter{w: w, rc: rc}
}

func (w *eventWriter) comment(text string) error { return w.write(": " + text + "\n\n") }

func (w *eventWriter) event(e deploy.Event) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("api: encoding event %d of %s: %w", e.Seq, e.Deploy, err)
	}
	return w.write(fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", e.Seq, e.Type, data))
}

func (w *eventWriter) write(s string) error {
	_ = w.rc.SetWriteDeadline(time.Now().Add(streamWriteTimeout))
	if _, err := w.w.Write([]byte(s)); err != nil {
		return err
	}
	return w.rc.Flush()
}
