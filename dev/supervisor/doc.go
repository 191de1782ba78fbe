// Package supervisor keeps the processes of one Host running: its proxy and its lbagent, as systemd does in production.
//
// It is a process of its own that outlives `cutover dev`, and its processes outlive it: each one leads its own session
// and process group, and is recorded with its pid and start time. A supervisor that starts finds what still runs and
// adopts it. When a process ends, whatever is left of its group is killed first (an nginx master that was killed
// leaves workers that hold the ports), then it is started again: at once, or, if it keeps dying, after a pause of at
// most MaxPause.
package supervisor
