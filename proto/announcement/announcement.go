package announcement

// Service is the name of the service whose instances are Hosts, unless another is configured on both sides.
const Service = "cutover-lbagent"

// Keys of an entry's meta.
const (
	Cluster = "cutover-cluster" // name of the cluster; orchestrators do not look at the entries of others
	Group   = "cutover-group"   // name of the Host's Group
	Host    = "cutover-host"    // the Host's name
	Scheme  = "cutover-scheme"  // https, which is the default, or http, for loopback addresses only
	Ready   = "cutover-ready"   // where Consul asks whether the Host is ready; none: it only connects to the lbagent
)
