package api

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the API counts. Labels are bounded: routes as the router names them, never paths.
type metrics struct {
	requests     *prometheus.CounterVec
	seconds      *prometheus.HistogramVec
	unauthorized prometheus.Counter
	streams      prometheus.Gauge
	events       prometheus.Counter
	forwarded    prometheus.Counter
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cutover_api_requests_total", Help: "Requests answered, by route, method and HTTP status.",
		}, []string{"route", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cutover_api_request_duration_seconds", Help: "Time to answer a request, event streams apart.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"route", "method"}),
		unauthorized: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cutover_api_unauthorised_total", Help: "Requests refused for want of a known token.",
		}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cutover_api_event_streams", Help: "Event streams that are open.",
		}),
		events: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cutover_api_events_sent_total", Help: "Events sent on all event streams.",
		}),
	}
	m.forwarded = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "cutover_api_forwarded_total", Help: "Requests that this orchestrator let the leader answer.",
	})
	var errs []error
	for _, c := range []prometheus.Collector{m.forwarded, m.requests, m.seconds, m.unauthorized, m.streams, m.events} {
		errs = append(errs, registry.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("api: registering metrics: %w", err)
	}
	return m, nil
}

func routeLabel(c echo.Context) string {
	if p := c.Path(); p != "" {
		return p
	}
	return "none"
}

func methodLabel(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return method
	default:
		return "other"
	}
}
