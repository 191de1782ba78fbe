package mesosframework

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// patience bounds every wait of a test on an event that must come.
const patience = time.Minute

// fakeMaster is a scripted master: it records calls and sends what a test says.
type fakeMaster struct {
	t       *testing.T
	server  *httptest.Server
	streams chan *fakeStream
	calls   chan *scheduler.Call

	mu        sync.Mutex
	leader    string // host of the leader; this master if empty
	answer    func(*scheduler.Call) (int, string)
	heartbeat float64
	count     int
	current   *fakeStream
	auth      []string // Authorization headers seen, of all requests
	quiet     bool     // do not send SUBSCRIBED by itself
}

// fakeStream is one subscription at a fakeMaster.
type fakeStream struct {
	id        string
	subscribe *scheduler.Call
	out       chan []byte
	closed    chan struct{}
	once      sync.Once
}

func newFakeMaster(t *testing.T) *fakeMaster {
	m := &fakeMaster{t: t, streams: make(chan *fakeStream, 100), calls: make(chan *scheduler.Call, 10000), heartbeat: 15}
	m.server = httptest.NewServer(m)
	t.Cleanup(func() {
		m.hangUp()
		m.server.Close()
	})
	return m
}

func (m *fakeMaster) host() string { return m.server.Listener.Addr().String() }

func (m *fakeMaster) set(f func(*fakeMaster)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m)
}

