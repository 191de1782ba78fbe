// Package linediff makes unified diffs of texts, for people.
package linediff
