package txn

import "slices"

// SectionKey names a Section.
type SectionKey struct{ Group, App string }

// LockRequest asks for all Sections at once. Exclusive are Groups in which nothing else may be open meanwhile: the Frame
// lock, which a transaction takes in a Group with a Host that reloads its proxy for each change.
type LockRequest struct {
	ID        string
	Sections  []SectionKey
	Exclusive []string
	// Rollback goes before everything that waits (ROLLBACK-IS-FREE).
	Rollback bool
	// Again goes before what waits and is neither a Rollback nor Again: it had its turn, and was undone for another's fault.
	Again bool
	// Merge: together with others that wait for the same Frame locks it may run as one transaction. Claims are what no two
	// of one transaction may want (routes). Weight is what it takes of MaxMergedWeight, Size of MaxMergedBytes.
	Merge        bool
	Claims       []string
	Weight, Size int
}

// Bounds of one merged transaction: its decision is one Commit of the store, of 128 operations and 512 KiB.
const (
	MaxMergedWeight = 40
	MaxMergedBytes  = 320 << 10
)

// Grant names the requests that have their locks from now on, in order. More than one: they are to run as one transaction,
// and hold their locks together under the name of the first.
type Grant []string

// LockTable grants Sections in order of arrival, rollbacks first. It is a value: its methods return a new one.
//
// A request waits for what is held and for earlier requests that want the same, so nothing starves and there is no
// deadlock: nobody holds one Section while waiting for another.
//
// Requests that may be merged join the first of them that is granted, as far as only that one holds them back. So the batch
// closes when the Frame lock is free, and nobody waits for others to come.
type LockTable struct {
	held    []LockRequest
	waiting []LockRequest
}

// Add queues requests and returns what is granted now, in order.
func (t LockTable) Add(requests ...LockRequest) (LockTable, []Grant) {
	t.waiting = slices.Clone(t.waiting)
	for _, r := range requests {
		at := 0
		for at < len(t.waiting) && t.waiting[at].class() <= r.class() {
			at++
		}
		t.waiting = slices.Insert(t.waiting, at, r)
	}
	return t.grant()
}

// class is the order in which requests are granted, apart from their order of arrival.
func (r LockRequest) class() int {
	switch {
	case r.Rollback:
		return 0
	case r.Again:
		return 1
	default:
		return 2
	}
}

// Release drops a request, held or waiting, and returns what is granted now. What is held together is released by the first
// name of its Grant.
func (t LockTable) Release(id string) (LockTable, []Grant) {
	is := func(r LockRequest) bool { return r.ID == id }
	t.held = slices.DeleteFunc(slices.Clone(t.held), is)
	t.waiting = slices.DeleteFunc(slices.Clone(t.waiting), is)
	return t.grant()
}

// Holder returns the id of the request that holds the Section, or "".
func (t LockTable) Holder(key SectionKey) string {
	for _, r := range t.held {
		if slices.Contains(r.Sections, key) {
			return r.ID
		}
	}
	return ""
}

// Held says whether the request has its locks.
func (t LockTable) Held(id string) bool {
	return slices.ContainsFunc(t.held, func(r LockRequest) bool { return r.ID == id })
}

func (t LockTable) grant() (LockTable, []Grant) {
	held := slices.Clone(t.held)
	var waiting []LockRequest
	var grants []Grant
	taken := map[int]bool{}
	for i, r := range t.waiting {
		if taken[i] {
			continue
		}
		blocked := func(o LockRequest) bool { return conflict(o, r) }
		if slices.ContainsFunc(held, blocked) || slices.ContainsFunc(waiting, blocked) {
			waiting = append(waiting, r)
			continue
		}
		union, ids := join(r, held, waiting, t.waiting[i+1:], func(n int) { taken[i+1+n] = true })
		held = append(held, union)
		grants = append(grants, ids)
	}
	return LockTable{held: held, waiting: waiting}, grants
}

// join is the request that was granted together with those behind it that may be merged with it: nothing that is held, and
// nobody that came before them and still waits, is in their way.
func join(r LockRequest, held, before, behind []LockRequest, take func(int)) (LockRequest, Grant) {
	ids := Grant{r.ID}
	if !r.Merge || len(r.Exclusive) == 0 {
		return r, ids
	}
	union := r
	union.Sections, union.Claims = slices.Clone(r.Sections), slices.Clone(r.Claims)
	before = slices.Clone(before)
	for n, o := range behind {
		blocked := func(x LockRequest) bool { return conflict(x, o) }
		if !mergeable(union, o) || slices.ContainsFunc(held, blocked) || slices.ContainsFunc(before, blocked) {
			before = append(before, o)
			continue
		}
		union.Sections = append(union.Sections, o.Sections...)
		union.Claims = append(union.Claims, o.Claims...)
		union.Weight += o.Weight
		union.Size += o.Size
		ids = append(ids, o.ID)
		take(n)
	}
	return union, ids
}

// mergeable: one transaction can carry both, and one of them cannot spoil what the other may claim.
func mergeable(a, b LockRequest) bool {
	overlap := func(x, y []SectionKey) bool {
		return slices.ContainsFunc(x, func(k SectionKey) bool { return slices.Contains(y, k) })
	}
	return a.Merge && b.Merge && a.Rollback == b.Rollback && sameSet(a.Exclusive, b.Exclusive) && !overlap(a.Sections, b.Sections) &&
		!slices.ContainsFunc(a.Claims, func(c string) bool { return slices.Contains(b.Claims, c) }) &&
		a.Weight+b.Weight <= MaxMergedWeight && a.Size+b.Size <= MaxMergedBytes
}

func sameSet(a, b []string) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(s string) bool { return !slices.Contains(b, s) })
}

// conflict: the same Section, or a Group that one of them wants for itself.
func conflict(a, b LockRequest) bool {
	for _, k := range a.Sections {
		if slices.Contains(b.Sections, k) || slices.Contains(b.Exclusive, k.Group) {
			return true
		}
	}
	for _, k := range b.Sections {
		if slices.Contains(a.Exclusive, k.Group) {
			return true
		}
	}
	return false
}
