package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humaecho"
	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cutover/cutover/orchestrator/auth"
)

// The deadlines of one connection and one request.
const (
	headerTimeout = 10 * time.Second
	// readTimeout bounds reading a request. It is longer than handleTimeout, or it would end the work of a request first.
	readTimeout = time.Minute
	// handleTimeout bounds the work behind one request that is no stream; the answer is written within writeTimeout more.
	handleTimeout = 30 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = 2 * time.Minute

	maxHeaderBytes = 64 << 10

	defaultHeartbeat  = 10 * time.Second
	defaultMaxStreams = 256
)

// Options are what a Handler is made of.
type Options struct {
	// Service is the orchestrator. Required, unless Standing is there.
	Service Service
	// Standing says, for each request, who answers it; nil: Service always does. It must not block.
	Standing func() Standing
	// Auth tells whose a token is. Required.
	Auth auth.Authenticator
	// Registry takes the API's metrics, and all that is in it is served at /metrics. Required; one Handler per Registry.
	Registry *prometheus.Registry
	// Logger is where failures are written. Required.
	Logger *slog.Logger
	// Version of this release, answered at /v1/version and in the OpenAPI document.
	Version string

	// Heartbeat is the longest silence of an event stream, so that proxies in between do not cut it. 0: 10 s.
	Heartbeat time.Duration
	// MaxStreams bounds the event streams that are open at once. 0: 256.
	MaxStreams int
}

func (o *Options) validate() error {
	var missing []error
	if o.Service == nil && o.Standing == nil {
		missing = append(missing, errors.New("Service"))
	}
	if o.Auth == nil {
		missing = append(missing, errors.New("Auth"))
	}
	if o.Registry == nil {
		missing = append(missing, errors.New("Registry"))
	}
	if o.Logger == nil {
		missing = append(missing, errors.New("Logger"))
	}
	if len(missing) > 0 {
		return fmt.Errorf("api: options without: %w", errors.Join(missing...))
	}
	if o.Heartbeat <= 0 {
		o.Heartbeat = defaultHeartbeat
	}
	if o.MaxStreams <= 0 {
		o.MaxStreams = defaultMaxStreams
	}
	return nil
}

// Handler is the API. It is safe for concurrent use.
type Handler struct {
	opts    Options
	echo    *echo.Echo
	metrics *metrics
	openAPI []byte

	streams   chan struct{} // one slot per open event stream
	closing   chan struct{} // closed: every event stream ends now
	closeOnce sync.Once
}

var _ http.Handler = (*Handler)(nil)

// New makes the API. It serves nothing by itself: see HTTPServer.
func New(opts Options) (*Handler, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if opts.Standing == nil {
		service := opts.Service
		opts.Standing = func() Standing { return Standing{Leads: true, Service: service} }
	}
	m, err := newMetrics(opts.Registry)
	if err != nil {
		return nil, err
	}
	h := &Handler{
		opts: opts, metrics: m,
		streams: make(chan struct{}, opts.MaxStreams),
		closing: make(chan struct{}),
	}

	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	// The peer of the connection, never a header that anybody can write: it decides who sees /metrics.
	e.IPExtractor = echo.ExtractIPDirect()
	e.HTTPErrorHandler = h.writeError
	e.Use(h.observe, h.recoverPanic, h.withDeadlines, echo.WrapMiddleware(h.guard().Wrap), h.route, h.readBody)

	docs := humaecho.NewV4(e, humaConfig(opts.Version))
	h.registerDeploys(docs)
	h.registerEvents(docs)
	h.registerApps(docs)
	h.registerTasks(docs)
	h.registerHosts(docs)
	h.registerSystem(docs)
	if h.openAPI, err = renderOpenAPI(docs.OpenAPI()); err != nil {
		return nil, err
	}
	e.GET(pathOpenAPI, func(c echo.Context) error {
		return c.Blob(http.StatusOK, "application/vnd.oai.openapi+json", h.openAPI)
	})
	e.GET(pathMetrics, echo.WrapHandler(promhttp.HandlerFor(opts.Registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: handleTimeout})))
	h.echo = e
	return h, nil
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.echo.ServeHTTP(w, r) }

// OpenAPI returns the document that describes this API. The caller must not change it.
func (h *Handler) OpenAPI() []byte { return h.openAPI }

// CloseStreams ends every event stream, now and in future: their readers come back with the last number they saw. Without it a
// graceful shutdown would wait for Deploys to end. It may be called more than once.
func (h *Handler) CloseStreams() { h.closeOnce.Do(func() { close(h.closing) }) }

// HTTPServer returns a server for the Handler with all its timeouts set. The caller serves it and shuts it down; Shutdown ends the
// event streams first.
func HTTPServer(h *Handler) *http.Server {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		// No WriteTimeout: it would cut event streams. withDeadlines sets one for each other answer.
		IdleTimeout:    idleTimeout,
		MaxHeaderBytes: maxHeaderBytes,
		ErrorLog:       slog.NewLogLogger(h.opts.Logger.Handler(), slog.LevelDebug),
	}
	s.RegisterOnShutdown(h.CloseStreams)
	return s
}

// humaConfig turns off what huma would add by default: its pages load scripts from elsewhere, and its schema links put a key
// into every answer that is no part of the contract.
func humaConfig(version string) huma.Config {
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Cutover", Version: version,
				Description: "Deploys applications on Apache Mesos and moves the traffic to them on every load-balancer host as one transaction.",
			},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", schemaName),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					securityToken: {Type: "http", Scheme: "bearer", Description: "a token of the orchestrator: cut_..."},
				},
			},
			Security: []map[string][]string{{securityToken: {}}},
		},
		Formats:       map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat: "application/json",
		// Mistyped parameters must not be ignored: ?limt=5 would list everything.
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{toProblem},
	}
}

// renderOpenAPI writes the document with sorted keys and one final newline, so that it can be committed and compared.
func renderOpenAPI(doc *huma.OpenAPI) ([]byte, error) {
	tidySchemas(doc.Components.Schemas)
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("api: rendering the OpenAPI document: %w", err)
	}
	var sorted any
	if err := json.Unmarshal(raw, &sorted); err != nil {
		return nil, fmt.Errorf("api: rendering the OpenAPI document: %w", err)
	}
	out, err := json.MarshalIndent(sorted, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("api: rendering the OpenAPI document: %w", err)
	}
	return append(out, '\n'), nil
}
