package consulcatalog

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	"pgregory.net/rapid"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/proto/announcement"
)

func TestHostsOf(t *testing.T) {
	meta := func(pairs ...string) map[string]string {
		m := map[string]string{announcement.Cluster: "main", announcement.Group: "public", announcement.Host: "lb-1"}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	entry := func(change func(*api.CatalogService), pairs ...string) *api.CatalogService {
		e := &api.CatalogService{Node: "n1", Address: "10.0.1.1", ServiceID: "s1", ServiceAddress: "10.0.1.11", ServicePort: 8600, ServiceMeta: meta(pairs...)}
		if change != nil {
			change(e)
		}
		return e
	}
	for name, c := range map[string]struct {
		entry *api.CatalogService
		url   string // "" if it is no Host
		why   string // in what is refused
	}{
		"complete":                  {entry(nil), "https://10.0.1.11:8600", ""},
		"without a service address": {entry(func(e *api.CatalogService) { e.ServiceAddress = "" }), "https://10.0.1.1:8600", ""},
		"with a name":               {entry(func(e *api.CatalogService) { e.ServiceAddress = "lb-1.example" }), "https://lb-1.example:8600", ""},
		"IPv6":                      {entry(func(e *api.CatalogService) { e.ServiceAddress = "fd00::1" }), "https://[fd00::1]:8600", ""},
		"in the clear":              {entry(nil, announcement.Scheme, "http"), "http://10.0.1.11:8600", ""}, // the registry refuses it
		"of another cluster":        {entry(nil, announcement.Cluster, "other"), "", ""},
		"of no cluster":             {entry(nil, announcement.Cluster, ""), "", "instance s1 on node n1: no cutover-cluster"},
		"of no group":               {entry(nil, announcement.Group, ""), "", "no cutover-group"},
		"of no host":                {entry(nil, announcement.Host, ""), "", "no cutover-host"},
		"with another scheme":       {entry(nil, announcement.Scheme, "ftp"), "", `cutover-scheme "ftp"`},
		"without a port":            {entry(func(e *api.CatalogService) { e.ServicePort = 0 }), "", "port 0"},
		"with an impossible port":   {entry(func(e *api.CatalogService) { e.ServicePort = 70000 }), "", "port 70000"},
		"with more than an address": {entry(func(e *api.CatalogService) { e.ServiceAddress = "evil.example/x?" }), "", `address "evil.example/x?"`},
		"without any address":       {entry(func(e *api.CatalogService) { e.ServiceAddress, e.Address = "", "" }), "", `address ""`},
		"without meta":              {entry(func(e *api.CatalogService) { e.ServiceMeta = nil }), "", "no cutover-cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			hosts, refused, err := hostsOf("main", []*api.CatalogService{c.entry})
			if err != nil {
				t.Fatal(err)
			}
			var want []registry.Host
			if c.url != "" {
				want = []registry.Host{{Name: "lb-1", Group: "public", AgentURL: c.url}}
			}
			if diff := cmp.Diff(want, hosts); diff != "" {
				t.Error(diff)
			}
			if got := strings.Join(refused, "; "); (c.why == "") != (got == "") || !strings.Contains(got, c.why) {
				t.Errorf("refused %q, want %q", got, c.why)
			}
		})
	}
	if _, _, err := hostsOf("main", make([]*api.CatalogService, maxEntries+1)); err == nil {
		t.Error("there is no bound")
	}
}

func TestCursor(t *testing.T) {
	type step struct {
		index uint64 // of the answer; 0 with failed
		fail  bool
		want  uint64 // the next query waits for more than this
		pause time.Duration
	}
	for name, steps := range map[string][]step{
		"forward":          {{7, false, 7, minPause}, {9, false, 9, minPause}},
		"nothing new":      {{7, false, 7, minPause}, {7, false, 7, minPause}},
		"back":             {{7, false, 7, minPause}, {3, false, 0, minPause}, {3, false, 3, minPause}},
		"never nought":     {{0, false, 1, minPause}, {0, false, 0, minPause}, {0, false, 1, minPause}},
		"away":             {{7, false, 7, minPause}, {0, true, 0, minPause}, {0, true, 0, 2 * minPause}, {0, true, 0, 4 * minPause}, {8, false, 8, minPause}, {0, true, 0, minPause}},
		"away from before": {{0, true, 0, minPause}},
	} {
		t.Run(name, func(t *testing.T) {
			var c cursor
			for i, s := range steps {
				var pause time.Duration
				if s.fail {
					c, pause = c.failed()
				} else {
					c, pause = c.answered(s.index)
				}
				if c.index != s.want || pause != s.pause {
					t.Errorf("step %d: waits for %d after %v, want %d after %v", i, c.index, pause, s.want, s.pause)
				}
			}
		})
	}
}

// Whatever Consul answers, queries never follow each other without a pause, the pause is bounded, and two answers with the
// same index bring it back to waiting.
func TestCursorNeverSpinsAndNeverSleepsForLong(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c cursor
		for range rapid.IntRange(1, 60).Draw(t, "n") {
			var pause time.Duration
			if rapid.Bool().Draw(t, "fail") {
				c, pause = c.failed()
			} else {
				c, pause = c.answered(rapid.Uint64Range(0, 5).Draw(t, "index"))
			}
			if pause < minPause || pause > retryMax {
				t.Fatalf("pause %v", pause)
			}
		}
		index := rapid.Uint64Range(0, 5).Draw(t, "last")
		c, _ = c.answered(index)
		c, _ = c.answered(index)
		if c.index == 0 {
			c, _ = c.answered(index)
		}
		if c.index == 0 {
			t.Fatalf("%d answered again and again: the next query does not wait", index)
		}
	})
}
