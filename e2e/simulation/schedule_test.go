package simulation

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"
)

// schedule is the one queue of the world: it gives every event an instant that no other event has.
type schedule struct {
	seed  uint64
	begin time.Time

	mu     sync.Mutex
	taken  map[time.Time]bool
	seen   map[string]uint64 // how often a key was drawn for
	steps  int
	digest uint64
	log    []string
	trace  []string // every step, where somebody compares them
	traced bool
	over   bool
}

func newSchedule(seed uint64) *schedule {
	return &schedule{seed: seed, begin: time.Now(), taken: map[time.Time]bool{}, seen: map[string]uint64{}}
}

// at is the time since the begin, as stories and traces show it.
func (s *schedule) at() string { return fmt.Sprintf("%11.6f", time.Since(s.begin).Seconds()) }

// chance returns the dice for the next event under this key. Two events under different keys may be drawn in any order
// and get the same dice.
func (s *schedule) chance(key string) *rand.Rand {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[key]++
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s#%d", key, s.seen[key])
	return rand.New(rand.NewPCG(s.seed, h.Sum64()))
}

// instant returns a duration of about d that ends when nothing else happens.
func (s *schedule) instant(d time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	due := now.Add(max(d, 1))
	for s.taken[due] {
		due = due.Add(1)
	}
	s.taken[due] = true
	if len(s.taken) > 1<<16 {
		for t := range s.taken {
			if t.Before(now) {
				delete(s.taken, t)
			}
		}
	}
	return due.Sub(now)
}

// after runs f once the duration has passed, as one step of the trace.
func (s *schedule) after(d time.Duration, what string, f func()) {
	time.AfterFunc(s.instant(d), func() {
		s.step(what)
		f()
	})
}

// pause lets about d pass for the caller; it ends early with ctx.
func (s *schedule) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(s.instant(d))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// step notes one event in the trace. The digest of two runs of one seed is the same.
func (s *schedule) step(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.steps++
	if s.traced {
		s.trace = append(s.trace, s.at()+" "+what)
	}
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%d|%s|%s", s.digest, s.at(), what)
	s.digest = h.Sum64()
}

// tell adds a line to the story of the run: what was done to the world, and what came of it.
func (s *schedule) tell(format string, args ...any) {
	line := s.at() + " " + fmt.Sprintf(format, args...)
	s.step(line)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, line)
}

// close ends the trace: what stops after the end of a run stops in any order.
func (s *schedule) close() (steps int, digest uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	return s.steps, s.digest
}

// between draws a duration.
func between(r *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(r.Int64N(int64(to-from)+1))
}

// one in n.
func oneIn(r *rand.Rand, n int) bool { return n > 0 && r.IntN(n) == 0 }
