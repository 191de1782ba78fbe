package consulcatalog

import (
	"cmp"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"

	"github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/proto/announcement"
)

// maxEntries bounds a listing: more are no load-balancer Hosts.
const maxEntries = 2000

// hostsOf are the Hosts of the cluster that the entries announce, and what is wrong with the others of this cluster.
func hostsOf(cluster string, entries []*api.CatalogService) (hosts []registry.Host, refused []string, err error) {
	if n := len(entries); n > maxEntries {
		return nil, nil, fmt.Errorf("the service has %d instances; more than %d are not read", n, maxEntries)
	}
	for _, e := range entries {
		switch e.ServiceMeta[announcement.Cluster] {
		case cluster:
		case "":
			refused = append(refused, fmt.Sprintf("instance %s on node %s: no %s in its meta", e.ServiceID, e.Node, announcement.Cluster))
			continue
		default:
			continue
		}
		if why := incomplete(e); why != "" {
			refused = append(refused, fmt.Sprintf("instance %s on node %s: %s", e.ServiceID, e.Node, why))
			continue
		}
		hosts = append(hosts, registry.Host{Name: e.ServiceMeta[announcement.Host], Group: e.ServiceMeta[announcement.Group], AgentURL: agentURL(e)})
	}
	return hosts, refused, nil
}

// address is an IP address or a host name, and nothing that would make another URL of it.
var address = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,253}$`)

func incomplete(e *api.CatalogService) string {
	for _, key := range []string{announcement.Host, announcement.Group} {
		if e.ServiceMeta[key] == "" {
			return "no " + key + " in its meta"
		}
	}
	if a := cmp.Or(e.ServiceAddress, e.Address); !address.MatchString(a) {
		return fmt.Sprintf("address %q", a)
	}
	if e.ServicePort < 1 || e.ServicePort > 65535 {
		return fmt.Sprintf("port %d", e.ServicePort)
	}
	if !slices.Contains([]string{"", "http", "https"}, e.ServiceMeta[announcement.Scheme]) {
		return fmt.Sprintf("%s %q: want https or http", announcement.Scheme, e.ServiceMeta[announcement.Scheme])
	}
	return ""
}

func agentURL(e *api.CatalogService) string {
	scheme := cmp.Or(e.ServiceMeta[announcement.Scheme], "https")
	return scheme + "://" + net.JoinHostPort(cmp.Or(e.ServiceAddress, e.Address), strconv.Itoa(e.ServicePort))
}
