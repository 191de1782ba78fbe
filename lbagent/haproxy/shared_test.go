package haproxy

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

// An answer that many share was asked after each of them called.
func TestSharedAnswersAreAskedAfterTheCall(t *testing.T) {
	var s shared[int64]
	var clock, asked atomic.Int64
	ask := func(context.Context) (int64, error) {
		asked.Add(1)
		return clock.Add(1), nil
	}
	var work sync.WaitGroup
	for range 50 {
		work.Go(func() {
			for range 200 {
				called := clock.Add(1)
				got, err := s.get(t.Context(), ask)
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
	var s shared[string]
	asking, release := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		_, err := s.get(t.Context(), func(context.Context) (string, error) {
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
		_, err := s.get(impatient, func(context.Context) (string, error) { return "never", nil })
		gaveUp <- err
	}()
	for waiting := false; !waiting; {
		s.mu.Lock()
		waiting = s.next != nil
		s.mu.Unlock()
	}
	patient := make(chan string, 1)
	go func() {
		got, err := s.get(t.Context(), func(context.Context) (string, error) { return "second", nil })
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
