package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

type options struct {
	addr         string
	version      string
	neverHealthy bool
	exitAtOnce   bool
	startDelay   time.Duration
	refuse       string
	illFile      string
}

func main() {
	var o options
	flag.StringVar(&o.addr, "addr", "127.0.0.1:8080", "listen address")
	flag.StringVar(&o.version, "version", "v1", "what to call itself")
	flag.BoolVar(&o.neverHealthy, "never-healthy", false, "answer 500 on /healthz for ever")
	flag.BoolVar(&o.exitAtOnce, "exit-at-once", false, "print a reason and exit with status 3")
	flag.DurationVar(&o.startDelay, "start-delay", 0, "listen only after this time")
	flag.StringVar(&o.refuse, "refuse-from", "", "reset connections from these source addresses (comma separated)")
	flag.StringVar(&o.illFile, "ill-file", "", "answer 500 on /healthz while this file exists")
	flag.Parse()
	log.SetFlags(0)
	if o.exitAtOnce {
		log.Printf("sample %s: cannot read its licence key: giving up", o.version)
		os.Exit(3)
	}
	if err := run(o); err != nil {
		log.Fatal(err)
	}
}

func run(o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if o.startDelay > 0 {
		select {
		case <-time.After(o.startDelay):
		case <-ctx.Done():
			return nil
		}
	}
	ln, err := net.Listen("tcp", o.addr)
	if err != nil {
		return err
	}
	if o.refuse != "" {
		ln = refuser{Listener: ln, from: strings.Split(o.refuse, ",")}
	}
	var served atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		ill := o.neverHealthy
		if o.illFile != "" {
			_, err := os.Stat(o.illFile)
			ill = ill || err == nil
		}
		if ill {
			http.Error(w, o.version+" is not healthy: its database does not answer", http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/stats", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, served.Load()) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20))
		served.Add(1)
		if ms, err := strconv.Atoi(r.URL.Query().Get("ms")); err == nil && ms > 0 {
			select {
			case <-time.After(time.Duration(ms) * time.Millisecond):
			case <-r.Context().Done():
			}
		}
		fmt.Fprintf(w, "%s %s\n", o.version, r.URL.Path)
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	log.Printf("sample %s: listening on %s", o.version, ln.Addr())
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	log.Printf("sample %s: told to stop, %d requests served", o.version, served.Load())
	shutdown, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	if err := srv.Shutdown(shutdown); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// refuser resets connections from some source addresses: a firewall between one Host and the task.
type refuser struct {
	net.Listener
	from []string
}

func (l refuser) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		if !slices.Contains(l.from, host) {
			return conn, nil
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}
