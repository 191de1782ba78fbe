package drivertest

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// The detector itself: one answer in ten is cut off, and each is seen as lost. Nothing retries it away.
func TestLoadSeesLosses(t *testing.T) {
	var asked, cut atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1)%10 == 0 {
			cut.Add(1)
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Backend", "a")
	}))
	defer server.Close()
	for _, keepAlive := range []bool{true, false} {
		asked.Store(0)
		cut.Store(0)
		load := StartLoad(t, server.URL, 4, keepAlive)
		end := time.Now().Add(Deadline)
		for asked.Load() < 100 {
			if time.Now().After(end) {
				t.Fatal(errors.New("no load"))
			}
			<-time.After(time.Millisecond)
		}
		load.Stop()
		failed, errs := load.Failed()
		if int64(failed) != cut.Load() || int64(failed+load.Answered("")) != asked.Load() {
			t.Errorf("keep-alive %t: %d of %d requests were cut off, %d seen as lost, %d as answered: %v",
				keepAlive, cut.Load(), asked.Load(), failed, load.Answered(""), errs)
		}
	}
}
