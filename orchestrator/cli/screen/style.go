package screen

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Style is how lines look. The zero value is plain text for files and pipes.
type Style struct {
	// Color allows colours.
	Color bool
	// Marks allows the signs of a terminal in the place of words.
	Marks bool
}

func (s Style) paint(code, text string) string {
	if !s.Color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s Style) good(text string) string { return s.paint("32", text) }
func (s Style) bad(text string) string  { return s.paint("31", text) }
func (s Style) warn(text string) string { return s.paint("33", text) }
func (s Style) dim(text string) string  { return s.paint("2", text) }
func (s Style) bold(text string) string { return s.paint("1", text) }

// Clean makes one printable line of a text from elsewhere: what a task or a proxy printed must not move the cursor.
func Clean(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	return strings.TrimRight(strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r':
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, text), " ")
}

// Lines splits a text from elsewhere into printable lines, of which the last n are returned.
func Lines(text string, n int) []string {
	text = strings.Trim(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	for i := range lines {
		lines[i] = Clean(lines[i])
	}
	return lines
}

// firstLine is the first line of a text, and the rest.
func firstLine(text string) (first, rest string) {
	first, rest, _ = strings.Cut(strings.TrimSpace(text), "\n")
	return Clean(first), rest
}

func indent(lines []string, by string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = by + l
	}
	return out
}

// Duration writes a time span with the precision that matters to people.
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return fmt.Sprintf("%.2fs", d.Seconds())
	case d < 100*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	default:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
}

// Cut shortens a line to a width, counting neither colours nor bytes. Colours are closed.
func Cut(line string, width int) string {
	if width <= 0 || visible(line) <= width {
		return line
	}
	var b strings.Builder
	n, colored := 0, false
	for i := 0; i < len(line); {
		if end := escape(line[i:]); end > 0 {
			colored = true
			b.WriteString(line[i : i+end])
			i += end
			continue
		}
		if n == width-1 {
			break
		}
		r, size := utf8.DecodeRuneInString(line[i:])
		b.WriteRune(r)
		i, n = i+size, n+1
	}
	b.WriteString("…")
	if colored {
		b.WriteString("\x1b[0m")
	}
	return b.String()
}

// escape returns the length of the colour sequence at the start of s, or 0.
func escape(s string) int {
	if !strings.HasPrefix(s, "\x1b[") {
		return 0
	}
	if end := strings.IndexByte(s, 'm'); end > 0 {
		return end + 1
	}
	return 0
}

func visible(line string) int {
	n := 0
	for i := 0; i < len(line); {
		if end := escape(line[i:]); end > 0 {
			i += end
			continue
		}
		_, size := utf8.DecodeRuneInString(line[i:])
		i, n = i+size, n+1
	}
	return n
}

// table lays out rows under a head. Cells may be coloured.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) lines(s Style) []string {
	widths := make([]int, len(t.head))
	for i, h := range t.head {
		widths[i] = visible(h)
	}
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], visible(cell))
		}
	}
	out := []string{s.dim(t.line(t.head, widths))}
	for _, row := range t.rows {
		out = append(out, t.line(row, widths))
	}
	return out
}

func (t *table) line(cells []string, widths []int) string {
	var b strings.Builder
	for i, cell := range cells {
		b.WriteString(cell)
		if i < len(cells)-1 {
			b.WriteString(strings.Repeat(" ", widths[i]-visible(cell)+2))
		}
	}
	return strings.TrimRight(b.String(), " ")
}

func yesNo(s Style, yes bool) string {
	if yes {
		return s.good("yes")
	}
	return s.bad("no")
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
