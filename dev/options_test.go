package dev

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// What cannot work is refused before anything is started, and with what is allowed.
func TestOptionsThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"no orchestrator":         {func(o *Options) { o.Orchestrators = 0 }, "--orchestrators 0: want 1 to 9"},
		"orchestrators below":     {func(o *Options) { o.Orchestrators = -1 }, "--orchestrators -1: want 1 to 9"},
		"several without a store": {func(o *Options) { o.Orchestrators = 2 }, "--store redis://"},
		"no host":                 {func(o *Options) { o.LB = "haproxy=0" }, "--lb none"},
		"nothing for hosts":       {func(o *Options) { o.LB = "" }, "as haproxy=2,nginx=2"},
		"no agent":                {func(o *Options) { o.Agents = 0 }, "--agents 0: want 1 to 90"},
		"restore deadline":        {func(o *Options) { o.RestoreDeadline = -time.Second }, "--restore-deadline -1s: want more than 0s"},
		"session":                 {func(o *Options) { o.SessionTTL = -time.Second }, "--session-ttl -1s: want more than 0s"},
		"policy":                  {func(o *Options) { o.Policy = "most" }, "--policy"},
		"no directory":            {func(o *Options) { o.DataDir = "" }, "--data-dir is empty"},
		"long directory":          {func(o *Options) { o.DataDir = "/" + strings.Repeat("x", 100) }, "choose a path of at most"},
		"everywhere":              {func(o *Options) { o.API = "0.0.0.0:7480" }, "loopback addresses only"},
		"no port":                 {func(o *Options) { o.API = "127.0.0.1" }, "want HOST:PORT"},
		"no such port":            {func(o *Options) { o.API = "127.0.0.1:70000" }, "from 0 to 65535"},
	} {
		o := Options{DataDir: "/tmp/x", API: "127.0.0.1:0", LB: "haproxy=1", Agents: 1, Orchestrators: 1, Policy: "all"}
		if _, _, err := o.check(); err != nil {
			t.Fatalf("refused as it is: %v", err)
		}
		c.change(&o)
		_, _, err := o.check()
		var refusal *deploy.Refusal
		if !errors.As(err, &refusal) || refusal.Kind != deploy.RefusedInvalid || !strings.Contains(refusal.Detail, c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
