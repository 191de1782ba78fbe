package apitest

import (
	"fmt"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// Story tells a Deploy of the App "shop" from spec 1 to 2 on the Hosts lb1 (HAProxy) and lb2 (nginx), step by step, as the
// orchestrator would. Each method adds events; Events has them all, Last the newest View.
type Story struct {
	Events []deploy.Event
	Last   deploy.View
	clock  time.Duration
}

// NewStory begins a Deploy with an id.
func NewStory(id string) *Story {
	s := &Story{Last: deploy.View{
		DeployID: id, App: "shop", Kind: "deploy", Spec: 2, FromSpec: 1, Version: "1.4.2", State: deploy.Running,
		ReasonCode: string(deploy.CodeRunning), Actor: "ci", StartedAt: At(0), Deadline: At(2 * time.Minute),
		Tasks: []deploy.TaskView{
			{ID: "shop.2.0." + id, App: "shop", Spec: 2, Instance: 0, State: "staging", Health: "unknown", Role: "new", Agent: "a1", Address: "127.0.0.1:31000", Upstream: "shop.2.0." + id},
			{ID: "shop.2.1." + id, App: "shop", Spec: 2, Instance: 1, State: "staging", Health: "unknown", Role: "new", Agent: "a2", Address: "127.0.0.1:31001", Upstream: "shop.2.1." + id},
		},
		Hosts: []deploy.HostView{},
	}}
	return s.Step(deploy.StepPending, "recorded").Step(deploy.StepLaunching, "2 new tasks")
}

func (s *Story) later() time.Time {
	s.clock += 250 * time.Millisecond
	return At(s.clock)
}

// copied returns the View as it is now: later steps must not change what an event holds.
func (s *Story) copied() *deploy.View {
	v := s.Last
	v.Steps = append([]deploy.StepRecord(nil), v.Steps...)
	v.Tasks = append([]deploy.TaskView(nil), v.Tasks...)
	v.Hosts = append([]deploy.HostView(nil), v.Hosts...)
	return &v
}

func (s *Story) add(e deploy.Event) *Story {
	e.Seq, e.Deploy, e.App = uint64(len(s.Events))+1, s.Last.DeployID, s.Last.App
	s.Events = append(s.Events, e)
	return s
}

// Step enters a step.
func (s *Story) Step(step deploy.StepName, why string) *Story {
	at := s.later()
	s.Last.Step = string(step)
	s.Last.Steps = append(s.Last.Steps, deploy.StepRecord{Step: string(step), At: at})
	kind := "step"
	if step == deploy.StepDone {
		kind = "end"
	}
	return s.add(deploy.Event{At: at, Type: kind, Step: string(step), Code: s.Last.ReasonCode, Msg: why, View: s.copied()})
}

// Healthy makes the tasks healthy.
func (s *Story) Healthy() *Story {
	s.Step(deploy.StepChecking, "")
	for i := range s.Last.Tasks {
		s.Last.Tasks[i].State, s.Last.Tasks[i].Health = "running", "healthy"
		s.add(deploy.Event{At: s.later(), Type: "task", Task: s.Last.Tasks[i].ID, Msg: "healthy"})
	}
	return s
}

// Vote lets a Host answer.
func (s *Story) Vote(host string, vote deploy.Vote, reason string) *Story {
	h := deploy.HostView{Name: host, Group: "public", Proxy: "haproxy", Vote: vote, Reason: reason}
	if host == "lb2" {
		h.Proxy = "nginx-lua"
	}
	if vote == deploy.VoteVerified || vote == deploy.VoteReady {
		h.Evidence = &deploy.EvidenceView{Generation: 7, Digest: "9c1e", ProxyPID: 4242, ReadAt: At(s.clock)}
		for _, t := range s.Last.Tasks {
			h.Evidence.Upstreams = append(h.Evidence.Upstreams, deploy.UpstreamView{
				Name: t.Upstream, Address: t.Address, Registered: true, Healthy: true, Status: "UP", Mode: "ready", Weight: 100})
		}
	}
	hosts := make([]deploy.HostView, 0, len(s.Last.Hosts)+1)
	for _, was := range s.Last.Hosts {
		if was.Name != host {
			hosts = append(hosts, was)
		} else if h.Output = was.Output; h.Reason == "" {
			h.Reason = was.Reason
		}
	}
	s.Last.Hosts = append(hosts, h)
	msg := string(vote)
	if reason != "" {
		msg += ": " + reason
	}
	return s.add(deploy.Event{At: s.later(), Type: "host", Host: host, Code: string(vote), Msg: msg, View: s.copied()})
}

// Prepared goes as far as both Hosts being ready.
func (s *Story) Prepared() *Story {
	s.Last.Txn, s.Last.Generation = "txn-"+s.Last.DeployID, 7
	return s.Healthy().Step(deploy.StepPreparing, "").Vote("lb1", deploy.VoteReady, "").Vote("lb2", deploy.VoteReady, "")
}

// Activated goes as far as both Hosts having verified.
func (s *Story) Activated() *Story {
	return s.Prepared().Step(deploy.StepActivating, "").Vote("lb1", deploy.VoteVerified, "").Vote("lb2", deploy.VoteVerified, "")
}

// Committed goes as far as the Commit; old upstreams drain.
func (s *Story) Committed() *Story {
	s.Activated().Step(deploy.StepCommitting, "")
	at := At(s.clock)
	s.Last.State, s.Last.ReasonCode, s.Last.Reason = deploy.Succeeded, string(deploy.CodeCommitted), "every host proved it"
	s.Last.CommittedAt = &at
	s.Last.Drain = &deploy.DrainView{Deadline: At(s.clock + 30*time.Second), Waiting: []string{"lb1", "lb2"}}
	return s.Step(deploy.StepDraining, "")
}

// Drained goes to the end.
func (s *Story) Drained() *Story {
	s.Committed()
	s.Last.Drain = &deploy.DrainView{Done: true, Deadline: s.Last.Drain.Deadline}
	s.Step(deploy.StepKilling, "")
	return s.end()
}

func (s *Story) end() *Story {
	at := At(s.clock)
	s.Last.FinishedAt = &at
	return s.Step(deploy.StepDone, s.Last.Reason)
}

// DrainStuck is committed, and one Host never reports that it is drained.
func (s *Story) DrainStuck() *Story {
	s.Committed()
	s.Last.ReasonCode, s.Last.Reason = string(deploy.CodeDrainStuck), "committed, but not drained on lb2; old tasks stay alive"
	s.Last.NextCommand = "cutover lb show lb2"
	s.Last.Drain = &deploy.DrainView{Deadline: s.Last.Drain.Deadline, Waiting: []string{"lb2"}}
	return s.Step(deploy.StepDrainStuck, s.Last.Reason)
}

// HostFailed is a Deploy that lb2 refused after Activate, and that is put back.
func (s *Story) HostFailed() *Story {
	s.Prepared().Step(deploy.StepActivating, "").Vote("lb1", deploy.VoteVerified, "")
	s.Vote("lb2", deploy.VoteFailed, "upstream shop.2.1 is not reachable from here: connection refused")
	s.Last.Hosts[len(s.Last.Hosts)-1].Output = "nginx: [warn] first\nnginx: [emerg] \x1b[2Jsecond"
	s.Last.ReasonCode, s.Last.Reason = string(deploy.CodeHostRefused), "host lb2: upstream shop.2.1 is not reachable from here: connection refused"
	s.Step(deploy.StepRestoring, s.Last.Reason)
	return s
}

// RolledBack is HostFailed to its end.
func (s *Story) RolledBack() *Story {
	s.HostFailed().Vote("lb1", deploy.VoteAborted, "").Vote("lb2", deploy.VoteAborted, "")
	s.Last.State, s.Last.NextCommand = deploy.RolledBack, "cutover lb show lb2"
	return s.end()
}

// Stuck is HostFailed where lb2 does not answer.
func (s *Story) Stuck() *Story {
	s.HostFailed().Vote("lb1", deploy.VoteAborted, "")
	s.Last.State, s.Last.NextCommand = deploy.Stuck, "systemctl start cutover-lbagent"
	s.Last.Reason += "; lb2 has not proved that it is restored"
	return s.Step(deploy.StepRestoreStuck, s.Last.Reason)
}

// TaskFailed is a Deploy whose new tasks never become healthy.
func (s *Story) TaskFailed() *Story {
	task := &s.Last.Tasks[1]
	task.State, task.Health, task.Message = "failed", "unhealthy", "exited with status 1"
	s.add(deploy.Event{At: s.later(), Type: "task", Task: task.ID, Msg: "ended: exited with status 1"})
	s.Last.ReasonCode = string(deploy.CodeTaskExits)
	s.Last.Reason = fmt.Sprintf("instance 1 ended 2 times before it was in service, last as task %s: exited with status 1", task.ID)
	s.Step(deploy.StepExplaining, s.Last.Reason)
	s.Last.Reason += "\nlast output:\nlistening\npanic: no database\x07"
	s.Last.State, s.Last.NextCommand = deploy.RolledBack, "cutover logs "+task.ID
	return s.end()
}

// Aborted is a Deploy that someone ended.
func (s *Story) Aborted() *Story {
	s.Last.State, s.Last.ReasonCode, s.Last.Reason = deploy.Aborted, string(deploy.CodeAborted), "aborted by ana: wrong branch"
	return s.end()
}

// Unchanged is a Deploy with nothing to do.
func (s *Story) Unchanged() *Story {
	at := At(s.clock)
	s.Last.State, s.Last.ReasonCode, s.Last.Reason, s.Last.FinishedAt = deploy.Succeeded, string(deploy.CodeUnchanged), "the committed spec has this content already", &at
	s.Last.Spec, s.Last.Tasks = 1, []deploy.TaskView{}
	return s.Step(deploy.StepDone, "")
}

// Tell gives the Service all of the story at once.
func (s *Story) Tell(to *Service) {
	for _, e := range s.Events {
		to.Emit(e)
	}
}
