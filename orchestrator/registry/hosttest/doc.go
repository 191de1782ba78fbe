// Package hosttest is a scripted load-balancer Host for tests: a real Connect server on a loopback port, behind it a
// small model of a participant whose answers a test can bend, and which can be killed, frozen and started again.
//
// The model is deliberately dumb: it keeps Sections, one open transaction per Section, and the fence; checks are green
// unless a test says otherwise. What a real agent must do is tested with the real agent.
package hosttest
