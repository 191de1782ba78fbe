package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"math/big"
	"strings"
)

// The shape of a token: Prefix, then secretDigits base-62 digits of 32 random bytes, then checkDigits of their CRC-32.
const (
	// Prefix starts every token, so that scanners of leaked secrets find it.
	Prefix = "cut_"

	secretBytes  = 32
	secretDigits = 43 // 62^43 > 2^256
	checkDigits  = 6  // 62^6 > 2^32
	tokenLength  = len(Prefix) + secretDigits + checkDigits

	base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// ErrMalformed reports something that cannot be a token, whoever made it. The text never contains the token.
var ErrMalformed = errors.New("not a Cutover token")

// NewToken returns a new random token.
func NewToken() (string, error) {
	var secret [secretBytes]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return "", fmt.Errorf("auth: reading random bytes for a token: %w", err)
	}
	return format(secret), nil
}

func format(secret [secretBytes]byte) string {
	digits := encode(new(big.Int).SetBytes(secret[:]), secretDigits)
	return Prefix + digits + checksum(digits)
}

func checksum(digits string) string {
	sum := crc32.ChecksumIEEE([]byte(digits))
	return encode(new(big.Int).SetUint64(uint64(sum)), checkDigits)
}

// encode writes n in base 62 with exactly the given number of digits.
func encode(n *big.Int, digits int) string {
	out := make([]byte, digits)
	radix, rest := big.NewInt(int64(len(base62))), new(big.Int)
	for i := digits - 1; i >= 0; i-- {
		n.DivMod(n, radix, rest)
		out[i] = base62[rest.Int64()]
	}
	return string(out)
}

// CheckShape says whether s has the shape of a token, and if not, what is probably wrong. It says nothing about who owns it.
func CheckShape(s string) error {
	switch {
	case !strings.HasPrefix(s, Prefix):
		return fmt.Errorf("%w: it does not start with %q", ErrMalformed, Prefix)
	case len(s) != tokenLength:
		return fmt.Errorf("%w: it has %d characters in the place of %d; was it cut off when it was copied?", ErrMalformed, len(s), tokenLength)
	}
	digits := s[len(Prefix) : len(Prefix)+secretDigits]
	if checksum(digits) != s[len(Prefix)+secretDigits:] {
		return fmt.Errorf("%w: its checksum does not fit; was a character changed when it was copied?", ErrMalformed)
	}
	return nil
}

// Hash is the SHA-256 of a token: what is stored in the token's place.
type Hash [sha256.Size]byte

// HashOf hashes a token.
func HashOf(token string) Hash { return sha256.Sum256([]byte(token)) }
