package auth

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestTokenShape(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var secret [secretBytes]byte
		copy(secret[:], rapid.SliceOfN(rapid.Byte(), secretBytes, secretBytes).Draw(t, "secret"))
		token := format(secret)
		if len(token) != tokenLength {
			t.Fatalf("length %d, want %d", len(token), tokenLength)
		}
		if err := CheckShape(token); err != nil {
			t.Fatalf("own token: %v", err)
		}
		i := rapid.IntRange(0, len(token)-1).Draw(t, "position")
		c := rapid.SampledFrom([]byte(base62)).Draw(t, "character")
		if token[i] == c {
			return
		}
		changed := token[:i] + string(c) + token[i+1:]
		if err := CheckShape(changed); !errors.Is(err, ErrMalformed) {
			t.Fatalf("a changed character at %d was not seen: %v", i, err)
		}
		if err := CheckShape(token[:i]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("a token cut off at %d was not seen: %v", i, err)
		}
	})
}

func TestNewTokensDiffer(t *testing.T) {
	a, err := NewToken()
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewToken()
	if err != nil {
		t.Fatal(err)
	}
	if a == b {
		t.Fatal("two tokens are equal")
	}
}

func TestTokensFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.json")
	token, err := NewToken()
	if err != nil {
		t.Fatal(err)
	}
	set, err := NewTokens(Entry{Actor: "ci", Hash: HashOf(token), CreatedAt: time.Unix(1700000000, 0)}, Entry{Actor: "ana@example.org", Hash: HashOf("other")})
	if err != nil {
		t.Fatal(err)
	}
	if err := SaveTokens(path, set); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %04o, want 0600", info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), token) {
		t.Fatal("the file holds the token itself")
	}
	got, err := LoadTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	if actor, ok := got.Authenticate(token); !ok || actor != "ci" {
		t.Fatalf("Authenticate = %q, %v", actor, ok)
	}
	if _, ok := got.Authenticate(token + "x"); ok {
		t.Fatal("a wrong token was let through")
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadTokens(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatalf("a file that others read: %v", err)
	}
}

func TestLoadTokensRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON":     "{",
		"unknown key":  `{"format":1,"tokens":[],"extra":1}`,
		"format":       `{"format":2,"tokens":[]}`,
		"short hash":   `{"format":1,"tokens":[{"actor":"a","sha256":"00"}]}`,
		"actor's name": `{"format":1,"tokens":[{"actor":"a b","sha256":"` + strings.Repeat("0", 64) + `"}]}`,
		"too large":    `{"format":1,"tokens":[]}` + strings.Repeat(" ", maxFileBytes),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "tokens.json")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadTokens(path); err == nil {
				t.Fatal("accepted")
			}
		})
	}
	if _, err := LoadTokens(t.TempDir()); err == nil {
		t.Fatal("a directory was accepted")
	}
	if _, err := LoadTokens(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("missing file: %v", err)
	}
}

func TestSecretStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.token")
	first, err := LoadOrCreateSecret(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadOrCreateSecret(path)
	if err != nil || first != second {
		t.Fatalf("second = %v, equal %v", err, first == second)
	}
	if err := os.WriteFile(path, []byte(first[:20]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateSecret(path); !errors.Is(err, ErrMalformed) {
		t.Fatalf("damaged secret: %v", err)
	}
}

func TestGuard(t *testing.T) {
	token, err := NewToken()
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewToken()
	if err != nil {
		t.Fatal(err)
	}
	set, err := NewTokens(Entry{Actor: "ci", Hash: HashOf(token)})
	if err != nil {
		t.Fatal(err)
	}
	guard := Guard{
		Authenticator: set,
		Open:          func(r *http.Request) bool { return r.URL.Path == "/open" },
		Refuse: func(w http.ResponseWriter, _ *http.Request, detail string) {
			http.Error(w, detail, http.StatusUnauthorized)
		},
	}
	h := guard.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := w.Write([]byte("actor=" + Actor(r.Context()))); err != nil {
			t.Error(err)
		}
	}))
	for _, c := range []struct{ name, path, header, want string }{
		{"token", "/", "Bearer " + token, "actor=ci"},
		{"scheme in lower case", "/", "bearer " + token, "actor=ci"},
		{"open path", "/open", "", "actor="},
		{"none", "/", "", "has no token"},
		{"basic", "/", "Basic abc", "not of the form"},
		{"cut off", "/", "Bearer " + token[:30], "cut off"},
		{"another cluster's", "/", "Bearer " + other, "unknown here"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, c.path, nil)
			if c.header != "" {
				r.Header.Set("Authorization", c.header)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if !strings.Contains(w.Body.String(), c.want) {
				t.Fatalf("%d %s, want %q", w.Code, w.Body, c.want)
			}
			if refused := w.Code == http.StatusUnauthorized; refused != (w.Header().Get("WWW-Authenticate") != "") {
				t.Fatalf("code %d, WWW-Authenticate %q", w.Code, w.Header().Get("WWW-Authenticate"))
			}
			if strings.Contains(w.Body.String(), token[:20]) {
				t.Fatal("the answer quotes the token")
			}
		})
	}
}

func TestFromLoopback(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "127.9.8.7:1": true, "10.0.0.1:1": false, "junk": false, "": false} {
		if got := FromLoopback(&http.Request{RemoteAddr: addr}); got != want {
			t.Errorf("%q: %v, want %v", addr, got, want)
		}
	}
}
