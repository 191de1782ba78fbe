// Package wire reads and writes the messages of the Mesos v1 HTTP API the way
// a Mesos master does: JSON and protobuf bodies, RecordIO framing, and the
// error texts of a refused body.
//
// The types are those of mesos-go; the JSON codec is our own, because the one
// that mesos-go generates refuses what Mesos accepts (null, unknown fields and
// unknown enum names) and names other reasons when it refuses.
//
// Invariants:
//
//   - Nothing a client sends may bring the process down: the generated
//     protobuf code panics on crafted lengths (the class of CVE-2021-3121),
//     therefore every decode goes through UnmarshalProto, which recovers.
//   - Unknown JSON fields, nulls and unknown enum names are ignored, as Mesos
//     does; a missing required field and a wrong type are refused by name.
//   - Unsigned 64-bit integers are written as JSON numbers, never as strings.
package wire
