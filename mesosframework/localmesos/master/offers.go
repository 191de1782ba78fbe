package master

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/mesosframework/localmesos/actor"
	"github.com/cutover/cutover/mesosframework/localmesos/resource"
)

// offer is an offer that a framework holds.
type offer struct {
	id        string
	number    int
	framework *framework
	agent     *agent
	role      string
	resources resource.Set
	timeout   *actor.Timer
}

const (
	defaultRefuse = 5 * time.Second
	maxRefuse     = 365 * 24 * time.Hour
)

// allocate is one allocation run, due at the given time: the free resources of
// each agent go to one framework and role, the one with the smallest dominant
// share that has not refused them; all offers of the run for one framework go
// out in one event.
func (m *Master) allocate(due time.Time) {
	if !m.offersWanted() {
		return
	}
	var agents []*agent
	total := resource.Set{}
	for _, a := range m.agents {
		total = total.Add(a.total)
		if a.offerable() {
			agents = append(agents, a)
		}
	}
	slices.SortFunc(agents, func(a, b *agent) int { return cmp.Compare(a.number, b.number) })
	rand.Shuffle(len(agents), func(i, j int) { agents[i], agents[j] = agents[j], agents[i] })
	shares := m.shares()
	events := map[*framework][]mesos.Offer{}
	var order []*framework
	for _, a := range agents {
		free := a.total.Sub(a.used).Sub(a.offered)
		if !free.Allocatable() {
			continue
		}
		f, role := m.candidate(a, free, shares, total, due)
		if f == nil {
			continue
		}
		o := m.offer(f, a, role, free)
		shares.hold(f, role, free)
		f.allocations[role]++
		if events[f] == nil {
			order = append(order, f)
		}
		events[f] = append(events[f], m.offerMessage(o))
	}
	for _, f := range order {
		f.send(&scheduler.Event{Type: scheduler.Event_OFFERS, Offers: &scheduler.Event_Offers{Offers: events[f]}})
	}
}

// shareKey names a role, or a framework in a role.
type shareKey struct{ role, framework string }

// dominantShares are sums of the scalars in shareScalars.
type dominantShares map[shareKey]*[len(shareScalars)]float64

var shareScalars = [...]string{"cpus", "mem", "disk"}

// offersWanted reports whether any framework asks for offers.
func (m *Master) offersWanted() bool {
	for _, f := range m.frameworks {
		if f.connected() && slices.ContainsFunc(f.roles(), func(role string) bool { return !f.suppressed[role] }) {
			return true
		}
	}
	return false
}

// shares sums what each role, and each framework in it, holds.
func (m *Master) shares() dominantShares {
	s := dominantShares{}
	for _, f := range m.frameworks {
		for _, t := range f.tasks {
			if t.held {
				s.hold(f, t.role, t.resources())
			}
		}
	}
	for _, o := range m.offers {
		s.hold(o.framework, o.role, o.resources)
	}
	return s
}

func (s dominantShares) hold(f *framework, role string, r resource.Set) {
	for _, k := range [...]shareKey{{role, ""}, {role, f.id}} {
		if s[k] == nil {
			s[k] = new([len(shareScalars)]float64)
		}
		for i, name := range shareScalars {
			s[k][i] += r.Scalar(name)
		}
	}
}

// of is the dominant share: the largest part of any scalar of the cluster.
func (s dominantShares) of(k shareKey, total resource.Set) float64 {
	share := 0.0
	for i, name := range shareScalars {
		if t := total.Scalar(name); t > 0 && s[k] != nil {
			share = max(share, s[k][i]/t)
		}
	}
	return share
}

// candidate picks who is offered an agent's free resources.
func (m *Master) candidate(a *agent, free resource.Set, shares dominantShares, total resource.Set, due time.Time) (*framework, string) {
	type claim struct {
		f                *framework
		role             string
		roleShare, share float64
	}
	var claims []claim
	for _, f := range m.frameworks {
		if !f.connected() {
			continue
		}
		for _, role := range f.roles() {
			if !f.suppressed[role] && !f.refuses(role, a.id, free, due) {
				claims = append(claims, claim{f, role, shares.of(shareKey{role, ""}, total), shares.of(shareKey{role, f.id}, total)})
			}
		}
	}
	if len(claims) == 0 {
		return nil, ""
	}
	best := slices.MinFunc(claims, func(x, y claim) int {
		return cmp.Or(
			cmp.Compare(x.roleShare, y.roleShare),
			cmp.Compare(x.share, y.share),
			cmp.Compare(x.f.allocations[x.role], y.f.allocations[y.role]),
			cmp.Compare(x.role, y.role), cmp.Compare(x.f.id, y.f.id),
		)
	})
	return best.f, best.role
}

// refuses reports whether a filter is in force: resources that are no more
// than what was refused. It forgets filters that are over.
func (f *framework) refuses(role, agentID string, free resource.Set, due time.Time) bool {
	f.filters = slices.DeleteFunc(f.filters, func(x filter) bool { return x.until.Before(due) })
	return slices.ContainsFunc(f.filters, func(x filter) bool {
		return x.role == role && x.agent == agentID && x.refused.Contains(free)
	})
}

