package drivertest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// Load is a running load of POSTs whose bodies cannot be sent twice, so that neither net/http nor anything else on the
// client's side retries: every lost request is seen.
type Load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	ok     map[string]int // by the name of the upstream that answered
	errors []string       // the first few
	failed int
}

// oneWay hides Seek and the type of the reader, so that net/http has no GetBody to rewind with.
type oneWay struct{ io.Reader }

// StartLoad posts to url from n clients until Stop. Keep-alive clients pause a little between requests, as browsers
// do: idle connections are what a careless reload loses.
func StartLoad(t testing.TB, url string, n int, keepAlive bool) *Load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{cancel: cancel, ok: map[string]int{}}
	for range n {
		l.wg.Go(func() {
			transport := &http.Transport{DisableKeepAlives: !keepAlive, MaxIdleConnsPerHost: 1}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: Deadline}
			pause := time.NewTicker(5 * time.Millisecond)
			defer pause.Stop()
			for ctx.Err() == nil {
				name, err := post(client, url)
				l.record(name, err)
				select {
				case <-pause.C:
				case <-ctx.Done():
				}
			}
		})
	}
	t.Cleanup(func() { l.Stop() })
	return l
}

func post(client *http.Client, url string) (string, error) {
	// Not bound to the context of the load: Stop lets every request in flight end, so none fails because of it.
	req, err := http.NewRequest(http.MethodPost, url, oneWay{strings.NewReader("payload")})
	if err != nil {
		return "", err
	}
	req.ContentLength = int64(len("payload"))
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d: %.200s", resp.StatusCode, body)
	}
	return resp.Header.Get("X-Backend"), nil
}

func (l *Load) record(name string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.ok[name]++
		return
	}
	l.failed++
	if len(l.errors) < 5 {
		l.errors = append(l.errors, err.Error())
	}
}

// Answered is the number of requests that the named upstream has answered so far; "" counts all.
func (l *Load) Answered(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if name != "" {
		return l.ok[name]
	}
	n := 0
	for _, k := range l.ok {
		n += k
	}
	return n
}

// Failed is the number of lost requests so far, with the first few errors.
func (l *Load) Failed() (int, []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed, append([]string(nil), l.errors...)
}

// Stop ends the load when its requests in flight have been answered. It may be called more than once.
func (l *Load) Stop() {
	l.cancel()
	l.wg.Wait()
}
