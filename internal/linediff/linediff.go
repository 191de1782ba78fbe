package linediff

import (
	"fmt"
	"strings"
)

const (
	// context is the number of equal lines around a change.
	context = 3
	// maxCells bounds the table of the comparison. Longer changes are told as one block taken out and one put in.
	maxCells = 1 << 20
)

// op is one line of an edit script: ' ', '-' or '+'.
type op struct {
	kind byte
	line string
}

// Unified returns the unified diff from a to b under the two names, without more than limit bytes; "" if they are equal.
func Unified(aName, a, bName, b string, limit int) string {
	if a == b {
		return ""
	}
	ops := compare(lines(a), lines(b))
	var out strings.Builder
	fmt.Fprintf(&out, "--- %s\n+++ %s\n", aName, bName)
	for at := 0; at < len(ops); {
		if ops[at].kind == ' ' {
			at++
			continue
		}
		from, to := max(at-context, 0), at
		for end, equal := at, 0; end < len(ops) && equal <= 2*context; end++ {
			if ops[end].kind == ' ' {
				equal++
			} else {
				equal, to = 0, end+1
			}
		}
		hunk(&out, ops, from, min(to+context, len(ops)))
		at = to
		if out.Len() > limit {
			break
		}
	}
	return clip(out.String(), limit)
}

func hunk(out *strings.Builder, ops []op, from, to int) {
	aLine, bLine := 1, 1
	for _, o := range ops[:from] {
		aLine, bLine = advance(o, aLine, bLine)
	}
	aEnd, bEnd := aLine, bLine
	for _, o := range ops[from:to] {
		aEnd, bEnd = advance(o, aEnd, bEnd)
	}
	fmt.Fprintf(out, "@@ -%d,%d +%d,%d @@\n", min(aLine, aEnd), aEnd-aLine, min(bLine, bEnd), bEnd-bLine)
	for _, o := range ops[from:to] {
		fmt.Fprintf(out, "%c%s\n", o.kind, o.line)
	}
}

func advance(o op, a, b int) (int, int) {
	if o.kind != '+' {
		a++
	}
	if o.kind != '-' {
		b++
	}
	return a, b
}

func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// compare is a shortest edit script, by the longest common subsequence of what is between the common start and end.
func compare(a, b []string) []op {
	start := 0
	for start < len(a) && start < len(b) && a[start] == b[start] {
		start++
	}
	end := 0
	for end < len(a)-start && end < len(b)-start && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	var out []op
	for _, line := range a[:start] {
		out = append(out, op{' ', line})
	}
	out = append(out, middle(a[start:len(a)-end], b[start:len(b)-end])...)
	for _, line := range a[len(a)-end:] {
		out = append(out, op{' ', line})
	}
	return out
}

func middle(a, b []string) []op {
	var out []op
	if len(a)*len(b) > maxCells {
		for _, line := range a {
			out = append(out, op{'-', line})
		}
		for _, line := range b {
			out = append(out, op{'+', line})
		}
		return out
	}
	common := make([][]int, len(a)+1) // common[i][j]: of a[i:] and b[j:]
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			out = append(out, op{' ', a[i]})
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			out = append(out, op{'-', a[i]})
			i++
		default:
			out = append(out, op{'+', b[j]})
			j++
		}
	}
	return out
}

// clip cuts a text at the end of a line within limit bytes, and says so.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	cut := strings.LastIndexByte(s[:limit], '\n') + 1
	return s[:cut] + "(the rest is left out)\n"
}
