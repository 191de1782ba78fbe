package auth

import (
	"context"
	"net"
	"net/http"
	"strings"
)

// Authenticator tells whose a token is.
type Authenticator interface {
	Authenticate(token string) (actor string, ok bool)
}

var _ Authenticator = (*Tokens)(nil)

// Guard lets a request through when its token has an actor, or when the rule Open names the request.
type Guard struct {
	Authenticator Authenticator
	// Open names the requests that need no token. Nil: none.
	Open func(*http.Request) bool
	// Refuse answers a request that was not let through; detail says why, and never holds the token. The header
	// WWW-Authenticate is already set.
	Refuse func(w http.ResponseWriter, r *http.Request, detail string)
}

// Wrap guards next. A request let through by its token carries its actor (see Actor).
func (g Guard) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.Open != nil && g.Open(r) {
			next.ServeHTTP(w, r)
			return
		}
		actor, detail := g.actorOf(r)
		if detail != "" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="cutover"`)
			g.Refuse(w, r, detail)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), actorKey{}, actor)))
	})
}

func (g Guard) actorOf(r *http.Request) (actor, detail string) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return "", "the request has no token; send Authorization: Bearer TOKEN (the CLI: --token, CUTOVER_TOKEN, or --data-dir DIR of a dev cluster)"
	}
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", "the Authorization header is not of the form: Bearer TOKEN"
	}
	token = strings.TrimSpace(token)
	if err := CheckShape(token); err != nil {
		return "", "the token is " + err.Error()
	}
	actor, ok := g.Authenticator.Authenticate(token)
	if !ok {
		return "", "the token is unknown here: it was removed, or belongs to another cluster"
	}
	return actor, ""
}

type actorKey struct{}

// Actor returns who makes the request that ctx belongs to: empty for a request that needed no token.
func Actor(ctx context.Context) string {
	actor, _ := ctx.Value(actorKey{}).(string)
	return actor
}

// FromLoopback reports whether the request's connection comes from this machine. A proxy on this machine makes it true for
// everybody behind it.
func FromLoopback(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
