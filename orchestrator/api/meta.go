package api

import (
	"context"

	"github.com/cutover/cutover/orchestrator/auth"
)

// Keyed is the part of every POST's input that makes it safe to repeat. It is exported because huma looks at exported fields only.
type Keyed struct {
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"255" pattern:"^[!-~]+$" patternDescription:"printable ASCII without spaces" doc:"a name that the sender makes for this request: repeated with the same key it does nothing twice; the same key with another body is refused"`
}

// meta says who asks, why, and under which key. The reason is part of the body, and so of its digest.
func (in Keyed) meta(ctx context.Context, reason string) Meta {
	digest, _ := ctx.Value(bodyDigestKey{}).(string)
	return Meta{Actor: auth.Actor(ctx), Reason: reason, IdempotencyKey: in.IdempotencyKey, BodyDigest: digest}
}
