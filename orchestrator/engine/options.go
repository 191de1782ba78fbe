package engine

import (
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cutover/cutover/orchestrator/scheduler"
	"github.com/cutover/cutover/orchestrator/store"
)

// Options of an Engine. Store is required.
type Options struct {
	Store store.Store
	// Fence is the leader's term; every write carries it.
	Fence store.Fence
	// Logger by default discards; Registerer by default registers nothing.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Fatal is called once if a write failed: the term is over, and the process should end as by kill -9. It must not block.
	Fatal func(error)
	// Now is the clock; time.Now by default.
	Now func() time.Time
	// Entropy is what ids are made of; ulid.DefaultEntropy by default.
	Entropy io.Reader

	Scheduler scheduler.Options
	// AliveAfter is how long a task without a health check must run to count as healthy; 1 s by default.
	AliveAfter time.Duration
	// InsertTimeout bounds the insertion of a replacement; 30 s by default.
	InsertTimeout time.Duration
	// CallTimeout bounds one call of a neighbour; 10 s by default. StoreTimeout bounds one Commit; 30 s by default.
	CallTimeout, StoreTimeout time.Duration
	// SafetyInterval is the time between looks at everything, in case an event was lost; 5 s by default.
	SafetyInterval time.Duration
	// MaxQueue bounds the callers that wait for the loop; 4,096 by default.
	MaxQueue int
	// MaxApps bounds the Apps; 2,000 by default.
	MaxApps int
}

func (o Options) withDefaults() (Options, error) {
	if o.Store == nil {
		return o, errors.New("engine: Options.Store is required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Fatal == nil {
		o.Fatal = func(error) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Entropy == nil {
		o.Entropy = ulid.DefaultEntropy()
	}
	o.Scheduler = o.Scheduler.WithDefaults()
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&o.AliveAfter, time.Second}, {&o.InsertTimeout, 30 * time.Second}, {&o.CallTimeout, 10 * time.Second},
		{&o.StoreTimeout, 30 * time.Second}, {&o.SafetyInterval, 5 * time.Second},
	} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	if o.MaxQueue <= 0 {
		o.MaxQueue = 4096
	}
	if o.MaxApps <= 0 {
		o.MaxApps = 2000
	}
	return o, nil
}
