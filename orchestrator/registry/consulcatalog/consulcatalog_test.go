package consulcatalog_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/internal/consulclient"
	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/servertest/consultest"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/registry/consulcatalog"
	"github.com/cutover/cutover/proto/announcement"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const patience = 60 * time.Second

// watcher hears a Catalog until the test ends.
type watcher struct {
	t     *testing.T
	heard chan registry.Listing
}

func watch(t *testing.T, opts consulcatalog.Options) *watcher {
	t.Helper()
	opts.Cluster, opts.Logger = "main", slog.New(slog.NewTextHandler(t.Output(), nil))
	c, err := consulcatalog.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t, make(chan registry.Listing, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Watch(ctx, func(l registry.Listing) { w.heard <- l })
	}()
	t.Cleanup(func() { cancel(); <-done; c.Close() })
	return w
}

// next is the next listing: its Hosts, or why it is not known.
func (w *watcher) next() string {
	w.t.Helper()
	select {
	case l := <-w.heard:
		return text(l)
	case <-time.After(patience):
		w.t.Fatal("nothing is heard")
		return ""
	}
}

func text(l registry.Listing) string {
	if l.Err != nil {
		return "error: " + l.Err.Error()
	}
	var out []string
	for _, h := range l.Hosts {
		out = append(out, fmt.Sprintf("%s/%s %s", h.Group, h.Name, h.AgentURL))
	}
	for _, r := range l.Refused {
		out = append(out, "refused: "+r)
	}
	return strings.Join(out, ", ")
}

func (w *watcher) want(want string) {
	w.t.Helper()
	if got := w.next(); got != want {
		w.t.Fatalf("heard %q, want %q", got, want)
	}
}

// wantError hears an error with one of the texts.
func (w *watcher) wantError(texts ...string) {
	w.t.Helper()
	got := w.next()
	if !strings.HasPrefix(got, "error: ") || !slices.ContainsFunc(texts, func(want string) bool { return strings.Contains(got, want) }) {
		w.t.Fatalf("heard %q, want an error with one of %q", got, texts)
	}
}

// until hears until a listing is as wanted; what is heard between is a catalog that is away.
func (w *watcher) until(want string) {
	w.t.Helper()
	for {
		got := w.next()
		if got == want {
			return
		}
		if !strings.HasPrefix(got, "error: ") {
			w.t.Fatalf("heard %q, want %q", got, want)
		}
	}
}

func instance(host, group, address string, port int) *api.AgentServiceRegistration {
	return &api.AgentServiceRegistration{
		ID: "lbagent-" + host, Name: announcement.Service, Address: address, Port: port,
		Meta: map[string]string{announcement.Cluster: "main", announcement.Group: group, announcement.Host: host},
	}
}

func register(t *testing.T, client *api.Client, r *api.AgentServiceRegistration) {
	t.Helper()
	if err := client.Agent().ServiceRegister(r); err != nil {
		t.Fatal(err)
	}
}

