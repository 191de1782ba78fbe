package replay

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/localmesos/resource"
	"github.com/cutover/cutover/mesosframework/localmesos/wire"
)

// event waits for the event of a line.
func (p *player) event(l Line) {
	c := p.conn(l.Conn)
	if c.done == nil {
		p.fault(l, "there is no stream")
		return
	}
	gap := time.Duration(l.TMS-p.prevMS) * time.Millisecond
	deadline := p.prevAt.Add(gap + gap/10 + time.Second + p.o.Slack)
	if p.o.Optional[l.N] {
		deadline = time.Now().Add(time.Second)
	}
	if l.What == "OFFERS" {
		if p.o.LooseOffers && !p.usesOfferOf(l) {
			deadline = time.Now() // nothing depends on when it comes
		}
		for _, want := range offersOf(decodedBody(l)) {
			p.offer(l, c, want, deadline)
		}
		return
	}
	want := decodedBody(l)
	var diff string
	got := c.await(deadline, func(unused []*event) *event {
		for _, e := range unused {
			if e.what != l.What || taskOf(e.body) != taskOf(want) {
				continue
			}
			saved := p.bind.copy()
			m := matcher{bind: p.bind}
			if diff = m.match(want, e.body, ""); diff == "" {
				return e
			}
			p.bind = saved
			if l.What == "RESCIND" {
				continue // of another offer
			}
			return nil // the first of its task must be the one
		}
		return nil
	})
	switch {
	case got != nil:
		p.early(l, got)
	case p.o.Optional[l.N]:
	case diff != "":
		p.fault(l, "%s", diff)
	default:
		p.fault(l, "did not come; there are %s", c.have())
	}
}

// usesOfferOf reports whether a call or a RESCIND of the recording names an
// offer of the line.
func (p *player) usesOfferOf(l Line) bool {
	for _, o := range offersOf(decodedBody(l)) {
		if id, ok := offerID(o).(string); ok && strings.Contains(p.sent, id) {
			return true
		}
	}
	return false
}

// early is a fault when an event came long before its time: a deliberate wait
// (grace, filter, retry) was not kept.
func (p *player) early(l Line, e *event) {
	recorded := time.Duration(l.TMS-p.causeMS) * time.Millisecond
	if l.What == "HEARTBEAT" || p.slow || recorded < 2*time.Second {
		return
	}
	if actual := e.at.Sub(p.causeAt); actual < recorded*3/4-time.Second {
		p.fault(l, "came after %v, in the recording after %v", actual, recorded)
	}
}

// offer waits for one offer.
func (p *player) offer(l Line, c *conn, want any, deadline time.Time) {
	var diff string
	got := c.await(deadline, func(unused []*event) *event {
		dead := rescinded(unused)
		for _, e := range unused {
			if e.what != "OFFERS" || dead[offerID(e.body)] {
				continue
			}
			saved := p.bind.copy()
			m := matcher{bind: p.bind, subset: true}
			w := want
			if p.o.LooseOffers {
				w = loose(want)
			}
			d := m.match(w, e.body, "")
			if d == "" && !p.o.LooseOffers {
				m.subset = false
				d = m.match(w, e.body, "")
			}
			if d == "" {
				return e
			}
			diff = d
			p.bind = saved
		}
		return p.portions(want, unused, dead)
	})
	switch {
	case got != nil:
		if !p.o.LooseOffers {
			p.early(l, got)
		}
	case p.o.Optional[l.N] || p.o.LooseOffers:
	case diff != "":
		p.fault(l, "no such offer: %s; there are %s", diff, c.have())
	default:
		p.fault(l, "no offer came; there are %s", c.have())
	}
}

// portions takes several offers of one agent and role for one that is their
// sum: an allocation run came before the last task had ended, and the next one
// offered the rest. The first stands for the whole.
func (p *player) portions(want any, unused []*event, dead map[any]bool) *event {
	whole, ok := amount(want)
	if !ok || p.o.LooseOffers {
		return nil
	}
	var first *event
	var taken []*event
	var sum resource.Set
	for _, e := range unused {
		if e.what != "OFFERS" || dead[offerID(e.body)] {
			continue
		}
		saved := p.bind.copy()
		m := matcher{bind: p.bind, subset: true}
		w := loose(want)
		delete(w.(map[string]any), "id")
		part, ok := amount(e.body)
		if !ok || m.match(w, e.body, "") != "" {
			p.bind = saved
			continue
		}
		if first == nil {
			first = e
		}
		taken, sum = append(taken, e), sum.Add(part)
		if sum.String() != whole.String() {
			p.bind = saved
			continue
		}
		m.bind = p.bind
		if m.match(loose(want), first.body, "") != "" {
			p.bind = saved
			return nil
		}
		for _, t := range taken {
			t.used = true
		}
		return first
	}
	return nil
}

// amount is how much an offer holds.
func amount(offer any) (resource.Set, bool) {
	o, _ := offer.(map[string]any)
	doc, err := json.Marshal(map[string]any{"resources": o["resources"]})
	if err != nil {
		return resource.Set{}, false
	}
	var r struct {
		Resources []json.RawMessage `json:"resources"`
	}
	if err := json.Unmarshal(doc, &r); err != nil {
		return resource.Set{}, false
	}
	var list []mesos.Resource
	for _, raw := range r.Resources {
		var one mesos.Resource
		if err := wire.UnmarshalJSON(raw, &one); err != nil {
			return resource.Set{}, false
		}
		list = append(list, one)
	}
	return resource.Of(list), true
}

// rescinded are the offers that were taken back before the recording asked for
// them: they came at another moment there, or not at all.
func rescinded(unused []*event) map[any]bool {
	out := map[any]bool{}
	for _, e := range unused {
		if e.what == "RESCIND" {
			out[rescindedID(e.body)] = true
		}
	}
	return out
}

func rescindedID(body any) any {
	b, _ := body.(map[string]any)
	r, _ := b["rescind"].(map[string]any)
	id, _ := r["offer_id"].(map[string]any)
	return id["value"]
}

func offerID(body any) any {
	o, _ := body.(map[string]any)
	id, _ := o["id"].(map[string]any)
	return id["value"]
}

// loose keeps of an offer what does not depend on timing.
func loose(offer any) any {
	out := map[string]any{}
	for k, v := range offer.(map[string]any) {
		if k != "resources" {
			out[k] = v
		}
	}
	return out
}

// taskOf is the task of an UPDATE, "" for other events.
func taskOf(body any) string {
	b, _ := body.(map[string]any)
	u, _ := b["update"].(map[string]any)
	s, _ := u["status"].(map[string]any)
	id, _ := s["task_id"].(map[string]any)
	if id == nil {
		return ""
	}
	return "task " + fmt.Sprint(id["value"])
}

// have lists the events that nobody asked for yet.
func (c *conn) have() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := ""
	for _, e := range c.unused() {
		s += e.what + " " + text(e.body) + "; "
	}
	if s == "" {
		return "no others"
	}
	return s
}
