// Package pidfd tells at once, without polling, when a process ends that is not a child of ours.
package pidfd
