// Package agent is a local Mesos agent: it runs command tasks as real
// processes, keeps what it must not forget on disk, and serves the agent's HTTP
// endpoints.
//
// Layout under the agent's directory, the first as Mesos has it:
//
//	work/slaves/S/frameworks/F/executors/E/runs/CONTAINER   sandbox (latest: symlink)
//	meta/agent.json                                         id, format version
//	meta/frameworks/F.json                                  FrameworkInfo
//	meta/tasks/CONTAINER/task.json                          the task
//	meta/tasks/CONTAINER/updates                            log of updates and acknowledgements
//	meta/tasks/CONTAINER/{spec,lock,supervisor,started,exit} the warden's files
//
// Invariants:
//
//   - A status update is on disk before the master hears of it.
//   - A task's processes outlive the agent; an agent that starts on the same
//     directory adopts them, sends what was not acknowledged again, and reports
//     what ended meanwhile with its real exit status.
//   - The state of a task belongs to that task's actor, the list of tasks to
//     the agent's actor; neither waits for the other.
//   - Nothing outside a sandbox is ever read for a client.
package agent
