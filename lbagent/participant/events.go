package participant

import (
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Token names a caller that waits for an Answer; 0 is nobody. The runner makes them; the machine hands them back.
type Token uint64

// Event is what Step consumes: a message, the result of an effect, a reading, or the passing of time.
type Event interface{ event() }

// Change is what a Prepare asks of one Section. Target nil: the Section is removed.
type Change struct {
	App    string
	Base   Version
	Target *Section
}

// Committed is one Section of a Sync.
type Committed struct {
	Section Section
	Version Version
	Removed bool
}

// The messages. To is answered exactly once, possibly many Steps later. Deadlines are remaining durations.
type (
	// Prepare stages, validates and warms the targets.
	Prepare struct {
		To       Token
		Fence    Fence
		TxnID    string
		Order    uint64
		Changes  []Change
		Origin   Origin
		Deadline time.Duration
	}
	// Activate makes the targets routable and proves it.
	Activate struct {
		To       Token
		Fence    Fence
		TxnID    string
		Order    uint64
		Deadline time.Duration
	}
	// Verify asks for evidence from a reading that begins after now.
	Verify struct {
		To     Token
		Fence  Fence
		TxnIDs []string
	}
	// Commit tells the durable decision.
	Commit struct {
		To    Token
		Fence Fence
		TxnID string
		Order uint64
	}
	// Abort undoes the transaction for good. Apps are its Sections, for a Host that does not know it.
	Abort struct {
		To           Token
		Fence        Fence
		TxnID        string
		Order        uint64
		Apps         []string
		Replacements []Section
		Origin       Origin
	}
	// Amend changes one committed Section without a vote.
	Amend struct {
		To       Token
		Fence    Fence
		App      string
		Order    uint64
		Base     Version
		Remove   []string
		Insert   []Upstream
		Retire   []string
		Origin   Origin
		Deadline time.Duration
	}
	// Sync installs the whole committed state of the Group.
	Sync struct {
		To       Token
		Fence    Fence
		Sections []Committed
		Order    uint64
		Origin   Origin
	}
	// SetTraffic says whether the Host may get client traffic.
	SetTraffic struct {
		To     Token
		Fence  Fence
		Order  TrafficOrder
		Origin Origin
	}
	// Collect reloads the proxy to free what removed upstreams have left behind in it.
	Collect struct {
		To     Token
		Fence  Fence
		Origin Origin
	}
	// Hello opens a Watch: it passes the fence, and tells the Group's policy ("": no word on it).
	Hello struct {
		To    Token
		Fence Fence
		Drift Policy
	}
)

// What the runner reports.
type (
	// WorkDone is the end of a Work; App is "" for that of a Collect. Err is the driver's, nil if all of it was done. Published is the driver's digest of
	// the files, asked for last; PublishedKnown says that it was obtained.
	WorkDone struct {
		App            string
		Seq            uint64
		Err            error
		Published      string
		PublishedKnown bool
	}
	// AppsFound lists the Apps that the published tree or the running proxy hold when the agent starts.
	AppsFound struct{ Apps []string }
	// Reading is what the proxy reported. Started is when the read began: it proves nothing about what ended later. All:
	// an App without an entry is absent; otherwise that holds for Apps only.
	Reading struct {
		Started time.Time
		All     bool
		Apps    []string
		Reading driver.Reading
	}
	// ReadFailed is a read without a result.
	ReadFailed struct {
		Started time.Time
		Err     error
	}
	// ProcessSeen names the process that runs now.
	ProcessSeen struct{ Process driver.Process }
	// ProcessGone: a process of the proxy has ended.
	ProcessGone struct{ Process driver.Process }
	// Tick lets the deadlines be looked at.
	Tick struct{}
	// JournalFailed: a Record could not be made durable. The effects after it were not carried out.
	JournalFailed struct{ Err error }
)

func (Prepare) event()       {}
func (Activate) event()      {}
func (Verify) event()        {}
func (Commit) event()        {}
func (Abort) event()         {}
func (Amend) event()         {}
func (Sync) event()          {}
func (SetTraffic) event()    {}
func (Collect) event()       {}
func (Hello) event()         {}
func (WorkDone) event()      {}
func (AppsFound) event()     {}
func (Reading) event()       {}
func (ReadFailed) event()    {}
func (ProcessSeen) event()   {}
func (ProcessGone) event()   {}
func (Tick) event()          {}
func (JournalFailed) event() {}

// Effect is what the runner must do. The Journal effects of a Step come first and must all be durable before any other
// is begun; if that fails, the rest is dropped and the event JournalFailed follows.
type Effect interface{ effect() }

type (
	// Journal makes a Record durable.
	Journal struct{ Record Record }
	// Start begins a Work. The machine never has two for one App.
	Start struct{ Work Work }
	// Cancel ends a Work early; its WorkDone still comes.
	Cancel struct {
		App string
		Seq uint64
	}
	// Reply answers a caller.
	Reply struct {
		To     Token
		Answer Answer
	}
	// Report says that what Report(app) tells has changed.
	Report struct{ App string }
)

func (Journal) effect() {}
func (Start) effect()   {}
func (Cancel) effect()  {}
func (Reply) effect()   {}
func (Report) effect()  {}

// Work is a sequence of driver calls for one App, in the order of the fields; the first error ends it. One that collects
// is for the whole proxy and names no App.
type Work struct {
	App string
	Seq uint64
	// Phase of the transaction that it serves, 0 if none; for logs and crash points.
	Phase Phase
	// ReadPublished asks for the digest of the published files before anything is changed.
	ReadPublished bool
	Stage         *driver.Section
	// Publish is followed by a question for the digest of the published files.
	Publish  *driver.Section
	Converge *driver.Section
	Cut      []string
	Requests []RequestTo
	Collect  bool
}

// RequestTo is one real request through the proxy's own worker.
type RequestTo struct {
	Upstream string
	Host     string
}

// changes reports whether readings that began before its end prove nothing.
func (w *Work) changes() bool { return w.Converge != nil || len(w.Cut) > 0 }

// Answer is the answer to any message; which fields count depends on the message.
type Answer struct {
	Refusal  *Refusal
	Evidence []Evidence
	// NeverActivated: nothing had to be restored (Abort).
	NeverActivated bool
	// Deleted and Open are Apps that a Sync removed and left alone.
	Deleted []string
	Open    []string
	// Verifies holds an answer for each transaction of a Verify, in the order asked.
	Verifies []VerifyAnswer
}

// VerifyAnswer is one transaction's part of the answer to Verify.
type VerifyAnswer struct {
	TxnID    string
	Refusal  *Refusal
	Evidence []Evidence
}
