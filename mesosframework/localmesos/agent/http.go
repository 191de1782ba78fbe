package agent

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	agentapi "github.com/mesos/mesos-go/api/v1/lib/agent"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/mesosframework/localmesos/reply"
	"github.com/cutover/cutover/mesosframework/localmesos/resource"
	"github.com/cutover/cutover/mesosframework/localmesos/statedoc"
)

// handler serves the agent's endpoints: bare and below /slave(1), the files
// only bare.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	both := func(path string, h http.HandlerFunc) {
		mux.HandleFunc(path, h)
		mux.HandleFunc("/slave(1)"+path, h)
	}
	both("/state", a.serveState)
	both("/health", func(w http.ResponseWriter, _ *http.Request) { reply.Empty(w, http.StatusOK) })
	both("/containers", func(w http.ResponseWriter, r *http.Request) { a.serveUsage(w, r, true) })
	both("/monitor/statistics", func(w http.ResponseWriter, r *http.Request) { a.serveUsage(w, r, false) })
	both("/api/v1", a.serveAPI)
	both("/api/v1/executor", func(w http.ResponseWriter, _ *http.Request) {
		reply.NotImplemented(w, "the executor API (it runs command tasks only)")
	})
	both("/api/v1/resource_provider", func(w http.ResponseWriter, _ *http.Request) {
		reply.NotImplemented(w, "resource providers")
	})
	both("/flags", func(w http.ResponseWriter, _ *http.Request) { reply.NotImplemented(w, "agent flags") })
	mux.HandleFunc("/version", func(w http.ResponseWriter, r *http.Request) {
		reply.JSON(w, r, map[string]any{"version": a.opts.Version, "build_user": ""})
	})
	mux.HandleFunc("/metrics/snapshot", a.serveMetrics)
	mux.HandleFunc("/files/browse", a.serveBrowse)
	mux.HandleFunc("/files/read", a.serveRead)
	mux.HandleFunc("/files/download", a.serveDownload)
	mux.HandleFunc("/files/debug", a.serveDebug)
	return reply.Handler(mux)
}

// answerWithin bounds how long a request waits for the agent's actor.
const answerWithin = 10 * time.Second

// ask runs f on the actor; it has answered when it returns false.
func (a *Agent) ask(w http.ResponseWriter, r *http.Request, f func()) bool {
	ctx, cancel := context.WithTimeout(r.Context(), answerWithin)
	defer cancel()
	if err := a.actor.Call(ctx, f); err != nil {
		reply.Text(w, http.StatusServiceUnavailable, "The local Mesos agent does not answer: %v", err)
		return false
	}
	return true
}

func (a *Agent) idNow() string {
	var id string
	ctx, cancel := context.WithTimeout(a.ctx, answerWithin)
	defer cancel()
	_ = a.actor.Call(ctx, func() { id = a.id })
	return id
}

// seen is a task as the endpoints show it.
type seen struct {
	completedTask
	sandbox string
	pid     int // of the task's first process, 0 = none now
	warden  int
	running bool
}

// look lists the tasks, running ones first; on the actor.
func (a *Agent) look() []seen {
	var out []seen
	for _, t := range a.tasks {
		t.viewMu.Lock()
		s := seen{completedTask: completedTask{t.key.framework, t.info, t.view.state, t.container, slices.Clone(t.view.statuses)},
			sandbox: t.sandbox(), running: true}
		if t.view.proc != nil {
			s.pid, s.warden = t.view.proc.TaskPID(), t.view.proc.PID()
		}
		t.viewMu.Unlock()
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y seen) int { return strings.Compare(x.info.TaskID.Value, y.info.TaskID.Value) })
	for _, c := range a.completed {
		out = append(out, seen{completedTask: c, sandbox: a.sandbox(c.framework, c.info.TaskID.Value, c.container)})
	}
	return out
}

func (s seen) doc() map[string]any {
	return statedoc.Task(s.framework, "", &s.info, s.state, s.statuses)
}

