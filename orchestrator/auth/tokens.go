package auth

import (
	"bytes"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"time"

	"github.com/cutover/cutover/internal/atomicfile"
)

// FileFormat is the version of the token file.
//
//	1: first release.
const FileFormat = 1

// maxFileBytes bounds a token file: about 5,000 entries.
const maxFileBytes = 1 << 20

// fileMode is the mode of every file that this package writes.
const fileMode fs.FileMode = 0o600

var actorName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// Entry is one token as it is stored: whose it is, and its hash.
type Entry struct {
	Actor     string
	Hash      Hash
	CreatedAt time.Time
}

// Tokens is a set of tokens. It never changes, and is safe for concurrent use.
type Tokens struct{ entries []Entry }

// NewTokens makes a set. Two entries may name the same actor (one token is being replaced by another).
func NewTokens(entries ...Entry) (*Tokens, error) {
	for _, e := range entries {
		if !actorName.MatchString(e.Actor) {
			return nil, fmt.Errorf("auth: actor %q: want 1 to 64 of A-Z a-z 0-9 . _ @ -, starting with a letter or digit", e.Actor)
		}
	}
	return &Tokens{entries: append([]Entry(nil), entries...)}, nil
}

// Authenticate returns the actor of a token. Every entry is compared, in the same time whether it matches.
func (t *Tokens) Authenticate(token string) (actor string, ok bool) {
	h := HashOf(token)
	for i := range t.entries {
		if subtle.ConstantTimeCompare(h[:], t.entries[i].Hash[:]) == 1 {
			actor, ok = t.entries[i].Actor, true
		}
	}
	return actor, ok
}

// Len returns the number of entries.
func (t *Tokens) Len() int { return len(t.entries) }

// fileEntry and file are the token file, as JSON.
type fileEntry struct {
	Actor     string    `json:"actor"`
	SHA256    string    `json:"sha256"`
	CreatedAt time.Time `json:"created_at"`
}

type file struct {
	Format int         `json:"format"`
	Tokens []fileEntry `json:"tokens"`
}

// LoadTokens reads a token file. It refuses one that others than its owner may read or write.
func LoadTokens(path string) (*Tokens, error) {
	data, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	var f file
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf("auth: token file %s: %w", path, err)
	}
	if f.Format != FileFormat {
		return nil, fmt.Errorf("auth: token file %s has format %d, this release reads %d", path, f.Format, FileFormat)
	}
	entries := make([]Entry, len(f.Tokens))
	for i, e := range f.Tokens {
		raw, err := hex.DecodeString(e.SHA256)
		if err != nil || len(raw) != len(Hash{}) {
			return nil, fmt.Errorf("auth: token file %s: sha256 of actor %q is not 64 hexadecimal digits", path, e.Actor)
		}
		entries[i] = Entry{Actor: e.Actor, Hash: Hash(raw), CreatedAt: e.CreatedAt}
	}
	t, err := NewTokens(entries...)
	if err != nil {
		return nil, fmt.Errorf("auth: token file %s: %w", path, err)
	}
	return t, nil
}

// SaveTokens replaces a token file atomically.
func SaveTokens(path string, t *Tokens) error {
	f := file{Format: FileFormat, Tokens: make([]fileEntry, len(t.entries))}
	for i, e := range t.entries {
		f.Tokens[i] = fileEntry{Actor: e.Actor, SHA256: hex.EncodeToString(e.Hash[:]), CreatedAt: e.CreatedAt.UTC()}
	}
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("auth: encoding token file: %w", err)
	}
	if err := atomicfile.Write(path, append(data, '\n')); err != nil {
		return fmt.Errorf("auth: writing token file: %w", err)
	}
	return nil
}

// LoadOrCreateSecret returns the token in a file of its own, and makes both when the file is not there. `cutover dev` keeps its
// one token so, in clear: it must hand out the same one after a restart, or every waiting client would be shut out.
func LoadOrCreateSecret(path string) (string, error) {
	data, err := readPrivate(path)
	switch {
	case err == nil:
		token := string(bytes.TrimSpace(data))
		if err := CheckShape(token); err != nil {
			return "", fmt.Errorf("auth: %s: %w; delete the file to get a new token", path, err)
		}
		return token, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	token, err := NewToken()
	if err != nil {
		return "", err
	}
	if err := atomicfile.Write(path, []byte(token+"\n")); err != nil {
		return "", fmt.Errorf("auth: writing token: %w", err)
	}
	return token, nil
}

// readPrivate reads a small file that only its owner may touch. The check is on the open file, so that it cannot be swapped
// between check and read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("auth: %s is not a regular file", path)
	}
	if extra := info.Mode().Perm() &^ fileMode; extra != 0 {
		return nil, fmt.Errorf("auth: %s has mode %04o, others could read or use it; run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("auth: reading %s: %w", path, err)
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("auth: %s is larger than %d bytes", path, maxFileBytes)
	}
	return data, nil
}
