// Package reply answers HTTP requests the way libprocess does: the status
// codes, texts and headers that Mesos clients know.
//
// Invariants: a request body is bounded (MaxBody); a fault of the request is
// answered exactly once, by the function that found it, which then returns
// false; what is not there is answered with 501 and a sentence.
package reply