func (m *Master) offer(f *framework, a *agent, role string, r resource.Set) *offer {
	o := &offer{id: fmt.Sprintf("%s-O%d", m.info.ID, m.nextOffer), number: m.nextOffer, framework: f, agent: a, role: role, resources: r}
	m.nextOffer++
	m.offers[o.id] = o
	a.offered = a.offered.Add(r)
	if d := m.opts.OfferTimeout; d > 0 {
		o.timeout = m.actor.After(d, func() {
			if m.offers[o.id] != nil {
				m.rescind(o)
			}
		})
	}
	return o
}

func (m *Master) offerMessage(o *offer) mesos.Offer {
	role := ""
	msg := mesos.Offer{
		ID: mesos.OfferID{Value: o.id}, FrameworkID: mesos.FrameworkID{Value: o.framework.id},
		AgentID: mesos.AgentID{Value: o.agent.id}, Hostname: o.agent.info.Hostname, Attributes: o.agent.info.Attributes,
		URL: o.agent.url(),
	}
	if o.framework.has(mesos.FrameworkInfo_Capability_MULTI_ROLE) {
		role = o.role
		r := role
		msg.AllocationInfo = &mesos.Resource_AllocationInfo{Role: &r}
	}
	msg.Resources = o.resources.Mesos(role)
	return msg
}

// url is where the agent's endpoints are.
func (a *agent) url() *mesos.URL {
	host, port, err := net.SplitHostPort(a.addr)
	if err != nil {
		return nil
	}
	var p int32
	_, _ = fmt.Sscan(port, &p)
	path, name := "/slave(1)", a.info.Hostname
	return &mesos.URL{Scheme: "http", Address: mesos.Address{Hostname: &name, IP: &host, Port: p}, Path: &path}
}

// recover takes an offer's resources back; what of them is not used again is
// refused for a while if a filter is given.
func (m *Master) recover(o *offer, unused resource.Set, filters *mesos.Filters, filtered bool) {
	m.forget(o)
	if !filtered || unused.Empty() {
		return
	}
	refuse := defaultRefuse
	if filters != nil && filters.RefuseSeconds != nil {
		s := *filters.RefuseSeconds
		switch {
		case s == 0:
			return
		case s > maxRefuse.Seconds():
			refuse = maxRefuse
		case s > 0: // also excludes NaN
			refuse = time.Duration(s * float64(time.Second))
		}
	}
	o.framework.filters = append(o.framework.filters, filter{
		role: o.role, agent: o.agent.id, refused: unused, until: time.Now().Add(max(refuse, m.opts.AllocationInterval)),
	})
}

// forget ends an offer; its resources are free again.
func (m *Master) forget(o *offer) {
	delete(m.offers, o.id)
	o.timeout.Cancel()
	o.agent.offered = o.agent.offered.Sub(o.resources)
}

// rescind takes an offer back and says so.
func (m *Master) rescind(o *offer) {
	m.forget(o)
	o.framework.send(&scheduler.Event{Type: scheduler.Event_RESCIND, Rescind: &scheduler.Event_Rescind{OfferID: mesos.OfferID{Value: o.id}}})
}

// discardOffers takes all offers of a framework back without a word.
func (m *Master) discardOffers(f *framework) {
	for _, o := range m.sortedOffers() {
		if o.framework == f {
			m.forget(o)
		}
	}
}

func (m *Master) sortedOffers() []*offer {
	out := make([]*offer, 0, len(m.offers))
	for _, o := range m.offers {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b *offer) int { return cmp.Compare(a.number, b.number) })
	return out
}

// decline is DECLINE; ids that are no offers of the framework do not matter.
func (m *Master) decline(f *framework, call *scheduler.Call_Decline) {
	for _, id := range call.OfferIDs {
		if o := m.offers[id.Value]; o != nil && o.framework == f {
			m.recover(o, o.resources, call.Filters, true)
		}
	}
}

// revive is REVIVE, suppress SUPPRESS; an unknown role makes the whole call
// void.
func (m *Master) revive(f *framework, roles []string) {
	if roles = f.named(roles); roles == nil {
		return
	}
	for _, r := range roles {
		delete(f.suppressed, r)
	}
	f.filters = slices.DeleteFunc(f.filters, func(x filter) bool { return slices.Contains(roles, x.role) })
	m.allocate(time.Now())
}

func (m *Master) suppress(f *framework, roles []string) {
	for _, r := range f.named(roles) {
		f.suppressed[r] = true
	}
}

// named returns the roles that a call means: all when it names none, nil when
// it names a strange one.
func (f *framework) named(roles []string) []string {
	all := f.roles()
	if len(roles) == 0 {
		return all
	}
	for _, r := range roles {
		if !slices.Contains(all, r) {
			return nil
		}
	}
	return roles
}
