// Package spec reads the description of an App: strict YAML or JSON in, a normalised Spec or a list of problems out.
//
// What holds:
//   - Parse is total: any input gives either a valid Spec or at least one problem, each with its line and column. It never
//     panics and its work is bounded (MaxSource, a budget of visited nodes, MaxCanonical).
//   - Nothing is ignored. A key or value that the format has but that is not built yet is refused by name.
//   - Canonical is the Spec with all defaults filled in, in one order of keys; Parse(Canonical(s)) is s. Two sources that mean
//     the same have the same Digest.
//   - TemplateDigest covers what a running task is made from. Equal digests mean that tasks may be kept across a Deploy.
//
// The package is pure: no files, no network, no clock.
package spec