func TestRealCatalog(t *testing.T) {
	t.Parallel()
	s := consultest.Start(t, consultest.Options{})
	client := s.Client(t)
	w := watch(t, consulcatalog.Options{Address: s.URL, Wait: time.Second})
	w.want("")
	register(t, client, instance("lb-1", "public", "10.0.1.11", 8600))
	w.want("public/lb-1 https://10.0.1.11:8600")
	foreign := instance("lb-9", "public", "10.0.1.19", 8600)
	foreign.Meta[announcement.Cluster] = "other"
	register(t, client, foreign)
	register(t, client, instance("lb-2", "public", "", 8600))
	w.want("public/lb-1 https://10.0.1.11:8600, public/lb-2 https://127.0.0.1:8600")
	broken := instance("lb-3", "", "10.0.1.13", 8600)
	register(t, client, broken)
	w.want("public/lb-1 https://10.0.1.11:8600, public/lb-2 https://127.0.0.1:8600, refused: instance lbagent-lb-3 on node test: no cutover-group in its meta")
	register(t, client, instance("lb-2", "public", "10.0.1.12", 8601))
	w.want("public/lb-1 https://10.0.1.11:8600, public/lb-2 https://10.0.1.12:8601, refused: instance lbagent-lb-3 on node test: no cutover-group in its meta")
	for _, id := range []string{"lbagent-lb-1", "lbagent-lb-3", "lbagent-lb-9"} {
		if err := client.Agent().ServiceDeregister(id); err != nil {
			t.Fatal(err)
		}
	}
	for want := ""; want != "public/lb-2 https://10.0.1.12:8601"; want = w.next() {
		if strings.HasPrefix(want, "error: ") {
			t.Fatal(want)
		}
	}

	// FAIL-STATIC: Consul that dies, hangs and comes back is an error, and never an empty catalog.
	s.Kill()
	w.wantError("connection refused", "EOF", "connection reset") // the query that was under way may say it
	s.Start()
	w.until("public/lb-2 https://10.0.1.12:8601")
	s.Freeze()
	w.wantError("deadline exceeded")
	s.Thaw()
	w.until("public/lb-2 https://10.0.1.12:8601")
	register(t, client, instance("lb-4", "public", "10.0.1.14", 8600))
	w.want("public/lb-2 https://10.0.1.12:8601, public/lb-4 https://10.0.1.14:8600")
}

// A token that may not read is an error, and says what it needs; what its rules give is enough.
func TestRealCatalogWithAccessControl(t *testing.T) {
	t.Parallel()
	s := consultest.Start(t, consultest.Options{ACL: true})
	admin := s.Client(t)
	register(t, admin, instance("lb-1", "public", "10.0.1.11", 8600))
	token := func(name, rules string) string {
		policy, _, err := admin.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil)
		if err != nil {
			t.Fatal(err)
		}
		token, _, err := admin.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{ID: policy.ID}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return token.SecretID
	}
	none := watch(t, consulcatalog.Options{Address: s.URL, Client: consulclient.Options{Token: token("none", `key_prefix "x" { policy = "read" }`)}})
	none.wantError(`service "cutover-lbagent" { policy = "read" }`)
	unknown := watch(t, consulcatalog.Options{Address: s.URL, Client: consulclient.Options{Token: "2f5ef1bb-0000-4a5f-9f3c-0d0f6a1f7f35"}})
	unknown.wantError("ACL not found")
	enough := token("enough", `service "cutover-lbagent" { policy = "read" } node_prefix "" { policy = "read" }`)
	watch(t, consulcatalog.Options{Address: s.URL, Client: consulclient.Options{Token: enough}}).want("public/lb-1 https://10.0.1.11:8600")
}

// answer is one of a scripted Consul.
type answer struct {
	index  string // of the header; "" leaves it out
	body   string
	status int
	header string // another header, "Name: value"
}

