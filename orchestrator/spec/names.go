package spec

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// validName is the rule for names of Apps and Groups: a DNS label.
func validName(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return only(s, "abcdefghijklmnopqrstuvwxyz0123456789-")
}

func validHost(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for _, part := range strings.Split(s, ".") {
		if !validName(part) {
			return false
		}
	}
	return true
}

const (
	letters  = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits   = "0123456789"
	pathSafe = letters + digits + "-._~/"
)

// normalPath is the one form of a route's path: no trailing slash, no empty, "." or ".." segment. The characters are
// those that no proxy's configuration can misread.
func normalPath(p string) (clean, why string) {
	if p[0] != '/' {
		return p, "must start with /"
	}
	if !only(p, pathSafe) {
		return p, "may hold only letters, digits and -._~/"
	}
	if p == "/" {
		return p, ""
	}
	p = strings.TrimSuffix(p, "/")
	for _, part := range strings.Split(p[1:], "/") {
		switch part {
		case "":
			return p, "has an empty segment"
		case ".", "..":
			return p, "has a segment " + part
		}
	}
	return p, ""
}

func validCheckPath(p string) bool {
	return p != "" && p[0] == '/' && only(p, pathSafe+"?&=%+:@,")
}

func validEnvName(s string) bool {
	return s != "" && len(s) <= 256 && !strings.Contains(digits, s[:1]) && only(s, letters+digits+"_")
}

// reservedEnv says who sets the variable, if it is not the App's to set.
func reservedEnv(s string) string {
	switch {
	case s == "HOST", s == "PORT", s == "TASK_ID", strings.HasPrefix(s, "CUTOVER_"):
		return "Cutover"
	case strings.HasPrefix(s, "PORT") && only(s[4:], digits):
		return "Cutover"
	case strings.HasPrefix(s, "MESOS_"), strings.HasPrefix(s, "LIBPROCESS_"):
		return "Mesos"
	}
	return ""
}

func validPattern(s string) error {
	_, err := regexp.Compile(s)
	return err
}

func only(s, set string) bool {
	for i := 0; i < len(s); i++ {
		if strings.IndexByte(set, s[i]) < 0 {
			return false
		}
	}
	return true
}

// unreadable says why a text is refused: what a terminal, a log or a YAML reader would not show as it is.
func unreadable(s string) string {
	if !utf8.ValidString(s) {
		return "is not UTF-8"
	}
	for _, r := range s {
		if r == '\n' || r == '\t' {
			continue
		}
		if unicode.IsControl(r) || r == '\ufeff' || r == '\ufffe' || r == '\uffff' {
			return fmt.Sprintf("holds the control character %U", r)
		}
	}
	return ""
}
