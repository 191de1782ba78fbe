package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cutover/cutover/internal/loadgen"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

type host struct {
	Name        string `json:"name"`
	Proxy       string `json:"proxy"`
	FrontendURL string `json:"frontend_url"`
}

type demo struct {
	bin, sample, dir string
	dev              *exec.Cmd
	ended            chan struct{}
	hosts            []host
	apiURL, mesosURL string
	began            time.Time
}

func run(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Dir(self)
	d := &demo{bin: filepath.Join(bin, "cutover"), sample: filepath.Join(bin, "sample"), dir: filepath.Join(filepath.Dir(bin), ".cutover", "demo"), began: time.Now()}
	d.say("starting a cluster of one machine: Mesos, the orchestrator, 2 HAProxy and 2 nginx Hosts")
	if err := d.start(ctx); err != nil {
		return err
	}
	defer d.stop()
	for _, h := range d.hosts {
		fmt.Printf("    %-14s %-8s %s\n", h.Name, h.Proxy, h.FrontendURL)
	}
	held := d.story(ctx)
	if os.Getenv("DEMO_EXIT") == "1" {
		if held == nil {
			d.say("all of it held")
		}
		return held
	}
	if held != nil {
		fmt.Fprintln(os.Stderr, "\ndemo: something did not hold:", held)
	}
	fmt.Printf(`
The cluster stays up until Ctrl-C.
  API      %s (token in %s)
  Mesos    %s
  App      %s/shop

Try, in another terminal:
  export CUTOVER_DATA_DIR=%s
  %s status shop
  %s lb show %s
  %s rollback shop
  %s scale shop 6
  %s logs shop -f
`, d.apiURL, filepath.Join(d.dir, "dev.json"), d.mesosURL, d.hosts[0].FrontendURL, d.dir, d.bin, d.bin, d.hosts[0].Name, d.bin, d.bin, d.bin)
	select {
	case <-ctx.Done():
	case <-d.ended:
		return errors.New("cutover dev ended by itself")
	}
	return nil
}

// story is the demo itself; it returns what did not hold.
func (d *demo) story(ctx context.Context) error {
	d.say("deploy v1 of the App shop: 4 instances")
	if err := d.deploy(ctx, "v1", 0); err != nil {
		return err
	}
	d.say("start the load: POSTs on kept-alive and fresh connections through all four Hosts, none retried")
	var urls []string
	for _, h := range d.hosts {
		urls = append(urls, h.FrontendURL)
	}
	load, err := loadgen.Start(ctx, loadgen.Options{URLs: urls, Path: "/shop/buy", SlowPath: "/shop/slow?ms=1500", KeepAlive: 5, Close: 2, Slow: 1, Think: 20 * time.Millisecond})
	if err != nil {
		return err
	}
	defer load.Stop()
	d.say("deploy v2 under that load")
	if err := d.deploy(ctx, "v2", 0); err != nil {
		return err
	}
	fmt.Printf("    load so far: %s\n", load.Result())
	if err := d.serves(ctx, "v2"); err != nil {
		return err
	}
	last := d.hosts[len(d.hosts)-1]
	broken, err := url.Parse(last.FrontendURL)
	if err != nil {
		return err
	}
	d.say("deploy v3, which is broken: healthy in itself, but %s cannot reach it", last.Name)
	if err := d.deploy(ctx, "v3", 3, "--refuse-from", broken.Hostname()); err != nil {
		return err
	}
	if err := d.serves(ctx, "v2"); err != nil {
		return err
	}
	if err := d.command(ctx, 0, "lb", "hosts"); err != nil {
		return err
	}
	res := load.Stop()
	d.say("the load: %s", res)
	if res.Failed > 0 {
		for _, f := range res.Failures[:min(5, len(res.Failures))] {
			fmt.Printf("    %s %s\n", f.URL, f.Err)
		}
		return fmt.Errorf("%d of %d requests failed", res.Failed, res.Sent)
	}
	return nil
}

