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
}

// LockTable grants Sections in order of arrival, rollbacks first. It is a value: its methods return a new one.
//
// A request waits for what is held and for earlier requests that want the same, so nothing starves and there is no
// deadlock: nobody holds one Section while waiting for another.
type LockTable struct {
	held    []LockRequest
	waiting []LockRequest
}

// Add queues a request and returns the ids of the requests that are granted now, in order.
func (t LockTable) Add(r LockRequest) (LockTable, []string) {
	t.waiting = slices.Clone(t.waiting)
	at := len(t.waiting)
	if r.Rollback {
		at = 0
		for at < len(t.waiting) && t.waiting[at].Rollback {
			at++
		}
	}
	t.waiting = slices.Insert(t.waiting, at, r)
	return t.grant()
}

// Release drops a request, held or waiting, and returns the ids of those that are granted now.
func (t LockTable) Release(id string) (LockTable, []string) {
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

func (t LockTable) grant() (LockTable, []string) {
	held := slices.Clone(t.held)
	var waiting []LockRequest
	var granted []string
	for _, r := range t.waiting {
		blocked := func(o LockRequest) bool { return conflict(o, r) }
		if slices.ContainsFunc(held, blocked) || slices.ContainsFunc(waiting, blocked) {
			waiting = append(waiting, r)
			continue
		}
		held = append(held, r)
		granted = append(granted, r.ID)
	}
	return LockTable{held: held, waiting: waiting}, granted
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
