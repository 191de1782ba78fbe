package haproxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Parsers of what HAProxy's command lines answer. They are pure, find columns by the header that HAProxy sends (columns
// are added between versions), and say no to what they do not understand rather than guess.

// version is HAProxy's own, as "show info" and "show proc" give it.
type version struct{ major, minor, patch int }

func (v version) atLeast(major, minor int) bool {
	return v.major > major || v.major == major && v.minor >= minor
}

func parseVersion(text string) (version, error) {
	number, _, _ := strings.Cut(strings.TrimSpace(text), "-")
	parts := strings.Split(number, ".")
	var v version
	for i, p := range []*int{&v.major, &v.minor, &v.patch} {
		if i >= len(parts) {
			if i < 2 {
				return v, fmt.Errorf("version %.40q: want major.minor", text)
			}
			break
		}
		digits := parts[i]
		for j, r := range digits {
			if r < '0' || r > '9' {
				digits = digits[:j]
				break
			}
		}
		n, err := strconv.Atoi(digits)
		if err != nil {
			return v, fmt.Errorf("version %.40q: want major.minor", text)
		}
		*p = n
	}
	return v, nil
}

// info is the part of "show info" that is used.
type info struct {
	pid      int
	stopping bool
	version  string
	name     string
}

func parseInfo(text string) (info, error) {
	var out info
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		switch key {
		case "Name":
			out.name = value
		case "Version":
			out.version = value
		case "Pid":
			n, err := strconv.Atoi(value)
			if err != nil {
				return info{}, fmt.Errorf("show info: Pid %.20q", value)
			}
			out.pid = n
		case "Stopping":
			out.stopping = value != "0"
		}
	}
	if out.pid <= 0 || out.version == "" {
		return info{}, fmt.Errorf("show info: no Pid and Version in %.200q", text)
	}
	return out, nil
}

// processes is what the master knows of itself and its workers.
type processes struct {
	master  int
	version string
	failed  int // reloads that failed since the last one that worked
	current []int
	leaving []int
}

func parseProcesses(text string) (processes, error) {
	var out processes
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if strings.HasPrefix(line, "#") {
			section = strings.TrimSpace(strings.TrimPrefix(line, "#"))
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 3 {
			return processes{}, fmt.Errorf("show proc: %.100q", line)
		}
		pid, err := strconv.Atoi(fields[0])
		if err != nil || pid <= 0 {
			return processes{}, fmt.Errorf("show proc: pid in %.100q", line)
		}
		switch fields[1] {
		case "master":
			out.master = pid
			out.version = fields[len(fields)-1]
			if _, rest, ok := strings.Cut(line, "[failed:"); ok {
				number, _, _ := strings.Cut(rest, "]")
				if out.failed, err = strconv.Atoi(strings.TrimSpace(number)); err != nil {
					return processes{}, fmt.Errorf("show proc: failed reloads in %.100q", line)
				}
			}
		case "worker":
			if section == "old workers" {
				out.leaving = append(out.leaving, pid)
			} else {
				out.current = append(out.current, pid)
			}
		}
	}
	if out.master == 0 {
		return processes{}, fmt.Errorf("show proc: no master in %.200q", text)
	}
	return out, nil
}

// statRow is one server in "show stat", or a frontend: of that only sessions, its clients, are told.
type statRow struct {
	backend, server string
	frontend        bool
	status          string
	weight          int    // as it is in force
	checkStatus     string // without the "* " of a check in flight
	checking        bool   // a check is in flight
	rise, fall      int
	health          int
	sessions        int // current and queued
}

// The columns that are used, in the order in which columns finds them.
var (
	statColumns  = []string{"pxname", "svname", "type", "status", "check_status", "qcur", "scur", "check_rise", "check_fall", "check_health", "weight"}
	stateColumns = []string{"be_name", "srv_name", "srv_addr", "srv_port", "srv_op_state", "srv_admin_state", "srv_uweight", "srv_check_state"}
)

// columns finds the named columns in a header.
func columns(what string, header, named []string) ([]int, error) {
	at := make([]int, len(named))
	for i, name := range named {
		if at[i] = slices.Index(header, name); at[i] < 0 {
			return nil, fmt.Errorf("%s: no column %s in %.200q", what, name, strings.Join(header, ","))
		}
	}
	return at, nil
}

// number reads what is not negative; "" is 0.
func number(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err == nil && n < 0 {
		err = strconv.ErrRange
	}
	return n, err
}

// nextRecord takes one row off CSV as HAProxy writes it: a field that holds a comma, a quote or a line break is quoted.
// The fields are written into fields, which is reused: a Host with thousands of servers is read often.
func nextRecord(text string, fields []string) (_ []string, rest string) {
	fields = fields[:0]
	for {
		if strings.HasPrefix(text, `"`) {
			end := 1
			for end < len(text) && (text[end] != '"' || end+1 < len(text) && text[end+1] == '"') {
				if text[end] == '"' {
					end++
				}
				end++
			}
			fields = append(fields, text[1:min(end, len(text))])
			text = text[min(end+1, len(text)):]
		} else {
			end := strings.IndexAny(text, ",\n")
			if end < 0 {
				end = len(text)
			}
			fields = append(fields, text[:end])
			text = text[end:]
		}
		if !strings.HasPrefix(text, ",") {
			return fields, strings.TrimPrefix(text, "\n")
		}
		text = text[1:]
	}
}

