package haproxy

import (
	"context"
	"errors"
	"sync"
)

// shared lets callers who ask at the same time share an answer. What a caller gets was asked after it called, never before,
// so it is as good a proof as an answer of its own (RUNNING = JOURNAL). When many Apps change at once this is what keeps
// HAProxy's command lines, and the table of sockets, from being asked for each of them.
//
// Q is what a caller wants to know; what those want to know who wait together is asked together.
type shared[Q, T any] struct {
	merge   func(Q, Q) Q // nil: all ask the same
	mu      sync.Mutex
	running *flight[Q, T] // has begun to ask: too late to join
	next    *flight[Q, T] // waits for running to end
}

type flight[Q, T any] struct {
	done     chan struct{}
	question Q
	answer   T
	err      error
}

// get asks, or waits for the answer of another caller that has not begun to ask.
func (s *shared[Q, T]) get(ctx context.Context, question Q, ask func(context.Context, Q) (T, error)) (none T, _ error) {
	for {
		f, mine, err := s.board(ctx, question)
		if err != nil {
			return none, err
		}
		if mine {
			f.answer, f.err = ask(ctx, f.question)
			s.mu.Lock()
			s.running = nil
			s.mu.Unlock()
			close(f.done)
			return f.answer, f.err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return none, ctx.Err()
		}
		if errors.Is(f.err, context.Canceled) || errors.Is(f.err, context.DeadlineExceeded) {
			continue // the end of the asker's patience, not of this caller's
		}
		return f.answer, f.err
	}
}

// board returns the flight to be on. mine: the caller has to ask, and nobody else is asking.
func (s *shared[Q, T]) board(ctx context.Context, question Q) (f *flight[Q, T], mine bool, _ error) {
	s.mu.Lock()
	if s.next != nil {
		f = s.next
		if s.merge != nil {
			f.question = s.merge(f.question, question)
		}
		s.mu.Unlock()
		return f, false, nil
	}
	f = &flight[Q, T]{done: make(chan struct{}), question: question}
	if s.running == nil {
		s.running = f
		s.mu.Unlock()
		return f, true, nil
	}
	before := s.running
	s.next = f
	s.mu.Unlock()
	select {
	case <-before.done:
	case <-ctx.Done():
		s.mu.Lock()
		s.next = nil
		s.mu.Unlock()
		f.err = ctx.Err()
		close(f.done)
		return nil, false, ctx.Err()
	}
	s.mu.Lock()
	s.running, s.next = f, nil
	s.mu.Unlock()
	return f, true, nil
}
