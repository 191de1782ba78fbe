// Package crashpoint names the moments of the protocol at which a test build can be made to die or to stand still.
//
// Code calls At with a label before and after each durable write, each message and each effect. In an ordinary build At
// is an empty function. In a build with the tag "crashpoints", At looks into the file crash-at in the working directory of
// the process; its content is
//
//	LABEL [N] [kill|stop]
//
// The process that comes to the label for the N-th time (default: the first) since the file was written removes the file
// and then ends as by kill -9, or stops as by SIGSTOP until somebody sends it SIGCONT. The file is gone by then, so that
// the process that is started in its place lives, and so that a test can wait for the moment. Instead of the file the
// environment's CUTOVER_CRASH_AT may hold the label; then the process dies each time it comes there.
package crashpoint
