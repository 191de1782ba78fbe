// Package api serves the orchestrator over HTTP: /v1 with its OpenAPI document, server-sent events, health and metrics.
package api
