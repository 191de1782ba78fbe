package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
)

// Difference is something that is not as the driver left it, and that Read does not tell: a file of the driver's, or what
// the running proxy holds of no App. Somebody else put it there.
type Difference struct {
	// App whose file it is; "" for what all Apps share, and for what is nobody's.
	App string
	// Place is the path of the file, or words for the part of the running proxy.
	Place string
	// File: it is on disk. Otherwise it is in the running proxy.
	File bool
	// Base: the owner's configuration no longer does what the contract asks for; Found says what is wrong. Only the owner
	// can mend it.
	Base bool
	// Wanted and Found are texts of lines. Absent: there should be nothing. Missing: there is nothing.
	Wanted, Found   string
	Absent, Missing bool
	// Loaded: the running proxy may have read the file as it is.
	Loaded bool
}

// Mark adds to a reading what the running proxy holds of the App that no Section expresses (a check that was switched
// off, a second entry for a route): sentences, which become part of the digest, so that such a reading equals no Section.
func (s *SectionReading) Mark(foreign ...string) {
	if len(foreign) == 0 {
		return
	}
	s.Foreign = append(s.Foreign, foreign...)
	slices.Sort(s.Foreign)
	s.Foreign = slices.Compact(s.Foreign)
	digest, _, _ := strings.Cut(s.Digest, foreignMark)
	sum := sha256.Sum256([]byte(strings.Join(s.Foreign, "\n")))
	s.Digest = digest + foreignMark + hex.EncodeToString(sum[:])
}

// foreignMark is between the digest of a Section and that of what is foreign in it.
const foreignMark = "+foreign:"
