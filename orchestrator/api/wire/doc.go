// Package wire holds what travels between the HTTP API and its clients: bodies, answers and the one shape of an error.
//
// It is apart from package api so that a client, and the engine behind the API, can name these types without pulling in an
// HTTP server. The types are a stable contract: fields are added, never renamed or removed.
//
// Invariants:
//   - Every refusal and every failure is one [ProblemDetails] (RFC 9457), whatever part of the server made it.
//   - A Refusal survives the trip: FromRefusal and Refusal are inverse for every kind (a fuzz test checks it).
//   - Lists are never null: scripts iterate over them without a guard ([Complete]).
//
// The package is pure: no network, no clock, no logger.
package wire
