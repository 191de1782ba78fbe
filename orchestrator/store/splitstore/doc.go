// Package splitstore puts two stores behind the one port: what decides in one (Consul), what can be rebuilt in the other
// (Redis). store.Decides says which key belongs where, and a Commit never names both (store.CheckOps), so each Commit is
// as atomic as its half.
//
//   - Revisions: each half counts its own Commits. A record's revision is of its half, which is all that Replace and
//     Check need. Revision and Watch are of the rebuildable half: that is what readers of Apps, Deploys, tasks and events
//     follow. Who decides reads the other one directly, from the leader, and follows nothing.
//   - FENCE: the first Commit of a term fences both halves, so that what is read after it no older leader can change.
//   - When the rebuildable half went back (store.ErrWentBack) or its outcome is unknown, the term ends; what decides is
//     not touched by that, and the next leader's engine rebuilds the rest from it.
package splitstore
