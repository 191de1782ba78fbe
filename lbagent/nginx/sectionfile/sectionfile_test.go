package sectionfile

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cutover/cutover/lbagent/driver"
)

func example() driver.Section {
	return driver.Section{
		App:    "shop",
		Routes: []driver.Route{{Host: "*", Path: "/shop"}, {Host: "shop.example.com", Path: "/", Strip: true}},
		Upstreams: []driver.Upstream{
			{
				Name: "shop-1", Address: netip.MustParseAddrPort("127.0.0.1:8001"), Weight: 1, Mode: driver.Serving,
				Health: driver.Health{Kind: driver.HealthHTTP, Path: "/healthz?full=1", Interval: 500 * time.Millisecond, Timeout: time.Second, Rise: 2, Fall: 3},
			},
			{Name: "shop-2", Address: netip.MustParseAddrPort("[::1]:8002"), Weight: 256, Mode: driver.Draining, Health: driver.Health{Kind: driver.HealthTCP, Rise: 1, Fall: 1}},
			{Name: "shop-3", Address: netip.MustParseAddrPort("10.0.0.1:1"), Weight: 7, Mode: driver.Warm},
		},
	}
}

var compareAddrs = cmp.Options{cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmpopts.EquateEmpty()}

func TestDecodeReadsWhatEncodeWrote(t *testing.T) {
	want := example()
	got, write, err := Decode(Encode(want, 42<<32|7))
	if err != nil {
		t.Fatal(err)
	}
	if write != 42<<32|7 {
		t.Errorf("write number %d", write)
	}
	if diff := cmp.Diff(want, got, compareAddrs); diff != "" {
		t.Errorf("section differs (-want +got):\n%s", diff)
	}
}

// A file of which only a part reached the disk, or in which a byte changed, is never taken for a Section.
func TestDecodeRefusesEveryTruncationAndEveryChangedByte(t *testing.T) {
	text := Encode(example(), 1)
	for i := range text {
		if _, _, err := Decode(text[:i]); err == nil {
			t.Fatalf("the first %d of %d bytes were accepted", i, len(text))
		}
		broken := bytes.Clone(text)
		broken[i] ^= 1
		if got, _, err := Decode(broken); err == nil && driver.Digest(got) != driver.Digest(example()) {
			t.Fatalf("byte %d changed and was accepted", i)
		}
	}
}

func TestCheckRefusesWhatCouldLeaveItsWord(t *testing.T) {
	for name, change := range map[string]func(*driver.Section){
		"app with slash":        func(s *driver.Section) { s.App = "../etc" },
		"app empty":             func(s *driver.Section) { s.App = "" },
		"host with upper case":  func(s *driver.Section) { s.Routes[0].Host = "Shop" },
		"host with quote":       func(s *driver.Section) { s.Routes[0].Host = "a\"b" },
		"path relative":         func(s *driver.Section) { s.Routes[0].Path = "shop" },
		"path with space":       func(s *driver.Section) { s.Routes[0].Path = "/a b" },
		"path with newline":     func(s *driver.Section) { s.Routes[0].Path = "/a\nb" },
		"path with quote":       func(s *driver.Section) { s.Routes[0].Path = "/a\"b" },
		"path with query":       func(s *driver.Section) { s.Routes[0].Path = "/a?b" },
		"route twice":           func(s *driver.Section) { s.Routes = append(s.Routes, driver.Route{Host: "*", Path: "/shop/"}) },
		"name with slash":       func(s *driver.Section) { s.Upstreams[0].Name = "a/b" },
		"name twice":            func(s *driver.Section) { s.Upstreams[1].Name = s.Upstreams[0].Name },
		"no address":            func(s *driver.Section) { s.Upstreams[0].Address = netip.AddrPort{} },
		"weight zero":           func(s *driver.Section) { s.Upstreams[0].Weight = 0 },
		"no mode":               func(s *driver.Section) { s.Upstreams[0].Mode = 0 },
		"health path with CRLF": func(s *driver.Section) { s.Upstreams[0].Health.Path = "/a\r\nX: y" },
		"health path missing":   func(s *driver.Section) { s.Upstreams[0].Health.Path = "" },
	} {
		s := example()
		change(&s)
		if Check(s) == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if err := Check(example()); err != nil {
		t.Errorf("the example is refused: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(example(), 9))
	f.Add([]byte("cutover-section 1 1\napp a\nend 00000000\n"))
	f.Add([]byte(strings.Repeat("\n", 20)))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, write, err := Decode(text)
		if err != nil {
			return
		}
		again, w, err := Decode(Encode(s, write))
		if err != nil || w != write || driver.Digest(again) != driver.Digest(s) {
			t.Fatalf("%+v does not survive: %v", s, err)
		}
	})
}
