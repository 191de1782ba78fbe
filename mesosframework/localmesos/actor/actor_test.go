package actor

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestOrderAndStop(t *testing.T) {
	a := New()
	var got []int
	for i := range 1000 {
		a.Post(func() { got = append(got, i) })
	}
	if err := a.Call(t.Context(), func() {}); err != nil {
		t.Fatal(err)
	}
	for i, v := range got {
		if i != v {
			t.Fatalf("got[%d] = %d", i, v)
		}
	}
	a.Stop()
	if a.Post(func() {}) {
		t.Fatal("a stopped actor took a function")
	}
	if err := a.Call(t.Context(), func() {}); !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
}

func TestTimer(t *testing.T) {
	a := New()
	defer a.Stop()
	fired := make(chan string, 2)
	a.After(0, func() { fired <- "kept" })
	if got := <-fired; got != "kept" {
		t.Fatal(got)
	}
	_ = a.Call(t.Context(), func() {
		tm := a.After(time.Millisecond, func() { fired <- "cancelled" })
		tm.Cancel()
	})
	a.After(20*time.Millisecond, func() { fired <- "later" })
	if got := <-fired; got != "later" {
		t.Fatal(got)
	}
}

func TestCallDeadline(t *testing.T) {
	a := New()
	hold := make(chan struct{})
	a.Post(func() { <-hold })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if err := a.Call(ctx, func() {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	close(hold)
	a.Stop()
}
