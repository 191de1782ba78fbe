package dev

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseLB(t *testing.T) {
	for in, want := range map[string]string{
		"haproxy=2,nginx=1":    "haproxy haproxy nginx",
		"nginx=1, haproxy=1":   "nginx haproxy",
		"none":                 "",
		"haproxy=0,nginx=1":    "nginx",
		"haproxy=0":            "error: --lb none",
		"haproxy=0,nginx=0":    "error: no host is left",
		"haproxy=1,haproxy=2":  "error: named twice",
		"envoy=1":              "error: unknown kind",
		"haproxy":              "error: not KIND=COUNT",
		"haproxy=-1":           "error: count",
		"nginx-reload=1":       "nginx-reload",
		"haproxy=999999999999": "error: count",
	} {
		kinds, err := ParseLB(in)
		if want, isErr := strings.CutPrefix(want, "error: "); isErr {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: got %v, want an error with %q", in, err, want)
			}
			continue
		}
		if err != nil || strings.Join(kinds, " ") != want {
			t.Errorf("%q: got %v, %v", in, kinds, err)
		}
	}
}

func TestLayoutIsRemembered(t *testing.T) {
	dir := t.TempDir()
	first, err := openLayout(dir, []string{"haproxy", "haproxy", "nginx"})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Addr]bool{}
	for _, h := range first.Hosts {
		if seen[h.Address] || !h.Address.IsLoopback() {
			t.Errorf("%s has address %s", h.Name, h.Address)
		}
		seen[h.Address] = true
	}
	again, err := openLayout(dir, []string{"haproxy", "nginx", "nginx"})
	if err != nil {
		t.Fatal(err)
	}
	if again.Net != first.Net || !slices.Contains(again.Hosts, first.Hosts[0]) || !slices.Contains(again.Hosts, first.Hosts[2]) {
		t.Errorf("Hosts moved: %v, then %v", first.Hosts, again.Hosts)
	}
	if len(again.Leaving) != 1 || again.Leaving[0] != first.Hosts[1] {
		t.Errorf("leaving %v, want %v", again.Leaving, first.Hosts[1])
	}
	for _, h := range again.Hosts {
		if h.Address == first.Hosts[1].Address {
			t.Errorf("%s got the address of %s, which still listens there", h.Name, first.Hosts[1].Name)
		}
	}
	// Killed before it could stop what leaves: the next start knows of it, or takes it back.
	third, err := openLayout(dir, []string{"haproxy", "nginx"})
	if err != nil {
		t.Fatal(err)
	}
	if len(third.Leaving) != 2 || len(third.Hosts) != 2 {
		t.Errorf("hosts %v, leaving %v", third.Hosts, third.Leaving)
	}
	fourth, err := openLayout(dir, []string{"haproxy", "haproxy", "nginx"})
	if err != nil {
		t.Fatal(err)
	}
	if len(fourth.Leaving) != 1 || fourth.Leaving[0].Kind != "nginx" || !slices.Contains(fourth.Hosts, first.Hosts[1]) {
		t.Errorf("hosts %v, leaving %v", fourth.Hosts, fourth.Leaving)
	}
	if len(again.Hosts) != 3 {
		t.Errorf("got %v", again.Hosts)
	}
}

// Two directories may lead to the same network. Whoever comes later takes another one, and keeps it.
func TestNoNetworkIsShared(t *testing.T) {
	dir := t.TempDir()
	taken := clusterNet(dir)
	ln, err := net.Listen("tcp", hostSpec{Address: addressFrom(taken, firstHost)}.agent().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l, err := openLayout(dir, []string{"haproxy"})
	if err != nil {
		t.Fatal(err)
	}
	if l.Net == taken || !l.Net.IsLoopback() || l.Hosts[0].Address != addressFrom(l.Net, firstHost) {
		t.Errorf("another cluster is in %s, and this one is in %s with %v", taken, l.Net, l.Hosts)
	}
	ln.Close()
	if again, err := openLayout(dir, []string{"haproxy"}); err != nil || again.Net != l.Net {
		t.Errorf("it was in %s, and is in %s: %v", l.Net, again.Net, err)
	}
}

func TestRememberedAddress(t *testing.T) {
	ln, err := listenRemembered("127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	again, err := listenRemembered("127.0.0.1:0", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Addr().String() != addr {
		t.Errorf("got %s, remembered %s", again.Addr(), addr)
	}
}
