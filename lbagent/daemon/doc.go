// Package daemon is what `cutover lbagent` runs on a Host: it reads the Host's configuration file, makes the driver that
// fits its proxy, and runs the participant behind the RPC server. It also knows how that proxy is started
// (`cutover proxy`), since a proxy must find a valid published tree before it starts, whoever starts first.
package daemon
