package placement

import "math/bits"

// random is a small seeded generator (splitmix64). Choice must be a function of
// the seed alone, in every version of the toolchain, so that a placement can be
// reproduced from its record.
type random uint64

// below returns a number in [0, n); n must be positive.
func (r *random) below(n int) int {
	*r += 0x9e3779b97f4a7c15
	z := uint64(*r)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	z ^= z >> 31
	hi, _ := bits.Mul64(z, uint64(n))
	return int(hi)
}
