package master

import (
	"context"
	"net/http"
	"time"

	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/mesosframework/localmesos/reply"
)

// answerWithin bounds how long a request waits for the actor.
const answerWithin = 10 * time.Second

// Handler serves the master's endpoints: bare and below /master.
func (m *Master) Handler() http.Handler {
	mux := http.NewServeMux()
	both := func(path string, h http.HandlerFunc) {
		mux.HandleFunc(path, h)
		mux.HandleFunc("/master"+path, h)
	}
	both("/api/v1/scheduler", m.serveScheduler)
	both("/api/v1", m.serveOperator)
	both("/redirect", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "//"+m.opts.Addr)
		reply.Empty(w, http.StatusTemporaryRedirect)
	})
	both("/health", func(w http.ResponseWriter, _ *http.Request) { reply.Empty(w, http.StatusOK) })
	both("/state", m.serveState)
	both("/slaves", m.serveSlaves)
	both("/frameworks", m.serveFrameworks)
	both("/tasks", m.serveTasks)
	both("/teardown", m.serveTeardown)
	mux.HandleFunc("/version", func(w http.ResponseWriter, r *http.Request) {
		reply.JSON(w, r, map[string]any{"version": m.opts.Version, "build_user": ""})
	})
	mux.HandleFunc("/metrics/snapshot", m.serveMetrics)
	// A master shows no files; its log is that of this process.
	mux.HandleFunc("/files/debug", func(w http.ResponseWriter, r *http.Request) { reply.JSON(w, r, doc{}) })
	for _, path := range []string{"/files/browse", "/files/read"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { reply.Text(w, http.StatusNotFound, "") })
	}
	for _, path := range []string{"/roles", "/state-summary", "/weights", "/quota", "/maintenance/schedule", "/maintenance/status",
		"/machine/down", "/machine/up", "/reserve", "/unreserve", "/create-volumes", "/destroy-volumes", "/flags"} {
		both(path, func(w http.ResponseWriter, _ *http.Request) { reply.NotImplemented(w, "the endpoint "+path) })
	}
	return reply.Handler(mux)
}

// ask runs f on the actor; it has answered when it returns false.
func (m *Master) ask(w http.ResponseWriter, r *http.Request, f func()) bool {
	ctx, cancel := context.WithTimeout(r.Context(), answerWithin)
	defer cancel()
	if err := m.actor.Call(ctx, f); err != nil {
		reply.Text(w, http.StatusServiceUnavailable, "The local Mesos master does not answer: %v", err)
		return false
	}
	return true
}

// serveScheduler is /api/v1/scheduler.
func (m *Master) serveScheduler(w http.ResponseWriter, r *http.Request) {
	if !reply.Post(w, r) {
		return
	}
	var call scheduler.Call
	if _, ok := reply.Decode(w, r, &call); !ok {
		return
	}
	if bad := invalid(&call); bad != "" {
		reply.Text(w, http.StatusBadRequest, "Failed to validate scheduler::Call: %s", bad)
		return
	}
	if call.Type == scheduler.Call_SUBSCRIBE {
		m.serveSubscribe(w, r, &call)
		return
	}
	a := answer{status: http.StatusAccepted}
	if m.ask(w, r, func() { a = m.call(&call, r.Header) }) {
		if a.text == "" {
			reply.Empty(w, a.status)
		} else {
			reply.Text(w, a.status, "%s", a.text)
		}
	}
}

func (m *Master) serveSubscribe(w http.ResponseWriter, r *http.Request, call *scheduler.Call) {
	if len(r.Header.Values("Mesos-Stream-Id")) > 0 {
		reply.Text(w, http.StatusBadRequest, "Subscribe calls should not include the 'Mesos-Stream-Id' header")
		return
	}
	media, ok := reply.Accepts(w, r)
	if !ok {
		return
	}
	s := newStream(media)
	w.Header().Set("Content-Type", media)
	w.Header().Set("Mesos-Stream-Id", s.id)
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return
	}
	info, suppressed := *call.Subscribe.FrameworkInfo, call.Subscribe.SuppressedRoles
	if !m.actor.Post(func() { m.subscribe(info, suppressed, s) }) {
		return
	}
	s.serve(w, r)
	m.actor.Post(func() { m.disconnected(s) })
}

