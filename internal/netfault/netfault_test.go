package netfault_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/netfault"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const generous = 20 * time.Second

// echo starts a server that sends every line back, and a proxy before it.
func echo(t *testing.T) *netfault.Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	p, err := netfault.Listen(context.Background(), "127.0.0.1:0", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

type line struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, p *netfault.Proxy) *line {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(generous))
	return &line{c, bufio.NewReader(c)}
}

func (l *line) say(t *testing.T, s string) {
	t.Helper()
	if _, err := io.WriteString(l, s+"\n"); err != nil {
		t.Fatal(err)
	}
}

func (l *line) hear(t *testing.T, want string) {
	t.Helper()
	if got, err := l.r.ReadString('\n'); err != nil || got != want+"\n" {
		t.Fatalf("heard %q %v, want %q", got, err, want)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(generous); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen within %s", what, generous)
		}
	}
}

func TestPassesAndDelays(t *testing.T) {
	p := echo(t)
	l := dial(t, p)
	l.say(t, "a")
	l.hear(t, "a")
	p.Delay(30 * time.Millisecond)
	began := time.Now()
	l.say(t, "b")
	l.hear(t, "b")
	if d := time.Since(began); d < 60*time.Millisecond {
		t.Errorf("there and back took %s, want two delays of 30 ms", d)
	}
}

// What is held back arrives when the network heals, on the same connection.
func TestHoldsEachDirection(t *testing.T) {
	for _, m := range []netfault.Mode{netfault.Silent, netfault.Deaf, netfault.Mute} {
		p := echo(t)
		l := dial(t, p)
		l.say(t, "before")
		l.hear(t, "before")
		p.Set(m)
		l.say(t, "held")
		waitFor(t, m.String()+" holds something", func() bool { return p.Held() > 0 })
		_ = l.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := l.r.Peek(1); err == nil {
			t.Errorf("%v: an answer came through", m)
		}
		_ = l.SetDeadline(time.Now().Add(generous))
		p.Set(netfault.Pass)
		l.hear(t, "held")
	}
}

func TestCutsAndHeals(t *testing.T) {
	p := echo(t)
	l := dial(t, p)
	l.say(t, "a")
	l.hear(t, "a")
	p.Set(netfault.Cut)
	if _, err := l.r.ReadByte(); err == nil {
		t.Error("a cut connection still answers")
	}
	c, err := net.Dial("tcp", p.Addr().String())
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(generous))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a new connection answers")
		}
		_ = c.Close()
	}
	p.Set(netfault.Pass)
	again := dial(t, p)
	again.say(t, "b")
	again.hear(t, "b")
}

// The end of one direction is passed on, and the other still works.
func TestPassesTheEnd(t *testing.T) {
	p := echo(t)
	l := dial(t, p)
	l.say(t, "last")
	if err := l.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	l.hear(t, "last")
	if _, err := l.r.ReadByte(); err != io.EOF {
		t.Errorf("want the end, got %v", err)
	}
}
