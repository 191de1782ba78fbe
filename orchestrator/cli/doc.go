// Package cli is the command line of release engineers and CI: it asks the orchestrator's API, waits, and says what happened.
// The words, exit codes and outputs are a stable contract (README, For CI).
//
// Invariants:
//   - A command follows the one Deploy that it started or was given, never "the newest".
//   - The exit code comes from the Deploy's own state (deploy.ExitCode), and 3 (failed, everything is back) is never mixed up with
//     4 (failed, and not yet safe).
//   - With -o json or jsonl the last line of standard output is one JSON object: the Deploy, or the problem (RFC 9457) that refused
//     it. All else goes to standard error.
//   - Interrupting a command detaches from the Deploy and never aborts it.
//   - Every wait has a limit (--timeout), and every request one of its own.
package cli
