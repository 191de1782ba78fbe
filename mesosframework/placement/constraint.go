package placement

import (
	"fmt"
	"regexp"
	"strconv"
)

// Operator says how a Constraint compares an attribute. The zero value is
// invalid.
type Operator string

// The operators. Spread is a preference and never leaves a task unplaced; all
// others are hard. A missing attribute satisfies Unlike and Spread only.
const (
	// Spread evens the group out over the values of the attribute.
	Spread Operator = "spread"
	// Unique allows one task of the group per value of the attribute.
	Unique Operator = "unique"
	// Cluster puts the whole group on agents of one value: the given one or,
	// without a value, the one that the first placed task has.
	Cluster Operator = "cluster"
	// Is demands that the attribute equals the value.
	Is Operator = "is"
	// Like demands that the whole attribute matches the regular expression (RE2).
	Like Operator = "like"
	// Unlike demands that the whole attribute does not match the expression.
	Unlike Operator = "unlike"
	// MaxPer allows at most Value (a positive number) tasks of the group per
	// value of the attribute.
	MaxPer Operator = "max_per"
)

// Attributes that every agent has (region and zone only where the cluster sets
// a fault domain).
const (
	AttributeHostname = "@hostname"
	AttributeAgent    = "@agent"
	AttributeRegion   = "@region"
	AttributeZone     = "@zone"
)

// maxExpression bounds a regular expression given by a user.
const maxExpression = 1024

// Constraint restricts or prefers agents by one attribute.
type Constraint struct {
	Attribute string
	Operator  Operator
	// Value is what the operator compares with: empty for spread and unique,
	// optional for cluster, a number for max_per.
	Value string
}

func (c Constraint) String() string {
	if c.Value == "" {
		return c.Attribute + " " + string(c.Operator)
	}
	return c.Attribute + " " + string(c.Operator) + " " + c.Value
}

// Validate reports what is wrong with the constraint, in the words of its user.
func (c Constraint) Validate() error {
	_, err := compile(c)
	return err
}

// rule is a compiled Constraint.
type rule struct {
	Constraint
	expr  *regexp.Regexp
	limit int
}

func compile(c Constraint) (rule, error) {
	r := rule{Constraint: c}
	if c.Attribute == "" {
		return r, fmt.Errorf("constraint %q: attribute is empty", c)
	}
	switch c.Operator {
	case Spread, Unique:
		if c.Value != "" {
			return r, fmt.Errorf("constraint %q: %s takes no value", c, c.Operator)
		}
		r.limit = 1
	case Cluster:
	case Is:
		if c.Value == "" {
			return r, fmt.Errorf("constraint %q: is needs a value", c)
		}
	case Like, Unlike:
		if c.Value == "" || len(c.Value) > maxExpression {
			return r, fmt.Errorf("constraint %q: %s needs a regular expression of 1 to %d bytes", c.Attribute, c.Operator, maxExpression)
		}
		expr, err := regexp.Compile(`\A(?:` + c.Value + `)\z`)
		if err != nil {
			return r, fmt.Errorf("constraint %q: %w", c, err)
		}
		r.expr = expr
	case MaxPer:
		n, err := strconv.Atoi(c.Value)
		if err != nil || n < 1 {
			return r, fmt.Errorf("constraint %q: max_per needs a number of at least 1", c)
		}
		r.limit = n
	default:
		return r, fmt.Errorf("constraint %q: unknown operator %q (known: spread, unique, cluster, is, like, unlike, max_per)", c, c.Operator)
	}
	return r, nil
}

// static reports whether the rule depends on the attribute alone and not on
// where other tasks are.
func (r rule) static() bool {
	switch r.Operator {
	case Is, Like, Unlike:
		return true
	case Cluster:
		return r.Value != ""
	default:
		return false
	}
}

// admits judges a static rule for an attribute value.
func (r rule) admits(value string, present bool) bool {
	switch r.Operator {
	case Is, Cluster:
		return present && value == r.Value
	case Like:
		return present && r.expr.MatchString(value)
	case Unlike:
		return !present || !r.expr.MatchString(value)
	default:
		return true
	}
}

// perAgent reports whether the attribute differs from agent to agent and so
// cannot be judged once per class.
func perAgent(attribute string) bool {
	return attribute == AttributeHostname || attribute == AttributeAgent
}
