// Package auth says who asks: bearer tokens, each of which carries the name of one actor.
//
// A token is 32 random bytes behind a prefix that secret scanners recognise and before a checksum that tells a truncated
// token from a wrong one. Only the SHA-256 of a token is stored: 256 random bits need no slow hash. Comparison takes the same
// time whether and where a token matches.
//
// Invariants:
//   - The actor of every request is the name stored beside the token's hash, never something the asker says (NO-SILENT-CHANGE:
//     the audit record names it).
//   - Files with tokens or hashes are private to their owner (0600), or they are not read.
//   - Nothing is open unless the caller's rule names it.
package auth
