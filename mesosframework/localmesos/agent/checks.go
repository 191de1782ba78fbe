package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/localmesos/executor"
)

// startChecks runs the health check and the check until stopChecks or the
// task's end. Checks go to the agent's address: local agents share one machine,
// and each is one address of it.
func (t *task) startChecks() {
	ctx, cancel := context.WithCancel(t.ctx)
	t.stopChecks = cancel
	if h := t.info.HealthCheck; h != nil {
		t.waits.Go(func() {
			every(ctx, seconds(h.DelaySeconds, 15), seconds(h.IntervalSeconds, 10), seconds(h.TimeoutSeconds, 20), func(ctx context.Context) {
				ok := t.healthy(ctx, h)
				t.actor.Post(func() { t.step(executor.Health{OK: ok}) })
			})
		})
	}
	if c := t.info.Check; c != nil {
		t.waits.Go(func() {
			every(ctx, seconds(c.DelaySeconds, 15), seconds(c.IntervalSeconds, 10), seconds(c.TimeoutSeconds, 20), func(ctx context.Context) {
				status := t.checkOnce(ctx, c)
				t.actor.Post(func() { t.step(executor.Check{Status: status}) })
			})
		})
	}
}

// every runs one check after delay and then interval after the end of the one
// before, each with its deadline, until ctx ends.
func every(ctx context.Context, delay, interval, timeout time.Duration, run func(context.Context)) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		one, cancel := context.WithTimeout(ctx, timeout)
		run(one)
		cancel()
		timer.Reset(interval)
	}
}

func (t *task) healthy(ctx context.Context, h *mesos.HealthCheck) bool {
	switch h.Type {
	case mesos.HealthCheck_COMMAND:
		code, ok := t.command(ctx, h.Command)
		return ok && code == 0
	case mesos.HealthCheck_TCP:
		return dial(ctx, t.agent.opts.IP, h.TCP.Port)
	case mesos.HealthCheck_HTTP:
		scheme := "http"
		if h.HTTP.Scheme != nil {
			scheme = *h.HTTP.Scheme
		}
		code, ok := get(ctx, scheme, t.agent.opts.IP, h.HTTP.Port, h.HTTP.GetPath())
		return ok && code >= 200 && code < 400
	default: // no such check passes validation
		return false
	}
}

// checkOnce returns the status; a check that gave no answer says nothing.
func (t *task) checkOnce(ctx context.Context, c *mesos.CheckInfo) mesos.CheckStatusInfo {
	status := executor.EmptyCheck(c.Type)
	switch c.Type {
	case mesos.CheckInfo_COMMAND:
		if code, ok := t.command(ctx, &c.Command.Command); ok {
			status.Command.ExitCode = &code
		}
	case mesos.CheckInfo_TCP:
		ok := dial(ctx, t.agent.opts.IP, c.TCP.Port)
		status.TCP.Succeeded = &ok
	case mesos.CheckInfo_HTTP:
		if code, ok := get(ctx, "http", t.agent.opts.IP, c.HTTP.Port, c.HTTP.GetPath()); ok {
			n := uint32(code)
			status.HTTP.StatusCode = &n
		}
	default: // no such check passes validation
	}
	return status
}

// command runs a check command in the sandbox with the task's environment and
// returns its exit code; ok is false when it was not run or not to its end.
func (t *task) command(ctx context.Context, c *mesos.CommandInfo) (code int32, ok bool) {
	vars := map[string]string{}
	for _, kv := range t.environment() {
		for i := range kv {
			if kv[i] == '=' {
				vars[kv[:i]] = kv[i+1:]
				break
			}
		}
	}
	setVariables(vars, c.Environment)
	env := flatten(vars)
	path, args := argv(c, env, t.sandbox())
	cmd := exec.CommandContext(ctx, path)
	cmd.Args, cmd.Env, cmd.Dir = args, env, t.sandbox()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return 0, false
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, true
	case errors.As(err, &exit) && exit.Exited():
		return int32(exit.ExitCode()), true
	}
	return 0, false
}

func dial(ctx context.Context, ip string, port uint32) bool {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(ip, strconv.Itoa(int(port))))
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// get asks for the status code of a path, following redirects, on a connection
// of its own.
func get(ctx context.Context, scheme, ip string, port uint32, path string) (code int, ok bool) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		// As Mesos: a health check proves an answer, not an identity.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
	}
	client := http.Client{Transport: transport}
	if path == "" {
		path = "/"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		scheme+"://"+net.JoinHostPort(ip, strconv.Itoa(int(port)))+path, bytes.NewReader(nil))
	if err != nil {
		return 0, false
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, false
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	return resp.StatusCode, true
}
