package lbagent

import "testing"

// Transactions that wait for their checks fill the calls, and an Abort, a Commit or a Verify gets in all the same
// (ROLLBACK-IS-FREE).
func TestCallsThatWaitLeaveRoomForTheOthers(t *testing.T) {
	var c callers
	n := 0
	for _, _, ok := c.open(begins("Prepare")); ok; _, _, ok = c.open(begins("Prepare")) {
		n++
	}
	if n == 0 || n >= maxCalls {
		t.Fatalf("%d calls of Prepare at once", n)
	}
	for _, method := range []string{"Abort", "Commit", "Verify", "Watch", "SetTraffic"} {
		if _, _, ok := c.open(begins(method)); !ok {
			t.Errorf("%s is refused while Prepares wait", method)
		}
	}
	for _, _, ok := c.open(false); ok; _, _, ok = c.open(false) {
		n++
	}
	if n > maxCalls {
		t.Errorf("%d calls, more than %d", n, maxCalls)
	}
}