func (a *Agent) serveState(w http.ResponseWriter, r *http.Request) {
	doc := map[string]any{}
	ok := a.ask(w, r, func() {
		type byFramework struct{ executors, completed []any }
		frameworks := map[string]*byFramework{}
		for _, s := range a.look() {
			f := frameworks[s.framework]
			if f == nil {
				f = &byFramework{executors: []any{}, completed: []any{}}
				frameworks[s.framework] = f
			}
			e := map[string]any{
				"id": s.info.TaskID.Value, "name": executorName(&s.info), "source": s.info.TaskID.Value,
				"container": s.container, "directory": s.sandbox, "tasks": []any{}, "queued_tasks": []any{}, "completed_tasks": []any{},
				"resources": statedoc.Resources(resource.Of(s.info.Resources)), "type": "DEFAULT",
			}
			if s.running {
				e["tasks"] = []any{s.doc()}
				f.executors = append(f.executors, e)
			} else {
				e["completed_tasks"] = []any{s.doc()}
				f.completed = append(f.completed, e)
			}
		}
		live, done := []any{}, []any{}
		for id, f := range frameworks {
			d := map[string]any{"id": id, "executors": f.executors, "completed_executors": f.completed}
			info := a.frameworks[id]
			if info == nil {
				done = append(done, d)
				continue
			}
			d["name"], d["user"], d["checkpoint"], d["hostname"] = info.Name, info.User, info.GetCheckpoint(), info.GetHostname()
			live = append(live, d)
		}
		doc = map[string]any{
			"id": a.id, "pid": a.pid(), "hostname": a.opts.Hostname, "version": a.opts.Version,
			"start_time": float64(a.start.UnixNano()) / 1e9, "resources": statedoc.Resources(a.opts.Resources),
			"unreserved_resources": statedoc.Resources(a.opts.Resources), "reserved_resources": map[string]any{},
			"attributes": statedoc.Attributes(a.opts.Attributes), "frameworks": live, "completed_frameworks": done,
			"flags": map[string]any{"work_dir": a.workDir()},
		}
	})
	if ok {
		reply.JSON(w, r, doc)
	}
}

func executorName(info *mesos.TaskInfo) string {
	c := info.Command.GetValue()
	if c == "" {
		return "Command Executor (Task: " + info.TaskID.Value + ")"
	}
	if info.Command.GetShell() {
		c = "sh -c '" + c + "'"
	}
	if len(c) > 30 {
		c = c[:24] + "...')"
		return "Command Executor (Task: " + info.TaskID.Value + ") (Command: " + c
	}
	return "Command Executor (Task: " + info.TaskID.Value + ") (Command: " + c + ")"
}

// serveUsage tells what the processes of each running task use.
func (a *Agent) serveUsage(w http.ResponseWriter, r *http.Request, withContainer bool) {
	var tasks []seen
	if !a.ask(w, r, func() { tasks = a.look() }) {
		return
	}
	bySession := usage()
	out := []any{}
	for _, s := range tasks {
		if !s.running || s.pid == 0 {
			continue
		}
		u := bySession[s.pid]
		rs := resource.Of(s.info.Resources)
		mem := int64(rs.Scalar("mem")) << 20
		row := map[string]any{
			"executor_id": s.info.TaskID.Value, "executor_name": executorName(&s.info), "framework_id": s.framework,
			"source": s.info.TaskID.Value, "statistics": map[string]any{
				"cpus_soft_limit": rs.Scalar("cpus"), "cpus_user_time_secs": u.user.Seconds(), "cpus_system_time_secs": u.system.Seconds(),
				"mem_limit_bytes": mem, "mem_soft_limit_bytes": mem, "mem_rss_bytes": u.rss,
				"timestamp": float64(time.Now().UnixNano()) / 1e9,
			},
		}
		if withContainer {
			row["container_id"] = s.container
			row["status"] = map[string]any{"container_id": map[string]any{"value": s.container}, "executor_pid": s.warden}
		}
		out = append(out, row)
	}
	reply.JSON(w, r, out)
}

type used struct {
	user, system time.Duration
	rss          int64
}

// usage sums what the processes of each session use; a task's session has the
// pid of its first process.
func usage() map[int]used {
	out := map[int]used{}
	pids, err := procfs.Processes()
	if err != nil {
		return out
	}
	for _, pid := range pids {
		s, err := procfs.ReadStat(pid)
		if err != nil && !errors.Is(err, procfs.ErrEnded) {
			continue
		}
		u := out[s.Session]
		out[s.Session] = used{u.user + s.User, u.system + s.System, u.rss + s.RSS}
	}
	return out
}

