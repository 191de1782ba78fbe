package netfault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Mode is how the network behaves.
type Mode uint8

// The modes.
const (
	// Pass: everything arrives.
	Pass Mode = iota
	// Cut: connections are reset, new ones too.
	Cut
	// Silent: connections are accepted and stay open, and nothing arrives in either direction.
	Silent
	// Deaf: what the client says does not arrive; what the server says does.
	Deaf
	// Mute: what the server says does not arrive; what the client says does.
	Mute
)

// String returns the mode's name.
func (m Mode) String() string {
	names := [...]string{"pass", "cut", "silent", "deaf", "mute"}
	if int(m) < len(names) {
		return names[m]
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// holds reports whether bytes in this direction wait.
func (m Mode) holds(fromClient bool) bool {
	return m == Silent || m == Deaf && fromClient || m == Mute && !fromClient
}

const (
	chunk       = 32 << 10
	maxConns    = 1024
	dialTimeout = 5 * time.Second
)

// Proxy is one listening proxy. Safe for concurrent use.
type Proxy struct {
	target string
	ln     net.Listener
	wg     sync.WaitGroup
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	mode    Mode
	delay   time.Duration
	changed chan struct{} // closed and replaced when mode or delay change
	conns   map[net.Conn]bool
	held    uint64
}

// Listen starts a proxy on addr that passes to target. Close ends it.
func Listen(ctx context.Context, addr, target string) (*Proxy, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("proxy to %s: %w", target, err)
	}
	p := &Proxy{target: target, ln: ln, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() net.Addr { return p.ln.Addr() }

// Set changes how the network behaves, for connections that are open too.
func (p *Proxy) Set(m Mode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = m
	p.wake()
	if m == Cut {
		for c := range p.conns {
			reset(c)
		}
	}
}

// Delay holds each piece of a message back for d, in both directions.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
	p.wake()
}

// Held is how many bytes have ever been held back by a mode: a test that wants a message to be lost can wait for it.
func (p *Proxy) Held() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

// Close ends the proxy and all connections, and waits for them.
func (p *Proxy) Close() error {
	p.cancel()
	err := p.ln.Close()
	p.mu.Lock()
	for c := range p.conns {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return err
}

// wake tells all connections to look again. REQUIRES: mu is held.
func (p *Proxy) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) accept() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select { // out of descriptors: that passes
			case <-p.ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
				continue
			}
		}
		if !p.add(c) {
			reset(c)
			continue
		}
		p.wg.Go(func() { p.serve(c) })
	}
}

func (p *Proxy) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode == Cut || len(p.conns) >= maxConns || p.ctx.Err() != nil {
		return false
	}
	p.conns[c] = true
	return true
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	_ = c.Close()
}

// serve passes one connection. The server is dialled even while the network is silent: only bytes are held.
func (p *Proxy) serve(client net.Conn) {
	defer p.drop(client)
	d := net.Dialer{Timeout: dialTimeout}
	server, err := d.DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		reset(client)
		return
	}
	if !p.add(server) {
		reset(server)
		reset(client)
		return
	}
	defer p.drop(server)
	var both sync.WaitGroup
	both.Go(func() { p.pump(server, client, true) })
	both.Go(func() { p.pump(client, server, false) })
	both.Wait()
}

// pump passes one direction until it ends, and passes the end on.
func (p *Proxy) pump(to, from net.Conn, fromClient bool) {
	buf := make([]byte, chunk)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !p.admit(fromClient, n) {
				break
			}
			if _, werr := to.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) || !p.admit(fromClient, 0) {
				break
			}
			_ = to.(*net.TCPConn).CloseWrite()
			return
		}
	}
	_ = to.Close()
	_ = from.Close()
}

// admit waits until bytes may pass in this direction; false if the proxy ends first.
func (p *Proxy) admit(fromClient bool, n int) bool {
	counted := false
	for {
		p.mu.Lock()
		holds, delay, changed := p.mode.holds(fromClient), p.delay, p.changed
		if holds && !counted {
			p.held += uint64(n)
			counted = true
		}
		p.mu.Unlock()
		if !holds && delay == 0 {
			return p.ctx.Err() == nil
		}
		var passed <-chan time.Time
		if !holds {
			passed = time.After(delay)
		}
		select {
		case <-p.ctx.Done():
			return false
		case <-passed:
			return true
		case <-changed:
		}
	}
}

// reset ends a connection as a firewall does that answers.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