func parseStat(text string) ([]statRow, error) {
	header, text := nextRecord(strings.TrimPrefix(text, "# "), nil)
	at, err := columns("show stat", header, statColumns)
	if err != nil {
		return nil, err
	}
	rows := make([]statRow, 0, strings.Count(text, "\n")+1)
	record := make([]string, 0, len(header))
	for text != "" {
		record, text = nextRecord(text, record)
		if len(record) == 1 && record[0] == "" {
			continue
		}
		if len(record) < len(header)-1 { // the header ends in a comma
			return nil, fmt.Errorf("show stat: a row of %d columns under %d", len(record), len(header))
		}
		row := statRow{backend: record[at[0]], server: record[at[1]], status: record[at[3]]}
		switch record[at[2]] {
		case "0":
			row.frontend = true
		case "2": // servers
		default:
			continue
		}
		row.checkStatus, row.checking = strings.CutPrefix(record[at[4]], "* ")
		var queued int
		for i, into := range [...]*int{&queued, &row.sessions, &row.rise, &row.fall, &row.health, &row.weight} {
			if *into, err = number(record[at[5+i]]); err != nil {
				return nil, fmt.Errorf("show stat: %s of %s/%s is %.20q", statColumns[5+i], row.backend, row.server, record[at[5+i]])
			}
		}
		row.sessions += queued
		rows = append(rows, row)
	}
	return rows, nil
}

// stateRow is one server in "show servers state".
type stateRow struct {
	backend, server string
	address         netip.AddrPort
	running         bool // not stopped by its checks
	admin           int  // bits of srv_admin_state
	weight          int  // as the operator set it
	checkState      int  // bits of srv_check_state
	line            string
}

// Bits of srv_admin_state and srv_check_state.
const (
	adminForced = 0x01
	adminMaint  = adminForced | 0x02 | 0x04 | 0x20 | 0x40 // inherited, by configuration, by resolution, by host name
	adminDrain  = 0x08 | 0x10

	checkInProgress = 0x01
	checkConfigured = 0x02
	checkEnabled    = 0x04
)

func (r stateRow) maint() bool { return r.admin&adminMaint != 0 }
func (r stateRow) drain() bool { return r.admin&adminDrain != 0 }

// parseServersState reads "show servers state". The first line is the format version, the second the header.
func parseServersState(text string) (header string, rows []stateRow, err error) {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) < 2 || strings.TrimSpace(lines[0]) != "1" || !strings.HasPrefix(lines[1], "# ") {
		return "", nil, fmt.Errorf("show servers state: want format 1 and a header, got %.200q", text)
	}
	header = lines[0] + "\n" + lines[1] + "\n"
	names := strings.Fields(strings.TrimPrefix(lines[1], "# "))
	at, err := columns("show servers state", names, stateColumns)
	if err != nil {
		return "", nil, err
	}
	rows = make([]stateRow, 0, len(lines)-2)
	fields := make([]string, 0, len(names))
	for _, line := range lines[2:] {
		fields = fields[:0]
		for f := range strings.FieldsSeq(line) {
			fields = append(fields, f)
		}
		if len(fields) == 0 {
			continue
		}
		if len(fields) < len(names) {
			return "", nil, fmt.Errorf("show servers state: %d columns under %d: %.200q", len(fields), len(names), line)
		}
		row := stateRow{backend: fields[at[0]], server: fields[at[1]], line: line}
		var port, op int
		for i, into := range [...]*int{&port, &op, &row.admin, &row.weight, &row.checkState} {
			if *into, err = number(fields[at[3+i]]); err != nil {
				return "", nil, fmt.Errorf("show servers state: %s of %s/%s is %.20q", stateColumns[3+i], row.backend, row.server, fields[at[3+i]])
			}
		}
		row.running = op != 0
		if addr, err := netip.ParseAddr(fields[at[2]]); err == nil && port < 1<<16 {
			row.address = netip.AddrPortFrom(addr, uint16(port))
		}
		rows = append(rows, row)
	}
	return header, rows, nil
}

// mapEntry is one line of "show map".
type mapEntry struct{ id, key, value string }

func parseMap(text string) ([]mapEntry, error) {
	var out []mapEntry
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if line == "" {
			continue
		}
		id, rest, ok := strings.Cut(line, " ")
		key, value, ok2 := strings.Cut(rest, " ")
		if !ok || !ok2 || !strings.HasPrefix(id, "0x") || key == "" {
			return nil, fmt.Errorf("show map: %.200q", line)
		}
		out = append(out, mapEntry{id, key, value})
	}
	return out, nil
}

// session is one line of "show sess".
type session struct{ id, backend, server string }

// parseSessions reads "show sess": "0x55…: proto=tcpv4 src=… fe=… be=… srv=… …". What is no session is left out.
func parseSessions(text string) []session {
	var out []session
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || !strings.HasPrefix(fields[0], "0x") || !strings.HasSuffix(fields[0], ":") {
			continue
		}
		s := session{id: strings.TrimSuffix(fields[0], ":")}
		for _, f := range fields[1:] {
			if v, ok := strings.CutPrefix(f, "be="); ok {
				s.backend = v
			} else if v, ok := strings.CutPrefix(f, "srv="); ok {
				s.server = v
			}
		}
		out = append(out, s)
	}
	return out
}

// parseVar reads `get var proc.x`: "proc.x: type=str value=<...>". An unset variable is "".
func parseVar(text string) string {
	_, rest, ok := strings.Cut(text, "value=<")
	if !ok {
		return ""
	}
	value, _, ok := strings.Cut(rest, ">")
	if !ok {
		return ""
	}
	return value
}