// Consul's answers as they come in bad times: the queries that follow, and what is told.
func TestAnswersOfABadConsul(t *testing.T) {
	t.Parallel()
	entry := func(host string) string {
		return fmt.Sprintf(`{"Node":"n","Address":"10.0.1.1","ServiceID":"s","ServiceAddress":"10.0.1.11","ServicePort":8600,"ServiceMeta":{"cutover-cluster":"main","cutover-group":"g","cutover-host":%q}}`, host)
	}
	const a, b = "g/a https://10.0.1.11:8600", "g/b https://10.0.1.11:8600"
	one, two := "["+entry("a")+"]", "["+entry("b")+"]"
	for name, c := range map[string]struct {
		answers []answer
		asked   []string // the index of each query after the first
		told    []string // the beginning of each
	}{
		"forward":             {[]answer{{"7", one, 200, ""}, {"9", two, 200, ""}}, []string{"7", "9"}, []string{a, b}},
		"nothing new":         {[]answer{{"7", one, 200, ""}, {"7", one, 200, ""}, {"8", two, 200, ""}}, []string{"7", "7", "8"}, []string{a, b}},
		"index goes back":     {[]answer{{"7", one, 200, ""}, {"3", two, 200, ""}, {"3", two, 200, ""}}, []string{"7", "", "3"}, []string{a, b}},
		"index nought":        {[]answer{{"0", one, 200, ""}, {"2", two, 200, ""}}, []string{"1", "2"}, []string{a, b}},
		"no index":            {[]answer{{"", one, 200, ""}, {"2", two, 200, ""}}, []string{"1", "2"}, []string{a, b}},
		"error":               {[]answer{{"7", one, 200, ""}, {"", "boom", 500, ""}, {"", "boom", 500, ""}, {"9", one, 200, ""}}, []string{"7", "", "", "9"}, []string{a, "error: ", a}},
		"empty by filter":     {[]answer{{"7", one, 200, ""}, {"8", "[]", 200, "X-Consul-Results-Filtered-By-ACLs: true"}, {"9", one, 200, ""}}, []string{"7", "", "9"}, []string{a, "error: ", a}},
		"empty":               {[]answer{{"7", one, 200, ""}, {"8", "[]", 200, ""}}, []string{"7", "8"}, []string{a, ""}},
		"no leader":           {[]answer{{"7", one, 200, ""}, {"8", "[]", 200, "X-Consul-KnownLeader: false"}, {"9", two, 200, ""}}, []string{"7", "", "9"}, []string{a, "error: ", b}},
		"damaged":             {[]answer{{"7", one, 200, ""}, {"8", "[{", 200, ""}, {"9", two, 200, ""}}, []string{"7", "", "9"}, []string{a, "error: ", b}},
		"an answer too large": {[]answer{{"7", one, 200, ""}, {"8", "[" + strings.Repeat(" ", 9<<20) + "]", 200, ""}, {"9", two, 200, ""}}, []string{"7", "", "9"}, []string{a, "error: ", b}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan string, 100)
			n := 0
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked <- r.URL.Query().Get("index")
				if n == len(c.answers) {
					<-r.Context().Done() // as Consul waits
					return
				}
				x := c.answers[n]
				n++
				w.Header().Set("X-Consul-KnownLeader", "true")
				w.Header().Set("X-Consul-LastContact", "0")
				if x.index != "" {
					w.Header().Set("X-Consul-Index", x.index)
				}
				if key, value, ok := strings.Cut(x.header, ": "); ok {
					w.Header().Set(key, value)
				}
				w.WriteHeader(x.status)
				_, _ = w.Write([]byte(x.body))
			}))
			t.Cleanup(srv.Close)
			w := watch(t, consulcatalog.Options{Address: srv.URL})
			for _, want := range c.told {
				if got := w.next(); !strings.HasPrefix(got, want) || want == "" && got != "" {
					t.Fatalf("told %q, want %q", got, want)
				}
			}
			var got []string
			for range len(c.asked) + 1 {
				select {
				case q := <-asked:
					got = append(got, q)
				case <-time.After(patience):
					t.Fatalf("asked %q only", got)
				}
			}
			if want := slices.Concat([]string{""}, c.asked); !slices.Equal(got, want) {
				t.Errorf("asked for %q, want %q", got, want)
			}
			if len(w.heard) > 0 {
				t.Errorf("told too much: %q", text(<-w.heard))
			}
		})
	}
}

func TestOptions(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for name, o := range map[string]consulcatalog.Options{
		"no address":               {Cluster: "main", Logger: log},
		"in the clear":             {Address: "http://10.0.0.1:8500", Cluster: "main", Logger: log},
		"no cluster":               {Address: "http://127.0.0.1:8500", Logger: log},
		"a service that is a path": {Address: "http://127.0.0.1:8500", Cluster: "main", Logger: log, Service: "../kv/x"},
	} {
		if c, err := consulcatalog.New(o); err == nil {
			c.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}
