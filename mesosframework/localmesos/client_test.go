package localmesos

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/mesosframework/localmesos/wire"
)

// waitFor bounds every wait of these tests; it is only reached by a fault.
const waitFor = time.Minute

// client is a small framework: protobuf, one subscription, acknowledges
// everything unless told not to.
type client struct {
	t      *testing.T
	base   string
	id     string // framework
	stream string
	cancel context.CancelFunc
	done   chan struct{}
	noAcks bool

	mu     sync.Mutex
	events []*scheduler.Event
	next   int
	wake   chan struct{}
}

// subscribe subscribes with an id, or without one when it is empty.
func subscribe(t *testing.T, base, id string) *client {
	t.Helper()
	c := &client{t: t, base: base, id: id, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	checkpoint, failover := true, 3600.0
	info := &mesos.FrameworkInfo{User: "root", Name: "test", Roles: []string{"*"}, Checkpoint: &checkpoint, FailoverTimeout: &failover,
		Capabilities: []mesos.FrameworkInfo_Capability{
			{Type: mesos.FrameworkInfo_Capability_MULTI_ROLE}, {Type: mesos.FrameworkInfo_Capability_PARTITION_AWARE},
			{Type: mesos.FrameworkInfo_Capability_TASK_KILLING_STATE},
		}}
	call := &scheduler.Call{Type: scheduler.Call_SUBSCRIBE, Subscribe: &scheduler.Call_Subscribe{FrameworkInfo: info}}
	if id != "" {
		info.ID = &mesos.FrameworkID{Value: id}
		call.FrameworkID = info.ID
	}
	body, err := call.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, "POST", base+"/api/v1/scheduler", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", wire.Protobuf)
	req.Header.Set("Accept", wire.Protobuf)
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("SUBSCRIBE: %s", resp.Status)
	}
	c.stream, c.cancel = resp.Header.Get("Mesos-Stream-Id"), cancel
	go c.read(resp.Body)
	t.Cleanup(c.close)
	if got := c.await("SUBSCRIBED", func(e *scheduler.Event) bool { return e.Type == scheduler.Event_SUBSCRIBED }); got != nil {
		c.id = got.Subscribed.FrameworkID.Value
	}
	return c
}

func (c *client) close() {
	c.cancel()
	<-c.done
}

func (c *client) read(body io.ReadCloser) {
	defer close(c.done)
	defer body.Close()
	r := bufio.NewReader(body)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		e := &scheduler.Event{}
		if err := wire.UnmarshalProto(b, e); err != nil {
			return
		}
		c.mu.Lock()
		c.events = append(c.events, e)
		c.mu.Unlock()
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// await goes through the events after the last one that was awaited.
func (c *client) await(what string, match func(*scheduler.Event) bool) *scheduler.Event {
	c.t.Helper()
	deadline := time.After(waitFor)
	for {
		c.mu.Lock()
		for c.next < len(c.events) {
			e := c.events[c.next]
			c.next++
			if e.Type == scheduler.Event_UPDATE && !c.noAcks && len(e.Update.Status.UUID) > 0 {
				c.mu.Unlock()
				c.ack(e.Update.Status)
				c.mu.Lock()
			}
			if match(e) {
				c.mu.Unlock()
				return e
			}
		}
		c.mu.Unlock()
		select {
		case <-c.wake:
		case <-deadline:
			c.t.Fatalf("%s did not come", what)
		}
	}
}

// state waits for a state of a task.
func (c *client) state(task string, state mesos.TaskState) mesos.TaskStatus {
	c.t.Helper()
	e := c.await(fmt.Sprintf("%s of %s", state, task), func(e *scheduler.Event) bool {
		return e.Type == scheduler.Event_UPDATE && e.Update.Status.TaskID.Value == task && *e.Update.Status.State == state
	})
	return e.Update.Status
}

// stateUnordered is state among all events so far: those of different tasks
// come in any order.
func (c *client) stateUnordered(task string, state mesos.TaskState) mesos.TaskStatus {
	c.t.Helper()
	c.mu.Lock()
	for _, e := range c.events[:c.next] {
		if e.Type == scheduler.Event_UPDATE && e.Update.Status.TaskID.Value == task && *e.Update.Status.State == state {
			c.mu.Unlock()
			return e.Update.Status
		}
	}
	c.mu.Unlock()
	return c.state(task, state)
}

func (c *client) offers() []mesos.Offer {
	c.t.Helper()
	return c.await("offers", func(e *scheduler.Event) bool { return e.Type == scheduler.Event_OFFERS }).Offers.Offers
}

func (c *client) call(call *scheduler.Call) {
	c.t.Helper()
	call.FrameworkID = &mesos.FrameworkID{Value: c.id}
	body, err := call.Marshal()
	if err != nil {
		c.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), "POST", c.base+"/api/v1/scheduler", bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Content-Type", wire.Protobuf)
	req.Header.Set("Mesos-Stream-Id", c.stream)
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusAccepted {
		c.t.Fatalf("%s: %s %s", call.Type, resp.Status, b)
	}
}

func (c *client) ack(s mesos.TaskStatus) {
	c.call(&scheduler.Call{Type: scheduler.Call_ACKNOWLEDGE, Acknowledge: &scheduler.Call_Acknowledge{
		AgentID: *s.AgentID, TaskID: s.TaskID, UUID: s.UUID,
	}})
}

func (c *client) kill(task string) {
	c.call(&scheduler.Call{Type: scheduler.Call_KILL, Kill: &scheduler.Call_Kill{TaskID: mesos.TaskID{Value: task}}})
}

// launch uses one offer for shell tasks, given as id, command, id, command.
func (c *client) launch(o mesos.Offer, pairs ...string) {
	c.t.Helper()
	var tasks []mesos.TaskInfo
	for i := 0; i < len(pairs); i += 2 {
		shell, command := true, pairs[i+1]
		tasks = append(tasks, mesos.TaskInfo{
			Name: pairs[i], TaskID: mesos.TaskID{Value: pairs[i]}, AgentID: o.AgentID,
			Command: &mesos.CommandInfo{Shell: &shell, Value: &command},
			Resources: []mesos.Resource{
				{Name: "cpus", Type: mesos.SCALAR.Enum(), Scalar: &mesos.Value_Scalar{Value: 0.01}},
				{Name: "mem", Type: mesos.SCALAR.Enum(), Scalar: &mesos.Value_Scalar{Value: 1}},
			},
		})
	}
	zero := 0.0
	c.call(&scheduler.Call{Type: scheduler.Call_ACCEPT, Accept: &scheduler.Call_Accept{
		OfferIDs: []mesos.OfferID{o.ID}, Filters: &mesos.Filters{RefuseSeconds: &zero},
		Operations: []mesos.Offer_Operation{{Type: mesos.Offer_Operation_LAUNCH, Launch: &mesos.Offer_Operation_Launch{TaskInfos: tasks}}},
	}})
}

// getJSON reads a document.
func getJSON(t *testing.T, url string, into any) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK && into != nil {
		if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	return resp.StatusCode
}
