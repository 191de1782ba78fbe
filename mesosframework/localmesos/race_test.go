//go:build race

package localmesos

// raceEnabled: the race detector makes every process, wardens too, far larger.
const raceEnabled = true