func (d *demo) say(format string, args ...any) {
	fmt.Printf("\n[%5.1fs] %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// start runs `cutover dev` until it is ready, or says why it is not.
func (d *demo) start(ctx context.Context) error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	logName := filepath.Join(d.dir, "dev.log")
	log, err := os.Create(logName)
	if err != nil {
		return err
	}
	defer log.Close()
	d.dev = exec.Command(d.bin, "dev", "--data-dir", d.dir, "--api", "127.0.0.1:0", "--lb", "haproxy=2,nginx=2", "--agents", "2")
	d.dev.Stdout, d.dev.Stderr = log, log
	d.dev.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for us; we stop it in order
	if err := d.dev.Start(); err != nil {
		return err
	}
	d.ended = make(chan struct{})
	go func() {
		_ = d.dev.Wait()
		close(d.ended)
	}()
	deadline := time.After(60 * time.Second)
	for {
		text, _ := os.ReadFile(logName)
		if bytes.Contains(text, []byte("ready")) {
			break
		}
		select {
		case <-d.ended:
			return fmt.Errorf("cutover dev ended:\n%s", text)
		case <-deadline:
			d.stop()
			return fmt.Errorf("cutover dev was not ready within 60 s:\n%s", text)
		case <-ctx.Done():
			d.stop()
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
	data, err := os.ReadFile(filepath.Join(d.dir, "dev.json"))
	if err != nil {
		return err
	}
	var info struct {
		APIURL   string `json:"api_url"`
		MesosURL string `json:"mesos_url"`
		Hosts    []host `json:"hosts"`
	}
	if err := json.Unmarshal(data, &info); err != nil {
		return err
	}
	d.hosts, d.apiURL, d.mesosURL = info.Hosts, info.APIURL, info.MesosURL
	return nil
}

func (d *demo) stop() {
	_ = d.dev.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(30 * time.Second):
		_ = d.dev.Process.Kill()
	}
}

// deploy writes the Spec of a version and deploys it with the command line; want is the exit code that it must have.
func (d *demo) deploy(ctx context.Context, version string, want int, flags ...string) error {
	spec := fmt.Sprintf(`name: shop
kind: service
version: %q
instances: 4
command: exec %s --addr $HOST:$PORT0 --version %s %s
resources: {cpus: 0.1, memory: 32MiB, ports: 1}
health: {http: {path: /healthz, port: 0}, interval: 200ms, timeout: 1s, rise: 2, fall: 3, grace: 10s}
kill: {signal: TERM, grace: 10s}
routes: [{group: public, host: "*", path: /shop, port: 0}]
deploy: {strategy: blue-green, deadline: 15s, drain: 10s}
`, version, d.sample, version, strings.Join(flags, " "))
	file := filepath.Join(d.dir, "shop-"+version+".yaml")
	if err := os.WriteFile(file, []byte(spec), 0o600); err != nil {
		return err
	}
	return d.command(ctx, want, "deploy", "-f", file)
}

func (d *demo) command(ctx context.Context, want int, args ...string) error {
	fmt.Printf("    $ cutover %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, d.bin, args...)
	cmd.Env = append(os.Environ(), "CUTOVER_DATA_DIR="+d.dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	if code := cmd.ProcessState.ExitCode(); code != want {
		return fmt.Errorf("cutover %s: exit %d, want %d", strings.Join(args, " "), code, want)
	}
	return nil
}

// serves proves from outside which version every Host serves.
func (d *demo) serves(ctx context.Context, version string) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, h := range d.hosts {
		seen := map[string]int{}
		for range 20 {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.FrontendURL+"/shop/", nil)
			if err != nil {
				return err
			}
			resp, err := client.Do(req)
			if err != nil {
				return fmt.Errorf("%s: %w", h.Name, err)
			}
			body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
			_ = resp.Body.Close()
			if err != nil {
				return fmt.Errorf("%s: %w", h.Name, err)
			}
			who, _, _ := strings.Cut(string(body), " ")
			seen[who]++
		}
		fmt.Printf("    %-14s 20 requests answered by %v\n", h.Name, seen)
		if seen[version] != 20 {
			return fmt.Errorf("%s does not serve %s alone: %v", h.Name, version, seen)
		}
	}
	return nil
}
