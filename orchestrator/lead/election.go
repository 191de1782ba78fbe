package lead

import "time"

// phase is where this process stands in the election.
type phase uint8

const (
	// away: no session, and none is wanted.
	away phase = iota + 1
	// joining: a session is wanted and not there yet.
	joining
	// waiting: there is a session; somebody else holds the lock, or the next try has to wait.
	waiting
	// trying: an attempt to take the lock is on its way.
	trying
	// leading: the lock is ours, as far as we know.
	leading
	// leaving: the term is over or given back; lock and session are being let go of.
	leaving
)

func (p phase) String() string {
	return [...]string{"", "away", "joining", "waiting", "trying", "leading", "leaving"}[p]
}

// Pauses of the election.
const (
	// retryMin and retryMax bound the pause after a failure.
	retryMin = 100 * time.Millisecond
	retryMax = 3 * time.Second
	// lockDelay is Consul's, after a session that was lost: for so long the lock is refused to everybody. It may be this
	// short only because every write is fenced.
	lockDelay = time.Millisecond
)

// election is the pure core of an election: what is known, and what follows from it. It changes by step only.
type election struct {
	phase   phase
	wants   bool   // this process wants to lead, or to lead again
	session string // ours: set in waiting, trying, leading, leaving
	holder  string // the session that holds the lock, as last seen; "" nobody
	leader  Leader // what the holder says of itself
	index   uint64 // Consul's, of what was seen last
	tries   int    // failures in a row
	at      time.Time
}

// The events of an election.
type (
	// wanted, unwanted: this process wants to lead, or no longer. A term that has begun ends with released only.
	wanted   struct{}
	unwanted struct{}
	// sessionMade, sessionRefused: the answer to makeSession, which was called at.
	sessionMade struct {
		id string
		at time.Time
	}
	sessionRefused struct{}
	// sessionLost: Consul has ended the session, or nobody could renew it in time.
	sessionLost struct{ id string }
	// lockSeen: who held the lock ("" nobody) at an index. One that is older than what was seen before says nothing.
	lockSeen struct {
		index  uint64
		holder string
		leader Leader
		// restarted: Consul's index has gone back (it was restored), so that older is newer.
		restarted bool
	}
	// lockTaken, lockRefused: the answer to takeLock. The lock was read back at index.
	lockTaken struct {
		session string
		index   uint64
		leader  Leader
	}
	lockRefused struct {
		session string
		failed  bool // it was not answered: who knows
	}
	// released: the owner of the term has stopped everything that writes, and wants the lock let go of.
	released struct{}
	// left: lock and session are gone, as far as that can be known.
	left struct{ session string }
	// timePassed: the time may have come that election.at names.
	timePassed struct{}
)

// The effects of an election.
type (
	makeSession struct{}
	takeLock    struct{ session string }
	// won begins the term; lost ends it at once.
	won  struct{ session string }
	lost struct{ why lossReason }
	// leave lets go of the lock and ends the session.
	leave struct{ session string }
)

// lossReason is why a term ended.
type lossReason string

const (
	lossSession lossReason = "the session is lost: Consul has ended it, or could not be reached in time to renew it"
	lossLock    lossReason = "another session holds the lock"
)

// step is the whole election. It never blocks and reads no clock.
func (e election) step(event any, now time.Time) (election, []any) {
	switch ev := event.(type) {
	case wanted:
		e.wants = true
		return e.join()
	case unwanted:
		e.wants = false
		return e.giveUp()
	case sessionMade:
		if e.phase != joining {
			return e, []any{leave{ev.id}} // nobody wants it any more
		}
		e.phase, e.session, e.tries, e.at = waiting, ev.id, 0, time.Time{}
		return e.try()
	case sessionRefused:
		if e.phase == joining {
			e.pause(now)
		}
	case sessionLost:
		return e.sessionLost(ev.id)
	case lockSeen:
		return e.lockSeen(ev, now)
	case lockTaken:
		if e.phase == trying && ev.session == e.session {
			e.phase, e.holder, e.leader, e.index = leading, e.session, ev.leader, max(e.index, ev.index)
			e.wants, e.tries, e.at = false, 0, time.Time{}
			return e, []any{won{e.session}}
		}
	case lockRefused:
		if e.phase == trying && ev.session == e.session {
			e.phase = waiting
			if ev.failed {
				e.pause(now)
			} else {
				// Somebody was faster, whom lockSeen names soon, or the lock delay of a lost session lasts.
				e.at = now.Add(lockDelay + retryMin/4)
			}
		}
	case released:
		if e.phase == leading {
			e.phase = leaving
			return e, []any{leave{e.session}}
		}
	case left:
		if e.phase == leaving && ev.session == e.session {
			e.phase, e.session = away, ""
			return e.join()
		}
	case timePassed:
		if e.at.IsZero() || now.Before(e.at) {
			return e, nil
		}
		e.at = time.Time{}
		if e.phase == joining {
			return e, []any{makeSession{}}
		}
		return e.try()
	}
	return e, nil
}

// join begins to take part.
func (e election) join() (election, []any) {
	if e.phase != away || !e.wants {
		return e, nil
	}
	e.phase, e.tries, e.at = joining, 0, time.Time{}
	return e, []any{makeSession{}}
}

// giveUp ends taking part. A try that is on its way fails with its session.
func (e election) giveUp() (election, []any) {
	switch e.phase {
	case joining:
		e.phase, e.at = away, time.Time{}
	case waiting, trying:
		e.phase, e.at = leaving, time.Time{}
		return e, []any{leave{e.session}}
	case away, leading, leaving:
	}
	return e, nil
}

// try takes the lock if nobody is known to hold it.
func (e election) try() (election, []any) {
	if e.phase != waiting || e.holder != "" && e.holder != e.session {
		return e, nil
	}
	e.phase, e.at = trying, time.Time{}
	return e, []any{takeLock{e.session}}
}

func (e election) lockSeen(ev lockSeen, now time.Time) (election, []any) {
	if ev.index < e.index && !ev.restarted {
		return e, nil
	}
	e.index, e.holder, e.leader = ev.index, ev.holder, ev.leader
	switch {
	case e.phase == leading && ev.holder != e.session:
		return e, []any{lost{lossLock}}
	case e.phase == waiting && ev.holder == "" && e.at.IsZero():
		return e.try()
	}
	return e, nil
}

func (e election) sessionLost(id string) (election, []any) {
	if id != e.session {
		return e, nil
	}
	switch e.phase {
	case leading:
		// The phase stays: only the owner of the term knows when everything that writes has stopped.
		return e, []any{lost{lossSession}}
	case waiting, trying:
		// Consul may have kept it for a while longer: with the lock, even, if the answer of a try was lost.
		e.phase, e.session, e.tries, e.at = joining, "", 0, time.Time{}
		return e, []any{leave{id}, makeSession{}}
	case away, joining, leaving:
	}
	return e, nil
}

// pause sets when to try again, longer after each failure.
func (e *election) pause(now time.Time) {
	e.at = now.Add(min(retryMin<<min(e.tries, 10), retryMax))
	e.tries++
}
