package participant

import (
	"slices"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Identity is the Cluster and Group that a Host belongs to.
type Identity struct {
	Cluster string
	Group   string
}

// State is all that a Host knows. It is a value: Step leaves its argument as it was, so a State may be kept and read
// from any goroutine.
type State struct {
	Self    Identity
	Durable Durable
	// Process is the proxy process of the newest reading.
	Process driver.Process
	// Broken is set when the journal cannot be written: the Host refuses everything and does nothing.
	Broken *Refusal

	// Tombstones is how many removed upstreams the proxy still remembers, by the newest reading of all Apps.
	Tombstones int

	collecting *collecting
	attempts   map[string]*attempt
	live       liveTable
	restless   map[string]struct{} // see atRest; never changed in place
	waits      []*wait
	verifies   []*verifyWait
	seq        uint64
	readAll    time.Time // a reading of all Apps that began at or after this is wanted
	lastAll    time.Time // when the newest one began
	readErr    error
	// readErrAt is when the first of the readings began that have failed since.
	readErrAt time.Time
	// readAt is when the newest of the readings began that have worked.
	readAt   time.Time
	survey   survey
	repaired []Drift
	shown    int    // the master of the proxy that was seen to serve what is committed; see noteShown
	unshown  string // an App that was not seen so
}

// attempt is the volatile part of an open transaction; t is set until STAGED makes it durable.
type attempt struct {
	t         *Txn
	since     time.Time // of the phase, or of the restart
	asked     time.Time // READY: an Activate waits; RESTORE_FAILED: the last Abort
	deadline  time.Time // overrides that of t: newer word from the coordinator, or a bound after a restart
	prepare   []Token
	activate  []Token
	abort     []Token
	amend     []Token
	staged    map[string]string // app -> published digest, once its Stage passed
	tried     map[string]int    // request attempts by app
	passed    map[string]driver.Process
	stage     map[string]restoreStage // RESTORING, by app
	drainFrom map[string]time.Time    // since when the target drains, by app
	reqErr    map[string]error        // of the last request attempt, by app
	noGreen   time.Time               // since when no target upstream is green
	readFail  time.Time
}

// live is the volatile part of a Section.
type live struct {
	work     *Work
	workProc driver.Process // the process that ran when the work began
	ignore   bool           // what runs was cancelled
	conv     converged
	pub      publishedState
	reading  *reading
	tries    int // Works for the same want without a reading that equals it
	retryAt  time.Time
	lastErr  error
	cut      map[string]bool
	wantTxn  *Txn
	wantSec  *SectionState
	wantAt   restoreStage
	want     *driver.Section
	wantSum  string
	pubSum   string
	drift    *Drift         // the running set differs, and no message of ours explains it
	equalIn  driver.Process // in which the running set was seen as wanted last
	pubAt    time.Time      // when the last Publish ended
	holding  bool           // what was converged last is held, see held
}

// readSince: the newest reading is of the process, and began after the last change.
func (l *live) readSince(p driver.Process) bool {
	return l.reading != nil && !l.reading.started.Before(l.conv.at) && l.reading.process == p
}

// atRest: nothing is due for the App as long as no event is about it: it runs as it is wanted, has been read so, and its
// files say the same. The Apps that are not at rest are kept in State.restless, so that neither a Step nor a plan of what
// to read looks at the others.
func (s *State) atRest(app string) bool {
	l, sec := s.live.get(app), s.Durable.Sections[app]
	if sec != nil && (sec.Unsettled || len(sec.Draining) > 0 || l == nil) {
		return false
	}
	return l == nil || l.tries == 0 && l.lastErr == nil && l.drift == nil && l.conv.known && l.pub.known && l.pub.want == l.pubSum && l.readSince(s.Process)
}

type converged struct {
	known  bool
	digest string
	at     time.Time
}

type publishedState struct {
	known  bool
	want   string // digest of the Section that was published
	digest string // as the driver computed it from the files
}

// reading is the part of a Reading that is about one App.
type reading struct {
	started time.Time
	at      time.Time
	process driver.Process
	section driver.SectionReading
	// steady are the rows that were green in the reading before and whose checks are neither green nor red now: one is in
	// flight. The proxy goes on routing to them, so they are told as healthy; a proof still waits for green.
	steady map[string]bool
}

// stay fills in steady, from the reading before.
func (r *reading) stay(before *reading) {
	if before == nil || before.process != r.process {
		return
	}
	for _, row := range r.section.Rows {
		if row.Green || row.Red {
			continue
		}
		if was := before.row(row.Name); was != nil && (was.Green || before.steady[row.Name]) {
			if r.steady == nil {
				r.steady = map[string]bool{}
			}
			r.steady[row.Name] = true
		}
	}
}

func (r *reading) row(name string) *driver.Row {
	for i := range r.section.Rows {
		if r.section.Rows[i].Name == name {
			return &r.section.Rows[i]
		}
	}
	return nil
}

// wait is a caller that is answered when every App of it was read at or after since, as the journal wants it.
type wait struct {
	to       Token
	apps     []string
	since    time.Time
	deadline time.Time
	answer   Answer
	settled  bool // the reading must equal the want
}

// verifyWait is a Verify, or an Activate that was repeated after the vote (single), that waits for its reading.
type verifyWait struct {
	to       Token
	ids      []string
	since    time.Time
	deadline time.Time
	single   bool
}

// never is the digest of nothing: what was published or converged last is unknown.
const never = "?"

// Recover returns the State of a Host that starts with what its journal holds. Deadlines are kept, but never extended
// beyond the transaction's whole budget from now, whatever the clock did meanwhile.
func Recover(self Identity, d Durable, now time.Time) State {
	s := State{Self: self, Durable: d, attempts: map[string]*attempt{}, restless: map[string]struct{}{}, readAll: now}
	for app := range d.Sections {
		s.restless[app] = struct{}{}
	}
	for id, t := range d.Txns {
		a := newAttempt(nil, now)
		if limit := now.Add(t.Budget); t.Deadline.After(limit) {
			a.deadline = limit
		}
		s.attempts[id] = a
	}
	return s
}

func newAttempt(t *Txn, now time.Time) *attempt {
	return &attempt{
		t: t, since: now, staged: map[string]string{}, tried: map[string]int{},
		passed: map[string]driver.Process{}, stage: map[string]restoreStage{}, drainFrom: map[string]time.Time{},
		reqErr: map[string]error{},
	}
}

// txn returns the open transaction with that id, staged or not.
func (s *State) txn(id string) *Txn {
	if t := s.Durable.Txns[id]; t != nil {
		return t
	}
	if a := s.attempts[id]; a != nil {
		return a.t
	}
	return nil
}

// deadline is when the Host restores by itself unless it has voted.
func (s *State) deadline(t *Txn) time.Time {
	if a := s.attempts[t.ID]; a != nil && !a.deadline.IsZero() {
		return a.deadline
	}
	return t.Deadline
}

// openOn returns the transaction open on the App, or nil.
func (s *State) openOn(app string) *Txn {
	for id := range s.attempts {
		if t := s.txn(id); t != nil && t.change(app) != nil {
			return t
		}
	}
	return nil
}

// openIDs returns the ids of the open transactions by order number.
func (s *State) openIDs() []string {
	ids := make([]string, 0, len(s.attempts))
	for id := range s.attempts {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int {
		x, y := s.txn(a), s.txn(b)
		if x.Order != y.Order {
			if x.Order < y.Order {
				return -1
			}
			return 1
		}
		if a < b {
			return -1
		}
		return 1
	})
	return ids
}

// section returns the App's durable state; one that the journal does not know is absent and empty.
func (s *State) section(app string) *SectionState {
	if sec := s.Durable.Sections[app]; sec != nil {
		return sec
	}
	return &SectionState{App: app, Committed: Section{App: app}}
}

// passed is the highest order number that no message for the App may use again.
func (s *State) passed(app string) uint64 { return max(s.section(app).Passed, s.Durable.Floor) }
