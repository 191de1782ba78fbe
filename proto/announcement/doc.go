// Package announcement is how a Host announces itself in a service catalog: the contract between the lbagents, which write
// entries, and the orchestrators, which read them. An entry is an instance of the service Service with the address and the port
// of the lbagent, and the meta below. An operator may write entries himself.
package announcement
