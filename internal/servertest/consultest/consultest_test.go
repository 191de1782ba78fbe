package consultest_test

import (
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/servertest/consultest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestServerKeepsItsDataThroughKill(t *testing.T) {
	s := consultest.Start(t, consultest.Options{})
	put(t, s.Client(t))
	s.Kill()
	s.Start()
	got, _, err := s.Client(t).KV().Get("k", &api.QueryOptions{RequireConsistent: true})
	if err != nil || got == nil || string(got.Value) != "v" {
		t.Errorf("after kill -9: %v, %v", got, err)
	}
}

func TestServerWithAccessControl(t *testing.T) {
	s := consultest.Start(t, consultest.Options{ACL: true})
	put(t, s.Client(t))
	config := api.DefaultConfig()
	config.Address = s.URL
	anonymous, err := api.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	defer config.Transport.CloseIdleConnections()
	if _, err := anonymous.KV().Put(&api.KVPair{Key: "k", Value: []byte("v")}, nil); err == nil {
		t.Error("a client without a token could write")
	}
}

func put(t *testing.T, client *api.Client) {
	t.Helper()
	if _, err := client.KV().Put(&api.KVPair{Key: "k", Value: []byte("v")}, nil); err != nil {
		t.Fatal(err)
	}
}