func (m *fakeMaster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	leader := m.leader
	m.auth = append(m.auth, r.Header.Get("Authorization"))
	m.mu.Unlock()
	if r.URL.Path == "/redirect" {
		if leader == "" {
			leader = m.host()
		}
		w.Header().Set("Location", "//"+leader)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	if leader != "" {
		w.Header().Set("Location", "//"+leader+"/master"+r.URL.Path)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	call := new(scheduler.Call)
	if err := call.Unmarshal(body); err != nil || r.Header.Get("Content-Type") != "application/x-protobuf" {
		http.Error(w, "bad call", http.StatusBadRequest)
		return
	}
	m.mu.Lock()
	answer, current := m.answer, m.current
	m.mu.Unlock()
	if answer != nil {
		if status, text := answer(call); status == hangUp {
			m.calls <- call
			panic(http.ErrAbortHandler)
		} else if status != 0 {
			if call.Type != scheduler.Call_SUBSCRIBE {
				m.calls <- call
			}
			http.Error(w, text, status)
			return
		}
	}
	if call.Type != scheduler.Call_SUBSCRIBE {
		if current == nil || r.Header.Get("Mesos-Stream-Id") != current.id {
			http.Error(w, "The stream ID included in this request didn't match the stream ID currently associated with framework ID", http.StatusBadRequest)
			return
		}
		m.calls <- call
		w.WriteHeader(http.StatusAccepted)
		return
	}
	m.serveStream(w, r, call)
}

// hangUp as a status makes the master drop the connection without an answer.
const hangUp = -1

func (m *fakeMaster) serveStream(w http.ResponseWriter, r *http.Request, call *scheduler.Call) {
	m.mu.Lock()
	m.count++
	s := &fakeStream{id: fmt.Sprintf("stream-%d", m.count), subscribe: call, out: make(chan []byte, 10000), closed: make(chan struct{})}
	if m.current != nil {
		m.current.close()
	}
	m.current = s
	quiet, heartbeat := m.quiet, m.heartbeat
	m.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-protobuf")
	w.Header().Set("Mesos-Stream-Id", s.id)
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	if !quiet {
		id := call.GetFrameworkID().GetValue()
		if id == "" {
			id = "master-0000"
		}
		s.send(&scheduler.Event{Type: scheduler.Event_SUBSCRIBED, Subscribed: &scheduler.Event_Subscribed{
			FrameworkID: &mesos.FrameworkID{Value: id}, HeartbeatIntervalSeconds: &heartbeat,
		}})
		s.send(&scheduler.Event{Type: scheduler.Event_HEARTBEAT})
	}
	m.streams <- s
	for {
		select {
		case b := <-s.out:
			if _, err := w.Write(b); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		case <-s.closed:
			for { // what was sent before the close comes before the end
				select {
				case b := <-s.out:
					_, _ = w.Write(b)
					continue
				default:
				}
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

func (s *fakeStream) close() { s.once.Do(func() { close(s.closed) }) }

func (s *fakeStream) send(e *scheduler.Event) {
	b, err := e.Marshal()
	if err != nil {
		panic(err)
	}
	s.raw(append(fmt.Appendf(nil, "%d\n", len(b)), b...))
}

func (s *fakeStream) raw(b []byte) { s.out <- b }

func (s *fakeStream) offer(offers ...mesos.Offer) {
	s.send(&scheduler.Event{Type: scheduler.Event_OFFERS, Offers: &scheduler.Event_Offers{Offers: offers}})
}

func (s *fakeStream) update(status mesos.TaskStatus) {
	s.send(&scheduler.Event{Type: scheduler.Event_UPDATE, Update: &scheduler.Event_Update{Status: status}})
}

func (s *fakeStream) error(text string) {
	s.send(&scheduler.Event{Type: scheduler.Event_ERROR, Error: &scheduler.Event_Error{Message: text}})
	s.close()
}

func (m *fakeMaster) hangUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current != nil {
		m.current.close()
		m.current = nil
	}
}

// stream waits for the next subscription.
func (m *fakeMaster) stream() *fakeStream {
	m.t.Helper()
	return receive(m.t, m.streams, "a subscription")
}

// call waits for the next call of a type; others before it are dropped.
func (m *fakeMaster) call(kind scheduler.Call_Type) *scheduler.Call {
	m.t.Helper()
	for {
		c := receive(m.t, m.calls, kind.String())
		if c.Type == kind {
			return c
		}
	}
}

func receive[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not come", what)
		panic("unreachable")
	}
}

// owner is a Journal and a Listener in memory.
type owner struct {
	mu        sync.Mutex
	id        string
	tasks     map[string]TaskRef
	log       []string // what happened, in order
	onUpdate  func(Update) error
	onLaunch  func([]Launch) error
	updates   chan Update
	losses    chan Loss
	ends      chan error
	subscribe int
}

func newOwner() *owner {
	return &owner{tasks: map[string]TaskRef{}, updates: make(chan Update, 10000), losses: make(chan Loss, 1000), ends: make(chan error, 1000)}
}

func (o *owner) note(format string, args ...any) { o.log = append(o.log, fmt.Sprintf(format, args...)) }

func (o *owner) FrameworkID(context.Context) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.id, nil
}

func (o *owner) SaveFrameworkID(_ context.Context, id string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.id != "" && o.id != id {
		return errors.New("another id is saved")
	}
	o.id = id
	o.note("id %s", id)
	return nil
}

func (o *owner) SaveLaunching(_ context.Context, launches []Launch) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.onLaunch != nil {
		if err := o.onLaunch(launches); err != nil {
			return err
		}
	}
	for _, l := range launches {
		o.tasks[l.TaskID] = l.Ref()
		o.note("launching %s", l.TaskID)
	}
	return nil
}

func (o *owner) HandleSubscribed(context.Context, Subscription) ([]TaskRef, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.subscribe++
	var refs []TaskRef
	for _, r := range o.tasks {
		refs = append(refs, r)
	}
	return refs, nil
}

func (o *owner) HandleUpdate(_ context.Context, u Update) error {
	o.mu.Lock()
	hook := o.onUpdate
	o.mu.Unlock()
	if hook != nil {
		if err := hook(u); err != nil {
			return err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if r, ok := o.tasks[u.TaskID]; ok {
		r.State = u.State
		o.tasks[u.TaskID] = r
		if u.State.Terminal() {
			delete(o.tasks, u.TaskID)
		}
	}
	o.updates <- u
	return nil
}

func (o *owner) HandleLost(_ context.Context, l Loss) error {
	o.losses <- l
	return nil
}

func (o *owner) HandleDisconnected(_ context.Context, err error) { o.ends <- err }

// start runs a Framework against masters until the test ends.
func start(t *testing.T, o *owner, change func(*Options), at ...*fakeMaster) *Framework {
	t.Helper()
	opts := Options{Name: "cutover-test", User: "nobody", Journal: o, Listener: o, BackoffBase: time.Millisecond, Seed: 1}
	for _, m := range at {
		opts.Masters = append(opts.Masters, m.host())
	}
	if change != nil {
		change(&opts)
	}
	f, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := f.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return f
}

// mesosOffer is an offer of 4 cpus, 4 GiB and ports 31000-31099.
func mesosOffer(id, agentID string) mesos.Offer {
	scalar, ranges := mesos.SCALAR, mesos.RANGES
	role := "*"
	alloc := &mesos.Resource_AllocationInfo{Role: &role}
	res := func(name string, v float64) mesos.Resource {
		return mesos.Resource{Name: name, Type: &scalar, Scalar: &mesos.Value_Scalar{Value: v}, AllocationInfo: alloc}
	}
	ip := "10.0.0." + strings.TrimPrefix(agentID, "a")
	path := "/slave(1)"
	return mesos.Offer{
		ID: mesos.OfferID{Value: id}, AgentID: mesos.AgentID{Value: agentID}, FrameworkID: mesos.FrameworkID{Value: "master-0000"}, Hostname: "host-" + agentID,
		URL: &mesos.URL{Scheme: "http", Address: mesos.Address{IP: &ip, Port: 5051}, Path: &path},
		Resources: []mesos.Resource{
			res("cpus", 4), res("mem", 4096), res("disk", 10000),
			{Name: "ports", Type: &ranges, Ranges: &mesos.Value_Ranges{Range: []mesos.Value_Range{{Begin: 31000, End: 31099}}}, AllocationInfo: alloc},
		},
		Attributes:     []mesos.Attribute{{Name: "rack", Type: mesos.TEXT, Text: &mesos.Value_Text{Value: "r1"}}},
		AllocationInfo: alloc,
	}
}

// status is a status update; uuid is empty or one byte that stands for 16.
func status(taskID, agentID string, s mesos.TaskState, uuid byte) mesos.TaskStatus {
	source := mesos.SOURCE_EXECUTOR
	out := mesos.TaskStatus{TaskID: mesos.TaskID{Value: taskID}, State: &s, Source: &source}
	if agentID != "" {
		out.AgentID = &mesos.AgentID{Value: agentID}
	}
	if uuid != 0 {
		out.UUID = slices.Repeat([]byte{uuid}, 16)
	} else {
		source, reason := mesos.SOURCE_MASTER, mesos.REASON_RECONCILIATION
		out.Source, out.Reason = &source, &reason
	}
	return out
}

func spec(id string) TaskSpec {
	return TaskSpec{ID: id, App: "shop", Command: "serve --port $PORT0", CPUs: 0.1, MemoryMB: 64, Ports: 1}
}

// launched lists the task ids of an ACCEPT.
func launched(c *scheduler.Call) []string {
	var ids []string
	for _, op := range c.Accept.Operations {
		for _, ti := range op.Launch.TaskInfos {
			ids = append(ids, ti.TaskID.Value)
		}
	}
	slices.Sort(ids)
	return ids
}

// eventually waits for a condition that no event announces.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come true", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
