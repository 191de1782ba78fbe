//go:build !race

package localmesos

const raceEnabled = false
