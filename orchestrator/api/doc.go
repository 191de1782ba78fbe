// Package api serves the orchestrator over HTTP: /v1 with its OpenAPI document, server-sent events, health and metrics.
//
// The package translates and guards; it decides nothing about Deploys. What it needs of the orchestrator is the interface
// [Service]; what travels is in package wire. Operations are written against huma and net/http. Echo carries them, and appears
// in this package only.
//
// Invariants:
//   - Everything that goes wrong is one wire.ProblemDetails, whoever made it: the Service, the validation, the router, a panic.
//   - Every request but the few that isOpen names carries a token, and the actor that the token stands for (NO-SILENT-CHANGE).
//   - Every request has a deadline for its header, its body and its answer. Only an event stream has none for the whole, and each
//     of its writes has one (EVERY-STATE-ENDS).
//   - Nothing is unbounded: bodies, reasons, keys, lists, event streams.
//   - The document at /openapi.json is the committed openapi.json, byte for byte; a test regenerates and compares it.
package api
