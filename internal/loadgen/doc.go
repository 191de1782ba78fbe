// Package loadgen sends HTTP requests that nobody retries, and counts every one that fails.
//
// A client library that quietly sends a request again on a fresh connection hides exactly the loss that a careless
// change of a proxy causes. So this package writes requests to connections itself: one attempt each, POST with a body,
// on kept-alive or fresh connections. A request fails when its bytes were written (or its connection could not be
// made) and no complete answer with a status below 400 came back; a connection that the server closed with an
// announcement (Connection: close) is replaced without counting.
package loadgen
