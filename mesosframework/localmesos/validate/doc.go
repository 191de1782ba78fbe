// Package validate refuses what a Mesos master refuses, with its texts. It is
// pure.
//
// An empty result means valid. The order of the checks is part of the
// contract: the first fault found is the one reported.
package validate
