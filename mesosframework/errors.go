package mesosframework

import (
	"errors"
	"fmt"
)

// Errors that end a Framework for good (Framework.Err), and those of its methods.
var (
	// ErrFailedOver: another scheduler subscribed with our framework id. Stop
	// acting; lead again before a new Framework is started.
	ErrFailedOver = errors.New("mesosframework: another scheduler took over this framework id")
	// ErrFrameworkRemoved: the master has torn the framework down (failover
	// timeout, or an operator). Its tasks are gone; a new id is an operator's decision.
	ErrFrameworkRemoved = errors.New("mesosframework: the master has removed this framework; its tasks were killed; to start anew, clear the saved framework id")
	// ErrUnauthorized: the master refused the credentials.
	ErrUnauthorized = errors.New("mesosframework: the master refused the credentials")
	// ErrRefused: the master refused the subscription or ended it with an error.
	ErrRefused = errors.New("mesosframework: the master refused the framework")
	// ErrStopped: the Framework is stopped, or was not started.
	ErrStopped = errors.New("mesosframework: not running")
	// ErrUnknownTask: no such task.
	ErrUnknownTask = errors.New("mesosframework: unknown task")
	// ErrDuplicateTask: a task of this id waits or runs.
	ErrDuplicateTask = errors.New("mesosframework: a task of this id exists")
	// ErrTooManyPending: Options.MaxPending tasks wait already.
	ErrTooManyPending = errors.New("mesosframework: too many tasks wait for offers")
	// ErrNotFound: no such file in the sandbox, or no such sandbox.
	ErrNotFound = errors.New("mesosframework: no such file")
)

// Reasons for which a subscription ends; another one follows.
var (
	errHeartbeat  = errors.New("no event from the master within 5 heartbeat intervals")
	errBacklog    = errors.New("a queue is full: the store or the Listener is too slow")
	errResolve    = errors.New("no leading master found")
	errOutcome    = errors.New("the outcome of a launch is unknown")
	errStreamOver = errors.New("the master closed the stream")
)

// fatalError marks an error after which subscribing again would do harm or nothing.
type fatalError struct{ error }

func (e fatalError) Unwrap() error { return e.error }

func fatal(sentinel error, format string, args ...any) error {
	return fatalError{fmt.Errorf("%w: "+format, append([]any{sentinel}, args...)...)}
}

func isFatal(err error) bool {
	var f fatalError
	return errors.As(err, &f)
}