func (a *Agent) serveMetrics(w http.ResponseWriter, r *http.Request) {
	var doc map[string]any
	ok := a.ask(w, r, func() {
		var inUse resource.Set
		n := 0
		for _, t := range a.tasks {
			inUse = inUse.Add(resource.Of(t.info.Resources))
			n++
		}
		doc = map[string]any{"slave/registered": 0.0, "slave/uptime_secs": time.Since(a.start).Seconds(),
			"slave/executors_running": float64(n), "slave/frameworks_active": float64(len(a.frameworks))}
		if a.registered {
			doc["slave/registered"] = 1.0
		}
		for _, name := range []string{"cpus", "mem", "disk"} {
			total, used := a.opts.Resources.Scalar(name), inUse.Scalar(name)
			doc["slave/"+name+"_total"], doc["slave/"+name+"_used"] = total, used
			doc["slave/"+name+"_percent"] = 0.0
			if total > 0 {
				doc["slave/"+name+"_percent"] = used / total
			}
		}
	})
	if !ok {
		return
	}
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		for i, f := range strings.Fields(string(data))[:3] {
			v, _ := strconv.ParseFloat(f, 64)
			doc["system/load_"+[]string{"1", "5", "15"}[i]+"min"] = v
		}
	}
	reply.JSON(w, r, doc)
}

func (a *Agent) serveDebug(w http.ResponseWriter, r *http.Request) {
	doc := map[string]string{}
	ok := a.ask(w, r, func() {
		for _, s := range a.look() {
			doc["/frameworks/"+s.framework+"/executors/"+s.info.TaskID.Value+"/runs/latest"] = s.sandbox
		}
	})
	if ok {
		reply.JSON(w, r, doc)
	}
}

// serveAPI is the agent's operator API, as far as it goes.
func (a *Agent) serveAPI(w http.ResponseWriter, r *http.Request) {
	if !reply.Post(w, r) {
		return
	}
	var call agentapi.Call
	if _, ok := reply.Decode(w, r, &call); !ok {
		return
	}
	if call.Type == agentapi.Call_UNKNOWN {
		reply.Text(w, http.StatusBadRequest, "Failed to validate agent::Call: Expecting 'type' to be present")
		return
	}
	media, ok := reply.Accepts(w, r)
	if !ok {
		return
	}
	resp := agentapi.Response{}
	switch call.Type {
	case agentapi.Call_GET_HEALTH:
		resp.Type = agentapi.Response_GET_HEALTH
		resp.GetHealth = &agentapi.Response_GetHealth{Healthy: true}
	case agentapi.Call_GET_VERSION:
		resp.Type = agentapi.Response_GET_VERSION
		resp.GetVersion = &agentapi.Response_GetVersion{VersionInfo: mesos.VersionInfo{Version: a.opts.Version}}
	case agentapi.Call_LIST_FILES:
		if call.ListFiles == nil {
			reply.Text(w, http.StatusBadRequest, "Failed to validate agent::Call: Expecting 'list_files' to be present")
			return
		}
		rows, err := a.list(call.ListFiles.Path)
		if err != nil {
			fileError(w, err)
			return
		}
		resp.Type = agentapi.Response_LIST_FILES
		resp.ListFiles = &agentapi.Response_ListFiles{FileInfos: []mesos.FileInfo{}}
		for _, row := range rows {
			row := row
			size, nlink := uint64(row.Size), int32(row.NLink)
			mode := row.bits
			resp.ListFiles.FileInfos = append(resp.ListFiles.FileInfos, mesos.FileInfo{
				Path: row.Path, Nlink: &nlink, Size_: &size, Mtime: &mesos.TimeInfo{Nanoseconds: int64(row.MTime) * 1e9},
				Mode: &mode, UID: &row.UID, GID: &row.GID,
			})
		}
	case agentapi.Call_READ_FILE:
		if call.ReadFile == nil {
			reply.Text(w, http.StatusBadRequest, "Failed to validate agent::Call: Expecting 'read_file' to be present")
			return
		}
		length := int64(-1)
		if call.ReadFile.Length != nil {
			length = int64(min(*call.ReadFile.Length, maxRead))
		}
		data, size, err := a.read(call.ReadFile.Path, int64(min(call.ReadFile.Offset, 1<<62)), length)
		if err != nil {
			fileError(w, err)
			return
		}
		resp.Type = agentapi.Response_READ_FILE
		resp.ReadFile = &agentapi.Response_ReadFile{Size_: uint64(size), Data: append([]byte{}, data...)}
	default:
		reply.NotImplemented(w, "the agent call "+call.Type.String())
		return
	}
	reply.Message(w, media, &resp)
}
