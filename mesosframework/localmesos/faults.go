package localmesos

import "fmt"

// The methods of this file make faults, for tests and drills. Agents are
// numbered from 1, in the order of Options.Agents.

func (c *Cluster) member(n int) (*member, error) {
	if n < 1 || n > len(c.members) {
		return nil, fmt.Errorf("local Mesos: there is no agent %d (of %d)", n, len(c.members))
	}
	return c.members[n-1], nil
}

// StopAgent ends an agent as kill -9 would: the master sees the connection
// break, the tasks run on.
func (c *Cluster) StopAgent(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.member(n)
	if err != nil {
		return err
	}
	if m.agent == nil {
		return fmt.Errorf("local Mesos: agent %d is stopped", n)
	}
	m.stop()
	c.master.AgentDisconnected(m.status().ID)
	return nil
}

// StartAgent starts a stopped agent: it adopts its tasks and registers again.
func (c *Cluster) StartAgent(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.member(n)
	if err != nil {
		return err
	}
	if m.agent != nil || c.stopped {
		return fmt.Errorf("local Mesos: agent %d runs already, or the cluster is stopped", n)
	}
	return m.start()
}

// FreezeAgent cuts an agent off: nothing gets through either way, and after
// PingTimeout x MaxPings the master calls it unreachable. The tasks run on.
func (c *Cluster) FreezeAgent(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.member(n)
	if err != nil {
		return err
	}
	m.toMaster.Freeze()
	m.toAgent.Freeze()
	c.master.AgentSilent(m.status().ID, true)
	return nil
}

// ThawAgent ends a freeze: what was held gets through, and the agent registers
// again.
func (c *Cluster) ThawAgent(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.member(n)
	if err != nil {
		return err
	}
	if m.agent == nil {
		return fmt.Errorf("local Mesos: agent %d is stopped", n)
	}
	c.master.AgentSilent(m.status().ID, false)
	m.toAgent.Thaw()
	m.toMaster.Thaw()
	m.agent.Reregister()
	return nil
}

// KillAgent freezes an agent and makes it unreachable at once, without the
// wait for its pings. RestoreAgent brings it back.
func (c *Cluster) KillAgent(n int) error {
	if err := c.FreezeAgent(n); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.master.MarkUnreachable(c.members[n-1].status().ID)
	return nil
}

// RestoreAgent ends KillAgent: the agent's tasks return with the state that
// they have.
func (c *Cluster) RestoreAgent(n int) error { return c.ThawAgent(n) }

// RescindOffers takes back every offer that a framework holds.
func (c *Cluster) RescindOffers() { c.master.RescindOffers() }
