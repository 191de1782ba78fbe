package driver

import (
	"errors"
	"fmt"
)

// Errors that tell a participant what kind of no it got. Wrap them with the place and the next step.
var (
	ErrBusy          = errors.New("the proxy is being reloaded")
	ErrProxyDown     = errors.New("the proxy does not answer")
	ErrProxyMismatch = errors.New("the running proxy is not the one that was configured")
)

// NotListeningError is an ErrProxyMismatch of a proxy that is the right one and does not listen: where its frontends can be
// disabled on its socket, somebody's command is the likely cause.
type NotListeningError struct{ Text string }

// Error returns the text: what does not listen where, and what to do.
func (e *NotListeningError) Error() string { return e.Text }

// Unwrap returns ErrProxyMismatch.
func (e *NotListeningError) Unwrap() error { return ErrProxyMismatch }

// MaxOutput bounds the checker output that a RefusedError carries, in bytes. The end is kept: that is where checkers
// say what is wrong.
const MaxOutput = 16 << 10

// RefusedError is the answer of the proxy's own checker.
type RefusedError struct {
	Checker string // the command that was run
	Output  string // what it printed, at most MaxOutput
	Err     error
}

// Error names the checker and the last line that it printed.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s refused the configuration: %v: %s", e.Checker, e.Err, e.Output)
}

// Unwrap returns the error of the run itself.
func (e *RefusedError) Unwrap() error { return e.Err }
