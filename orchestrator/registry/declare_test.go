package registry_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/memstore"
)

// dying is a store that takes so many Commits, and no more: the process died there.
type dying struct {
	store.Store
	left int
}

var errDied = errors.New("the process died")

func (d *dying) Commit(ctx context.Context, fence store.Fence, ops ...store.Op) (store.Revision, error) {
	if d.left == 0 {
		return 0, errDied
	}
	d.left--
	return d.Store.Commit(ctx, fence, ops...)
}

// Wherever a term dies while it writes what is declared, the next one comes to the same Memberships and Views, and no View
// names a Host of which nothing is known: nobody could prove anything for it, and nobody could remove it.
func TestADeclarationIsWrittenOverACrash(t *testing.T) {
	hosts := func(group string, from, to int) (out []registry.Host) {
		for i := from; i < to; i++ {
			out = append(out, registry.Host{Name: fmt.Sprintf("lb-%03d", i), Group: group, AgentURL: fmt.Sprintf("https://10.0.0.%d:8600", i)})
		}
		return out
	}
	before := slices.Concat(hosts("public", 0, 100), hosts("inner", 100, 110))
	after := slices.Concat(hosts("public", 40, 50), hosts("inner", 105, 106), hosts("public", 200, 260))
	begin := func(s store.Store, hosts []registry.Host) (*registry.Registry, error) {
		return registry.New(t.Context(), registry.Options{Cluster: "main", Hosts: hosts, Exact: true, Store: s, Fence: store.Fence{Epoch: 1}, Logger: slog.New(slog.DiscardHandler)})
	}
	for dies := 0; ; dies++ {
		s := memstore.New()
		if _, err := begin(s, before); err != nil {
			t.Fatal(err)
		}
		_, err := begin(&dying{s, dies}, after)
		if err != nil && !errors.Is(err, errDied) {
			t.Fatal(err)
		}
		r, again := begin(s, after)
		if again != nil {
			t.Fatalf("died after %d Commits: %v", dies, again)
		}
		for group, want := range map[string][]registry.Host{"public": slices.Concat(hosts("public", 40, 50), hosts("public", 200, 260)), "inner": hosts("inner", 105, 106)} {
			view, _ := r.View(group)
			var known []string
			for _, h := range want {
				if m, ok := r.Member(h.Name); !ok {
					t.Errorf("died after %d Commits: %s is not known", dies, h.Name)
				} else if m.Standing == registry.Member {
					known = append(known, h.Name)
				}
			}
			if diff := cmp.Diff(known, view.Hosts); diff != "" {
				t.Errorf("died after %d Commits: the view of %s is not that of its members (-members +view):\n%s", dies, group, diff)
			}
		}
		_ = s.Close()
		if err == nil {
			return
		}
	}
}
