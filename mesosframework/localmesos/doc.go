// Package localmesos is an in-process Mesos cluster for one machine: a master
// and agents that speak the Mesos v1 HTTP API and run tasks as real processes.
// A framework does not know that it talks to it.
//
// It is honest. What a real Mesos refuses, it refuses, with the same status and
// text: package replay compares it, call by call, with recordings of a real
// one. What it does not have answers 501 and says so.
//
// # What is there
//
// Scheduler API v1 (JSON and protobuf): SUBSCRIBE, TEARDOWN, ACCEPT with
// LAUNCH, DECLINE, REVIVE, SUPPRESS, KILL, ACKNOWLEDGE, RECONCILE, REQUEST,
// UPDATE_FRAMEWORK; all their events, RESCIND, FAILURE, HEARTBEAT. Command
// tasks with fetcher, environment, kill policy, health checks and checks (HTTP,
// TCP, COMMAND), max_completion_time. Agents that restart, get lost and come
// back. Operator calls GET_HEALTH, GET_VERSION, GET_MASTER, GET_AGENTS,
// GET_FRAMEWORKS, GET_TASKS, TEARDOWN, DRAIN_AGENT, DEACTIVATE_AGENT,
// REACTIVATE_AGENT, MARK_AGENT_GONE; on agents GET_HEALTH, GET_VERSION,
// LIST_FILES, READ_FILE. Endpoints /redirect, /health, /version, /state,
// /slaves, /frameworks, /tasks, /teardown, /metrics/snapshot; on agents /state,
// /health, /version, /containers, /monitor/statistics, /metrics/snapshot and
// /files/{browse,read,download,debug}.
//
// # What is not there
//
// Answered with 501: the calls SHUTDOWN, MESSAGE, ACCEPT_INVERSE_OFFERS,
// DECLINE_INVERSE_OFFERS, RECONCILE_OPERATIONS; every other operator call, the
// operator event stream too; the executor and resource provider APIs; /roles,
// /state-summary, /weights, /quota, /maintenance/*, /machine/*, /reserve,
// /unreserve, /create-volumes, /destroy-volumes, /flags.
//
// Answered as Mesos answers what it cannot do: LAUNCH_GROUP (TASK_ERROR),
// executors (TASK_ERROR), reservations and volumes (OPERATION_ERROR),
// containers and images (TASK_FAILED), resource limits (TASK_DROPPED).
//
// Not there at all: authentication, TLS, several masters, quota, weights,
// offer constraints, fault domains, a switch of users (tasks run as the user of
// this process), and limits: cpus and memory are counted, not enforced.
//
// # Where it differs on purpose
//
//   - A task that ends while its agent is away is reported with its real exit
//     status; the default command executor of Mesos loses it (TASK_FAILED,
//     "Executor terminated").
//   - DRAIN_AGENT with mark_gone keeps the grace of tasks; real masters cut it
//     for frameworks with TASK_KILLING_STATE.
//   - STARTING and RUNNING are both sent once the process runs.
//   - Health checks go to the agent's address, which differs from 127.0.0.1 for
//     all local agents but the first.
//
// # Invariants
//
//   - Tasks outlive this process. A cluster that starts on the same directory
//     adopts them: agent ids, tasks, updates that were not acknowledged.
//   - Nothing listens beyond loopback unless told to.
//   - Every goroutine ends with Stop; no task does (KillTasks is for that).
package localmesos
