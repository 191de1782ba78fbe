package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// CommandError is HAProxy's own no to a runtime command.
type CommandError struct {
	Command string
	Reply   string
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("haproxy answered %q to %q", strings.TrimSpace(e.Reply), e.Command)
}

const (
	// maxAnswer bounds what is read of one batch: 1,000 Apps of 20 upstreams are about 8 MB of statistics.
	maxAnswer = 64 << 20
	// maxBatch is the length of a line of joined commands; HAProxy's limit is tune.bufsize, 16 KiB unless lowered.
	maxBatch = 6 << 10
	// commandTimeout bounds one connection to a command line.
	commandTimeout = 10 * time.Second
)

// commandLine is a client of one of HAProxy's command lines (the worker's stats socket or the master's). Each batch has a
// connection of its own, so an answer is always of the process that accepted it, and nothing is ever sent twice.
type commandLine struct {
	socket string
}

// ask sends the commands on one connection and returns one answer for each. The connection ends after the last, so the
// answers are complete or there is an error: a truncated one is never returned.
//
// That the caller gave up is told as that, and not as a HAProxy that does not answer: others may share the answer.
func (c commandLine) ask(ctx context.Context, commands ...string) ([]string, error) {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, downError(c.socket, gaveUp(caller, err))
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	_ = conn.SetDeadline(end)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, strings.Join(commands, ";")+"\n"); err != nil {
		return nil, downError(c.socket, gaveUp(caller, err))
	}
	// The master's command line ends the connection only when it sees that nothing more will come.
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		return nil, downError(c.socket, gaveUp(caller, err))
	}
	text, err := io.ReadAll(io.LimitReader(conn, maxAnswer+1))
	switch {
	case err != nil:
		return nil, downError(c.socket, gaveUp(caller, err))
	case len(text) > maxAnswer:
		return nil, fmt.Errorf("%s: the answer has more than %d bytes", c.socket, maxAnswer)
	}
	answers := splitAnswers(string(text))
	if len(answers) != len(commands) {
		// A process that ends while it answers gives fewer; the caller reads the state again.
		return nil, fmt.Errorf("%w: %s: %d answers to %d commands: %.300q", driver.ErrProxyDown, c.socket, len(answers), len(commands), text)
	}
	return answers, nil
}

// succeeded tells a known success from everything else. HAProxy has no status codes: silence is success, and a few
// commands say so in words. Deleting what is not there is what was asked for.
func succeeded(command, answer string) bool {
	switch strings.TrimSpace(answer) {
	case "", "New server registered.", "Server deleted.", "Done.":
		return true
	case "Key not found.":
		return strings.HasPrefix(command, "del map ")
	}
	return false
}

// splitAnswers splits the output of joined commands: each answer ends with an empty line, an empty answer is one.
func splitAnswers(text string) []string {
	var answers []string
	begin, at := 0, 0
	for line := range strings.Lines(text) {
		if line == "\n" {
			answers = append(answers, text[begin:at])
			begin = at + 1
		}
		at += len(line)
	}
	if begin < len(text) {
		answers = append(answers, text[begin:])
	}
	return answers
}

// downError says that nothing answers, and keeps the reason.
func downError(socket string, err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", socket, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: %w: let lbagent's user open it (\"mode\", \"user\" or \"group\" of the socket in the owner's configuration)", socket, err)
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nothing listens on %s (%w): start haproxy, or correct the path", driver.ErrProxyDown, socket, err)
	}
	return fmt.Errorf("%w: %s: %w", driver.ErrProxyDown, socket, err)
}

// gaveUp is the end of the caller's patience if err came of that. The connection's own deadline may pass a moment before
// that of ctx is told.
func gaveUp(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if end, ok := ctx.Deadline(); ok && errors.Is(err, os.ErrDeadlineExceeded) && !time.Now().Before(end) {
		return context.DeadlineExceeded
	}
	return err
}

// escape quotes what the command line takes for itself.
func escape(word string) string {
	return strings.NewReplacer(`\`, `\\`, `;`, `\;`, ` `, `\ `, `<`, `\<`).Replace(word)
}
