package validate

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// ID checks an identifier of a framework, task or executor.
func ID(id string) string {
	switch {
	case id == "":
		return "ID must not be empty"
	case len(id) > 255:
		return "ID must not be greater than 255 characters"
	case id == "." || id == "..":
		return fmt.Sprintf("'%s' is disallowed", id)
	}
	for _, r := range id {
		if unicode.IsControl(r) || r == '/' || r == '\\' {
			return fmt.Sprintf("'%s' contains invalid characters", id)
		}
	}
	return ""
}

// Role checks the name of a role.
func Role(role string) string {
	switch {
	case role == "*":
		return ""
	case role == "":
		return "Empty role name is invalid"
	case strings.HasPrefix(role, "/"):
		return fmt.Sprintf("Role '%s' cannot start with a slash", role)
	case strings.HasSuffix(role, "/"):
		return fmt.Sprintf("Role '%s' cannot end with a slash", role)
	}
	for part := range strings.SplitSeq(role, "/") {
		switch {
		case part == "":
			return fmt.Sprintf("Role '%s' cannot contain two adjacent slashes", role)
		case part == "." || part == ".." || part == "*":
			return fmt.Sprintf("Role component '%s' is invalid", part)
		case strings.HasPrefix(part, "-"):
			return fmt.Sprintf("Role component '%s' is invalid because it begins with a dash", part)
		case strings.ContainsAny(part, "\t\n\v\f\r \b"):
			return fmt.Sprintf("Role component '%s' is invalid because it contains backspace or whitespace", part)
		}
	}
	return ""
}

// HasCapability reports whether a framework declares a capability.
func HasCapability(fw *mesos.FrameworkInfo, c mesos.FrameworkInfo_Capability_Type) bool {
	return slices.ContainsFunc(fw.Capabilities, func(x mesos.FrameworkInfo_Capability) bool { return x.Type == c })
}

// Roles returns the roles of a framework, in one form whether or not it is
// MULTI_ROLE.
func Roles(fw *mesos.FrameworkInfo) []string {
	if HasCapability(fw, mesos.FrameworkInfo_Capability_MULTI_ROLE) {
		return fw.Roles
	}
	if fw.Role == nil {
		return []string{"*"}
	}
	return []string{*fw.Role}
}

// Framework checks a FrameworkInfo.
func Framework(fw *mesos.FrameworkInfo) string {
	if fw.ID != nil && fw.ID.Value != "" {
		if e := ID(fw.ID.Value); e != "" {
			return e
		}
	}
	if HasCapability(fw, mesos.FrameworkInfo_Capability_MULTI_ROLE) {
		if fw.Role != nil && *fw.Role != "*" {
			return "'FrameworkInfo.role' must not be set when the framework is MULTI_ROLE capable"
		}
		if d := duplicates(fw.Roles); len(d) > 0 {
			return "'FrameworkInfo.roles' contains duplicate items: " + set(d)
		}
		for _, r := range fw.Roles {
			if e := Role(r); e != "" {
				return "'FrameworkInfo.roles' contains invalid role: " + e
			}
		}
	} else {
		if len(fw.Roles) > 0 {
			return "'FrameworkInfo.roles' must not be set when the framework is not MULTI_ROLE capable"
		}
		if fw.Role != nil {
			if e := Role(*fw.Role); e != "" {
				return "'FrameworkInfo.role' is not a valid role: " + e
			}
		}
	}
	// The limit is that of a 64-bit count of nanoseconds.
	if t := fw.GetFailoverTimeout(); math.IsNaN(t) || math.Abs(t) > float64(math.MaxInt64)/1e9 {
		return fmt.Sprintf("The framework failover_timeout (%s) is invalid", strconv.FormatFloat(t, 'g', -1, 64))
	}
	return ""
}

// SuppressedRoles checks that only roles of the framework are suppressed.
func SuppressedRoles(fw *mesos.FrameworkInfo, suppressed []string) string {
	var strange []string
	roles := Roles(fw)
	for _, r := range suppressed {
		if !slices.Contains(roles, r) && !slices.Contains(strange, r) {
			strange = append(strange, r)
		}
	}
	if len(strange) == 0 {
		return ""
	}
	return fmt.Sprintf("Suppressed roles %s are not contained in the set of roles", set(strange))
}

// PrincipalChange says why a framework may not come back with another
// principal.
func PrincipalChange(old, fw *mesos.FrameworkInfo) string {
	if old.GetPrincipal() != fw.GetPrincipal() {
		return "Changing framework's principal is not allowed."
	}
	return ""
}

// FrameworkUpdate checks what UPDATE_FRAMEWORK may not change.
func FrameworkUpdate(old, fw *mesos.FrameworkInfo) string {
	if e := PrincipalChange(old, fw); e != "" {
		return e
	}
	if old.User != fw.User {
		return fmt.Sprintf("Updating 'FrameworkInfo.user' is unsupported; attempted to update from '%s' to '%s'", old.User, fw.User)
	}
	if old.GetCheckpoint() != fw.GetCheckpoint() {
		return fmt.Sprintf("Updating 'FrameworkInfo.checkpoint' is unsupported; attempted to update from '%t' to '%t'",
			old.GetCheckpoint(), fw.GetCheckpoint())
	}
	return ""
}

func duplicates(in []string) []string {
	seen := map[string]int{}
	var out []string
	for _, s := range in {
		if seen[s]++; seen[s] == 2 {
			out = append(out, s)
		}
	}
	return out
}

// set prints a set of names as Mesos does.
func set(names []string) string {
	names = slices.Clone(names)
	sort.Strings(names)
	return "{ " + strings.Join(names, ", ") + " }"
}
