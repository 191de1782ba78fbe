// Package proto holds the wire contracts of Cutover and their generated code.
//
// cutover/lbagent/v1 is what an orchestrator (coordinator) and an lbagent (participant) say to each other; they meet
// here and nowhere else. The generated code under gen is committed, and `make generate` together with CI keeps it
// equal to the .proto files.
package proto
