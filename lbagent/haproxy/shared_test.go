package haproxy

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// An answer that many share was asked after each of them called.
func TestSharedAnswersAreAskedAfterTheCall(t *testing.T) {
	var s shared[struct{}, int64]
	var clock, asked atomic.Int64
	ask := func(context.Context, struct{}) (int64, error) {
		asked.Add(1)
		return clock.Add(1), nil
	}
	var work sync.WaitGroup
	for range 50 {
		work.Go(func() {
			for range 200 {
				called := clock.Add(1)
				got, err := s.get(t.Context(), struct{}{}, ask)
				if err != nil || got <= called {
					t.Errorf("called at %d, answered with what was asked at %d: %v", called, got, err)
					return
				}
			}
		})
	}
	work.Wait()
	if n := asked.Load(); n > 50*200 {
		t.Errorf("asked %d times", n)
	}
}

// A caller that waits for its turn and gives up takes nobody with it.
func TestSharedOutlivesAnImpatientAsker(t *testing.T) {
	var s shared[struct{}, string]
	asking, release := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		_, err := s.get(t.Context(), struct{}{}, func(context.Context, struct{}) (string, error) {
			close(asking)
			<-release
			return "first", nil
		})
		first <- err
	}()
	<-asking
	impatient, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error, 1)
	go func() {
		_, err := s.get(impatient, struct{}{}, func(context.Context, struct{}) (string, error) { return "never", nil })
		gaveUp <- err
	}()
	for waiting := false; !waiting; {
		s.mu.Lock()
		waiting = s.next != nil
		s.mu.Unlock()
	}
	patient := make(chan string, 1)
	go func() {
		got, err := s.get(t.Context(), struct{}{}, func(context.Context, struct{}) (string, error) { return "second", nil })
		if err != nil {
			t.Error(err)
		}
		patient <- got
	}()
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("gave up with %v", err)
	}
	close(release)
	if got := <-patient; got != "second" {
		t.Errorf("the patient caller got %q", got)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// What those want to know who wait together is asked once, and holds what each of them asked for.
func TestSharedQuestionsAreMerged(t *testing.T) {
	s := shared[[]slot, []slot]{merge: allSlots}
	asking, release := make(chan struct{}), make(chan struct{})
	var asked atomic.Int64
	ask := func(_ context.Context, q []slot) ([]slot, error) {
		if asked.Add(1) == 1 {
			close(asking)
			<-release
		}
		return q, nil
	}
	var work sync.WaitGroup
	want := func(of slot) {
		work.Go(func() {
			if got, err := s.get(t.Context(), []slot{of}, ask); err != nil || !slices.Contains(got, of) {
				t.Errorf("asked for %v, got %v, %v", of, got, err)
			}
		})
	}
	want(slot{classes[0].name, 1})
	<-asking
	for i := range 20 {
		want(slot{classes[0].name, 2 + i})
	}
	for waiting := 0; waiting < 20; {
		s.mu.Lock()
		if s.next != nil {
			waiting = len(s.next.question)
		}
		s.mu.Unlock()
	}
	close(release)
	work.Wait()
	if n := asked.Load(); n != 2 {
		t.Errorf("asked %d times, want once for the first and once for all others", n)
	}
}
