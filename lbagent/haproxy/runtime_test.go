package haproxy

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// A caller that gives up while HAProxy is about to answer takes nobody with it who waits for the same answer.
func TestSharedOutlivesAnAskerWhoGivesUpOnHAProxy(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- conn
		}
	}()
	var s shared[struct{}, []string]
	ask := func(ctx context.Context, _ struct{}) ([]string, error) {
		return commandLine{socket}.ask(ctx, "show info")
	}
	for name, giveUp := range map[string]func() (context.Context, context.CancelFunc){
		"cancelled": func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) },
		"out of time": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			return ctx, func() { <-ctx.Done(); cancel() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			release, begun := make(chan struct{}), make(chan struct{})
			var others sync.WaitGroup
			defer others.Wait()
			others.Go(func() {
				_, _ = s.get(t.Context(), struct{}{}, func(context.Context, struct{}) ([]string, error) {
					close(begun)
					<-release
					return nil, nil
				})
			})
			<-begun
			ctx, cancel := giveUp()
			others.Go(func() { _, _ = s.get(ctx, struct{}{}, ask) })
			for waits := false; !waits; time.Sleep(time.Millisecond) {
				s.mu.Lock()
				waits = s.next != nil
				s.mu.Unlock()
			}
			patient := make(chan error, 1)
			go func() {
				_, err := s.get(t.Context(), struct{}{}, ask)
				patient <- err
			}()
			time.Sleep(20 * time.Millisecond) // it is aboard
			close(release)
			first := <-accepted
			defer first.Close()
			cancel()
			select {
			case conn := <-accepted:
				if _, err := io.ReadAll(conn); err != nil {
					t.Error(err)
				}
				if _, err := conn.Write([]byte("Pid: 1\n\n")); err != nil {
					t.Error(err)
				}
				conn.Close()
				if err := <-patient; err != nil {
					t.Errorf("the patient caller got %v", err)
				}
			case err := <-patient:
				t.Errorf("the patient caller got what the other one's end came to: %v", err)
			case <-time.After(10 * time.Second):
				t.Error("nobody asks again")
			}
		})
	}
}
