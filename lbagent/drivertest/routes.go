package drivertest

import (
	"net/http"
	"testing"

	"github.com/cutover/cutover/lbagent/driver"
)

// Routes: nesting, segment boundaries, exact host before any host, stripping; all without disturbing other Apps.
func testRoutes(t *testing.T, h Harness) {
	r := newRig(t, h)
	apps := map[string]*Backend{}
	for _, a := range []struct {
		app    string
		routes []driver.Route
	}{
		{"root", []driver.Route{{Host: "*", Path: "/"}}},
		{"shop", []driver.Route{{Host: "*", Path: "/shop"}}},
		{"cart", []driver.Route{{Host: "*", Path: "/shop/cart"}}},
		{"api", []driver.Route{{Host: "api.example", Path: "/"}, {Host: "*", Path: "/v1/api", Strip: true}}},
		{"deep", []driver.Route{{Host: "api.example", Path: "/shop/cart/deep", Strip: true}}},
	} {
		b := NewBackend(t, a.app+"-1")
		apps[a.app] = b
		warm := onlyWarm(a.app, b.Upstream(driver.Warm))
		r.stage(warm)
		r.converge(warm)
		r.awaitGreen(a.app, b.Name)
		s := driver.Section{App: a.app, Routes: a.routes, Upstreams: []driver.Upstream{b.Upstream(driver.Serving)}}
		r.stage(s)
		r.publish(s)
		r.converge(s)
		r.holds(s)
	}
	all := func() {
		t.Helper()
		for _, tt := range []struct{ host, path, app, uri string }{
			{"", "/", "root", "/"},
			{"", "/other", "root", "/other"},
			{"", "/shop", "shop", "/shop"},
			{"", "/shop/", "shop", "/shop/"},
			{"", "/shop/x?y=1", "shop", "/shop/x?y=1"},
			{"", "/shopping", "root", "/shopping"},
			{"", "/shop/cart", "cart", "/shop/cart"},
			{"", "/shop/carts", "shop", "/shop/carts"},
			{"", "/shop/cart/1", "cart", "/shop/cart/1"},
			{"api.example", "/", "api", "/"},
			{"API.Example:8443", "/shop/cart", "api", "/shop/cart"},
			{"xapi.example", "/shop", "shop", "/shop"},
			{"api.example", "/shop/cart/deep/x?y=1", "deep", "/x?y=1"},
			{"api.example", "/shop/cart/deep", "deep", "/"},
			{"api.example", "/shop/cart/deeper", "api", "/shop/cart/deeper"},
			{"", "/v1/api", "api", "/"},
			{"", "/v1/api/", "api", "/"},
			{"", "/v1/api/users/7", "api", "/users/7"},
			{"", "/v1/apis", "root", "/v1/apis"},
		} {
			r.expect(tt.host, tt.path, answer{Status: http.StatusOK, Backend: apps[tt.app].Name})
			uri, host := apps[tt.app].Last()
			if uri != tt.uri {
				t.Errorf("%s%s: the upstream saw %q, want %q", tt.host, tt.path, uri, tt.uri)
			}
			if tt.host != "" && host != tt.host {
				t.Errorf("%s%s: the upstream saw the Host %q", tt.host, tt.path, host)
			}
		}
	}
	all()
	// The published files say the same as the runtime state.
	r.OwnerReload(t)
	all()

	// Routes move and go without their upstreams.
	moved := driver.Section{
		App: "cart", Routes: []driver.Route{{Host: "*", Path: "/basket/"}},
		Upstreams: []driver.Upstream{apps["cart"].Upstream(driver.Serving)},
	}
	r.publish(moved)
	r.converge(moved)
	r.holds(moved)
	r.expect("", "/shop/cart", answer{Status: http.StatusOK, Backend: "shop-1"})
	r.expect("", "/basket", answer{Status: http.StatusOK, Backend: "cart-1"})
	r.expect("", "/basket/x", answer{Status: http.StatusOK, Backend: "cart-1"})
	hidden := moved
	hidden.Routes = nil
	r.publish(hidden)
	r.converge(hidden)
	r.holds(hidden)
	r.expect("", "/basket", answer{Status: http.StatusOK, Backend: "root-1"})

	// What cannot be rendered exactly is refused before anything is touched.
	for _, bad := range []driver.Route{
		{Host: "*", Path: "no-slash"},
		{Host: "*", Path: "/a b"},
		{Host: "*", Path: "/a\nb"},
		{Host: "", Path: "/x"},
		{Host: "Upper.Example", Path: "/x"},
	} {
		s := driver.Section{App: "bad", Routes: []driver.Route{bad}, Upstreams: []driver.Upstream{apps["root"].Upstream(driver.Serving)}}
		if err := r.Driver().Stage(deadline(t), s); err == nil {
			t.Errorf("route %+v was accepted", bad)
		}
	}
}
