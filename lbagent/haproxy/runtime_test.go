package haproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cutover/cutover/lbagent/drivertest"
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
	for name, end := range map[string]error{"cancelled": context.Canceled, "out of time": context.DeadlineExceeded} {
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
			impatient := &patience{Context: t.Context(), ends: make(chan struct{}), end: end}
			others.Go(func() { _, _ = s.get(impatient, struct{}{}, ask) })
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
			if _, err := io.ReadAll(first); err != nil { // it has asked, and waits for the answer
				t.Error(err)
			}
			close(impatient.ends)
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
			case <-time.After(drivertest.Deadline):
				t.Error("nobody asks again")
			}
		})
	}
}

// patience is a context that ends as the test says, and when it says so.
type patience struct {
	context.Context
	ends chan struct{}
	end  error
}

func (p *patience) Done() <-chan struct{} { return p.ends }

func (p *patience) Err() error {
	select {
	case <-p.ends:
		return p.end
	default:
		return nil
	}
}

// Whatever of a question the end of its caller's time cuts off, it is told as that, and not as a HAProxy that does not answer.
func TestOutOfTimeIsTheCallers(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket) // the kernel takes the connection, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := (commandLine{socket}).ask(ctx, "show info"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
