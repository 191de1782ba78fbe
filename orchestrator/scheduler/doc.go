// Package scheduler keeps an App at its committed Spec between Deploys: desired against observed gives a Plan. It is pure.
//
// What holds:
//   - NEVER-ZERO: only a terminal status takes a task out of the proxies without a replacement. A task that is away or fails
//     its checks is retired only together with the insertion of a replacement that is healthy.
//   - At most one replacement per instance, and no more than a quarter of the App (at least one) because of failing checks: a
//     broken dependency must not double the App.
//   - Insertions wait while a Deploy is open. A replacement is started meanwhile only if nothing that can serve is left. If
//     the Deploy is then undone, a whole set of them is inserted at once: Hosts go back to it instead of to nothing.
//   - A crash loop is slowed down: each early death doubles the pause, up to a bound; a stable run forgets it.
package scheduler
