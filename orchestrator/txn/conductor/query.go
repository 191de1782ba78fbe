package conductor

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/txn"
)

// Section returns the committed Section of the App in the Group, its own copy; false if there never was one. A removed
// Section is returned with Removed set.
func (c *Conductor) Section(ctx context.Context, group, app string) (*lbagentv1.CommittedSection, bool, error) {
	var out *lbagentv1.CommittedSection
	err := c.ask(ctx, func() {
		if s := c.sections[txn.SectionKey{Group: group, App: app}]; s != nil {
			out = proto.CloneOf(s.committed)
		}
	})
	return out, out != nil, err
}

// RouteOwner returns the App that has the route, committed or in an open transaction; false if it is free. A route is
// the Group, the host name ("*" for any) and the path; nested paths are other routes.
func (c *Conductor) RouteOwner(group, host, path string) (app string, ok bool) {
	want := routeKey(&lbagentv1.Route{Host: host, Path: path})
	_ = c.ask(context.Background(), func() { app, ok = c.routeOwner(group, want, nil) })
	return app, ok
}

// routeKey is the normalised route.
func routeKey(r *lbagentv1.Route) string {
	host := strings.TrimSuffix(strings.ToLower(r.GetHost()), ".")
	if host == "" {
		host = "*"
	}
	return host + path.Clean("/"+r.GetPath())
}

// routeOwner looks in the committed Sections and in the targets of granted transactions, except those of o and of the
// Apps that o changes in the Group.
func (c *Conductor) routeOwner(group, want string, except *transaction) (string, bool) {
	for key, s := range c.sections {
		if key.Group == group && (except == nil || except.changeOf(key) == nil) && hasRoute(s.committed.GetSection(), want) {
			return key.App, true
		}
	}
	return c.routeAsker(group, want, except)
}

// routeAsker looks in the targets of granted transactions alone.
func (c *Conductor) routeAsker(group, want string, except *transaction) (string, bool) {
	for _, o := range c.txns {
		if o == except || !o.granted || !o.state.Undecided() {
			continue
		}
		for _, ch := range o.changes {
			if ch.key.Group == group && hasRoute(ch.target, want) {
				return ch.key.App, true
			}
		}
	}
	return "", false
}

func hasRoute(s *lbagentv1.Section, key string) bool {
	return slices.ContainsFunc(s.GetRoutes(), func(r *lbagentv1.Route) bool { return routeKey(r) == key })
}

// routeConflict says which route of the transaction belongs to another App, or "". The check at the API is a courtesy;
// this one counts, since the locks are held.
func (c *Conductor) routeConflict(o *transaction) string {
	for _, ch := range o.changes {
		for _, r := range ch.target.GetRoutes() {
			look := c.routeOwner
			if own := c.sections[ch.key]; own != nil && !own.committed.GetRemoved() && hasRoute(own.committed.GetSection(), routeKey(r)) {
				look = c.routeAsker // what is committed for this App is committed for no other: only the open ones are left
			}
			if owner, taken := look(ch.key.Group, routeKey(r), o); taken && owner != ch.key.App {
				return fmt.Sprintf("the route %s%s of group %s belongs to %s; %s wants it too", r.GetHost(), r.GetPath(), ch.key.Group, owner, ch.key.App)
			}
		}
	}
	// Two changes of the same transaction must not collide either.
	seen := map[string]string{}
	for _, ch := range o.changes {
		for _, r := range ch.target.GetRoutes() {
			k := ch.key.Group + " " + routeKey(r)
			if other := seen[k]; other != "" && other != ch.key.App {
				return fmt.Sprintf("the route %s%s of group %s is wanted by %s and by %s", r.GetHost(), r.GetPath(), ch.key.Group, other, ch.key.App)
			}
			seen[k] = ch.key.App
		}
	}
	return ""
}
