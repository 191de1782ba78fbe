package redisstore

import (
	"testing"

	"github.com/cutover/cutover/internal/servertest/redistest"
	"github.com/cutover/cutover/orchestrator/store"
)

// A Commit that was settled as never written stays so when its call reaches Redis afterwards, out of a buffer in between.
func TestCommitThatComesLateIsRefused(t *testing.T) {
	s, err := Open(t.Context(), redistest.Start(t, redistest.Options{}).URL, Options{Cluster: "c"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Commit(t.Context(), store.Fence{}, store.Op{Kind: store.Put, Key: "a", Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	settle := func(nonce string) string {
		t.Helper()
		reply, err := s.run(t.Context(), settleScript, nonce, nonce, uint64(1), refusedFor)
		if err != nil {
			t.Fatal(err)
		}
		return text(reply, 0)
	}
	call := func(nonce string) string {
		t.Helper()
		reply, err := s.run(t.Context(), commitScript, nonce, store.FormatVersion, 0, nonce, 10, 1000, "put", "a", nonce, 0)
		if err != nil {
			t.Fatal(err)
		}
		return text(reply, 0)
	}
	if got := settle("late"); got != "never" {
		t.Fatalf("settled as %q", got)
	}
	if got := call("late"); got != "refused" {
		t.Errorf("the late call was answered %q", got)
	}
	if got := call("timely"); got != "ok" {
		t.Errorf("another call was answered %q", got)
	}
	if got := settle("timely"); got != "written" {
		t.Errorf("a call that was answered is settled as %q", got)
	}
	rec, err := s.Get(t.Context(), "a")
	if err != nil || string(rec.Value) != "timely" {
		t.Errorf("a = %q, %v", rec.Value, err)
	}
}