// invalid says what is wrong with the form of a call.
func invalid(c *scheduler.Call) string {
	if c.Type == scheduler.Call_UNKNOWN {
		return "Expecting 'type' to be present"
	}
	if c.Type == scheduler.Call_SUBSCRIBE {
		if c.Subscribe == nil {
			return "Expecting 'subscribe' to be present"
		}
		id := c.Subscribe.FrameworkInfo.ID
		if id.GetValue() != c.FrameworkID.GetValue() || (id == nil) != (c.FrameworkID == nil) {
			return "'framework_id' differs from 'subscribe.framework_info.id'"
		}
		return ""
	}
	if c.FrameworkID == nil {
		return "Expecting 'framework_id' to be present"
	}
	need := func(there bool, name string) string {
		if there {
			return ""
		}
		return "Expecting '" + name + "' to be present"
	}
	switch c.Type {
	case scheduler.Call_ACCEPT:
		return need(c.Accept != nil, "accept")
	case scheduler.Call_DECLINE:
		return need(c.Decline != nil, "decline")
	case scheduler.Call_KILL:
		return need(c.Kill != nil, "kill")
	case scheduler.Call_SHUTDOWN:
		return need(c.Shutdown != nil, "shutdown")
	case scheduler.Call_ACKNOWLEDGE:
		if c.Acknowledge == nil {
			return need(false, "acknowledge")
		}
		if len(c.Acknowledge.UUID) != 16 {
			return "Not a valid UUID"
		}
	case scheduler.Call_RECONCILE:
		return need(c.Reconcile != nil, "reconcile")
	case scheduler.Call_MESSAGE:
		return need(c.Message != nil, "message")
	case scheduler.Call_REQUEST:
		return need(c.Request != nil, "request")
	case scheduler.Call_ACCEPT_INVERSE_OFFERS:
		return need(c.AcceptInverseOffers != nil, "accept_inverse_offers")
	case scheduler.Call_DECLINE_INVERSE_OFFERS:
		return need(c.DeclineInverseOffers != nil, "decline_inverse_offers")
	case scheduler.Call_ACKNOWLEDGE_OPERATION_STATUS:
		return need(c.AcknowledgeOperationStatus != nil, "acknowledge_operation_status")
	case scheduler.Call_RECONCILE_OPERATIONS:
		return need(c.ReconcileOperations != nil, "reconcile_operations")
	case scheduler.Call_UPDATE_FRAMEWORK:
		if c.UpdateFramework == nil {
			return need(false, "update_framework")
		}
		if c.UpdateFramework.FrameworkInfo.ID.GetValue() != c.FrameworkID.GetValue() {
			return "'framework_id' differs from 'update_framework.framework_info.id'"
		}
	default: // nothing more is needed
	}
	return ""
}

// answer is the answer to a call.
type answer struct {
	status int
	text   string
}

// call takes a call other than SUBSCRIBE. On the actor.
func (m *Master) call(c *scheduler.Call, h http.Header) answer {
	f := m.frameworks[c.FrameworkID.Value]
	if f == nil {
		return answer{http.StatusBadRequest, "Framework cannot be found"}
	}
	if !f.connected() {
		return answer{http.StatusForbidden, "Framework is not subscribed"}
	}
	ids := h.Values("Mesos-Stream-Id")
	if len(ids) == 0 {
		return answer{http.StatusBadRequest, "All non-subscribe calls should include the 'Mesos-Stream-Id' header"}
	}
	if ids[0] != f.stream.id {
		return answer{http.StatusBadRequest, "The stream ID '" + ids[0] +
			"' included in this request didn't match the stream ID currently associated with framework ID " + f.id}
	}
	accepted := answer{status: http.StatusAccepted}
	switch c.Type {
	case scheduler.Call_TEARDOWN:
		m.remove(f)
	case scheduler.Call_ACCEPT:
		m.accept(f, c.Accept)
	case scheduler.Call_DECLINE:
		m.decline(f, c.Decline)
	case scheduler.Call_REVIVE:
		m.revive(f, c.Revive.GetRoles())
	case scheduler.Call_SUPPRESS:
		m.suppress(f, c.Suppress.GetRoles())
	case scheduler.Call_KILL:
		m.kill(f, c.Kill)
	case scheduler.Call_ACKNOWLEDGE:
		m.acknowledge(f, c.Acknowledge)
	case scheduler.Call_RECONCILE:
		m.reconcile(f, c.Reconcile.Tasks)
	case scheduler.Call_REQUEST:
		// Ignored, as by the default allocator of Mesos.
	case scheduler.Call_UPDATE_FRAMEWORK:
		if bad := m.updateFramework(f, c.UpdateFramework.FrameworkInfo, c.UpdateFramework.SuppressedRoles); bad != "" {
			return answer{http.StatusBadRequest, bad}
		}
		return answer{status: http.StatusOK}
	case scheduler.Call_ACKNOWLEDGE_OPERATION_STATUS:
		// No operation of this master ever has a uuid; a stray
		// acknowledgement is ignored, as by Mesos.
	case scheduler.Call_SHUTDOWN, scheduler.Call_MESSAGE, scheduler.Call_ACCEPT_INVERSE_OFFERS, scheduler.Call_DECLINE_INVERSE_OFFERS,
		scheduler.Call_RECONCILE_OPERATIONS:
		return answer{http.StatusNotImplemented, "local Mesos does not implement the call " + c.Type.String() + "; a real Mesos does."}
	default: // SUBSCRIBE has its own way; UNKNOWN asks for nothing
	}
	return accepted
}
