package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
	"github.com/cutover/cutover/proto/gen/cutover/lbagent/v1/lbagentv1connect"

	"github.com/cutover/cutover/internal/pki"
	"github.com/cutover/cutover/orchestrator/txn"
)

// roleHost is in the certificates of lbagents.
const roleHost = "lbagent"

// maxMessage bounds what a Host may send in one message.
const maxMessage = 16 << 20

// Link is the connection to one Host. Safe for concurrent use.
type Link struct {
	host   Host
	client lbagentv1connect.HostServiceClient
	http   *http.Client
	jitter func(time.Duration) time.Duration
	log    *slog.Logger
	epoch  uint64

	heartbeat              time.Duration
	backoffMin, backoffMax time.Duration

	mu        sync.Mutex
	connected bool
	lastSeen  time.Time
	lastError string
	trouble   txn.Trouble
	state     *lbagentv1.HostState
	sentAt    time.Time
	sections  map[string]*lbagentv1.SectionReport
}

func newLink(h Host, opts Options) *Link {
	// No redirects: a message is for the declared address or for nobody.
	client := &http.Client{Transport: opts.Transport(h), CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	return &Link{
		host:       h,
		http:       client,
		jitter:     opts.Jitter,
		client:     lbagentv1connect.NewHostServiceClient(client, h.AgentURL, connect.WithReadMaxBytes(maxMessage), connect.WithAcceptCompression("gzip", nil, nil)),
		log:        opts.Logger.With("host", h.Name, "group", h.Group),
		epoch:      opts.Fence.Epoch,
		heartbeat:  opts.Heartbeat,
		backoffMin: opts.BackoffMin,
		backoffMax: opts.BackoffMax,
	}
}

// tcp is the transport of production.
func (o Options) tcp(h Host) http.RoundTripper {
	return &http.Transport{
		// No proxy of the environment: decisions go straight to the Host.
		DialContext: (&net.Dialer{Timeout: o.DialTimeout, KeepAlive: 5 * time.Second}).DialContext,
		// The Host's own name must be certified: an address that a source announces may lead to another Host.
		TLSClientConfig:     pki.ConfigFor(h.TLS, o.Cluster, roleHost, h.Name),
		TLSHandshakeTimeout: o.DialTimeout,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
	}
}

// Host returns the declaration.
func (l *Link) Host() Host { return l.host }

// Client calls the Host. Every call needs a context with a deadline.
func (l *Link) Client() lbagentv1connect.HostServiceClient { return l.client }

// Info is what is known of a Host at one moment.
type Info struct {
	Host      Host
	Connected bool
	// Trouble says why it is not connected, as far as the last attempt told.
	Trouble txn.Trouble
	// Problem says why the Host cannot take changes now, or is empty.
	Problem  string
	LastSeen time.Time
	State    *lbagentv1.HostState       // nil if never seen; shared, read only
	SentAt   time.Time                  // of State, by the Host's clock
	Sections []*lbagentv1.SectionReport // sorted by App; shared, read only
}

// Info returns a snapshot.
func (l *Link) Info() Info {
	l.mu.Lock()
	defer l.mu.Unlock()
	info := Info{Host: l.host, Connected: l.connected, LastSeen: l.lastSeen, State: l.state, SentAt: l.sentAt, Trouble: l.trouble}
	for _, app := range slices.Sorted(maps.Keys(l.sections)) {
		info.Sections = append(info.Sections, l.sections[app])
	}
	switch {
	case !l.connected && l.lastError != "":
		info.Problem = "not connected: " + l.lastError
	case !l.connected:
		info.Problem = "not connected yet"
	case l.state.GetMaxEpoch() > l.epoch:
		info.Problem = fmt.Sprintf("it has seen epoch %d and this orchestrator leads %d: another orchestrator has led it, or the state of this one is an old copy", l.state.GetMaxEpoch(), l.epoch)
	case len(l.state.GetProblems()) > 0:
		info.Problem = strings.Join(l.state.GetProblems(), "; ")
	}
	return info
}

// run keeps a Watch stream until ctx ends.
func (l *Link) run(ctx context.Context, h Handler, request *lbagentv1.WatchRequest) {
	pause := l.backoffMin
	for ctx.Err() == nil {
		stood, err := l.watch(ctx, h, request)
		if ctx.Err() != nil {
			return
		}
		if stood {
			pause = l.backoffMin
			l.log.Warn("host disconnected", "reason", err)
		} else {
			l.setError(err)
			l.log.Debug("host not connected", "reason", err)
		}
		// Half of the pause is random, so that Hosts that fell together do not come back in step.
		timer := time.NewTimer(pause/2 + l.jitter(pause/2+1))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		pause = min(2*pause, l.backoffMax)
	}
}

// watch carries one stream; stood says whether it delivered anything.
func (l *Link) watch(ctx context.Context, h Handler, request *lbagentv1.WatchRequest) (stood bool, err error) {
	streamCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(l.heartbeat, func() {
		cancel(&silence{l.heartbeat})
	})
	defer quiet.Stop()
	fail := func(err error) error {
		if cause := context.Cause(streamCtx); cause != nil && ctx.Err() == nil {
			err = cause
		}
		return plain(err)
	}
	stream, err := l.client.Watch(streamCtx, connect.NewRequest(request))
	if err != nil {
		return false, fail(err)
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		quiet.Stop()
		msg := stream.Msg() // ours: each Receive makes a new one
		if !stood {
			if err := l.recognise(msg); err != nil {
				return false, err
			}
		}
		l.note(msg, !stood)
		if stood {
			h.HostReported(ctx, l.host.Name, msg)
		} else {
			stood = true
			l.log.Info("host connected", "proxy", msg.GetHost().GetProxy(), "agent_pid", msg.GetHost().GetAgentPid())
			h.HostConnected(ctx, l.host.Name, msg)
		}
		quiet.Reset(l.heartbeat)
	}
	err = stream.Err()
	if err == nil {
		err = errors.New("it ended the stream")
	}
	if seen := seenEpoch(err); seen > l.epoch {
		h.HostAhead(ctx, l.host.Name, seen)
	}
	err = fail(err)
	if stood {
		l.mu.Lock()
		l.connected, l.lastError, l.trouble = false, err.Error(), troubleOf(err)
		l.mu.Unlock()
		h.HostDisconnected(ctx, l.host.Name, err.Error())
	}
	return stood, err
}

// seenEpoch is the epoch for which a Host of this cluster and Group refuses a stream, or 0.
func seenEpoch(err error) uint64 {
	var refused *connect.Error
	if !errors.As(err, &refused) {
		return 0
	}
	for _, d := range refused.Details() {
		msg, err := d.Value()
		if r, ok := msg.(*lbagentv1.Refusal); err == nil && ok && r.GetReason() == lbagentv1.RefusalReason_REFUSAL_REASON_STALE_EPOCH {
			return r.GetMaxEpoch()
		}
	}
	return 0
}

// recognise refuses an agent that is not the declared one, and a first message that is not complete.
func (l *Link) recognise(first *lbagentv1.WatchResponse) error {
	name, group := first.GetHost().GetName(), first.GetHost().GetGroup()
	switch {
	case name != l.host.Name || group != l.host.Group:
		return fmt.Errorf("%s is answered by host %q of group %q, declared are %q of %q: correct the declaration", l.host.AgentURL, name, group, l.host.Name, l.host.Group)
	case !first.GetComplete():
		return errors.New("its first report is not complete: run the same version of cutover on both sides")
	}
	return nil
}

// note keeps what the Host said for Info.
func (l *Link) note(msg *lbagentv1.WatchResponse, first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connected, l.lastError, l.trouble, l.lastSeen = true, "", txn.TroubleNone, time.Now()
	if msg.GetHost() != nil {
		l.state, l.sentAt = msg.GetHost(), msg.GetSentAt().AsTime()
	}
	if first || msg.GetComplete() {
		l.sections = map[string]*lbagentv1.SectionReport{}
	}
	for _, s := range msg.GetSections() {
		l.sections[s.GetApp()] = s
	}
}

func (l *Link) setError(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastError, l.trouble = err.Error(), troubleOf(err)
}

// silence: the stream, or the attempt to open it, has said nothing for too long.
type silence struct{ d time.Duration }

func (s *silence) Error() string { return fmt.Sprintf("it has said nothing for %v", s.d) }

// troubleOf tells an lbagent that is not there from one that takes the connection and then says nothing.
func troubleOf(err error) txn.Trouble {
	var quiet *silence
	var op *net.OpError
	var timeout net.Error
	switch {
	case errors.As(err, &op) && op.Op == "dial":
		return txn.TroubleAway
	case errors.As(err, &quiet), errors.As(err, &timeout) && timeout.Timeout():
		return txn.TroubleSilent
	default:
		return txn.TroubleAway
	}
}

// said is an error in other words.
type said struct {
	text string
	err  error
}

func (e *said) Error() string { return e.text }
func (e *said) Unwrap() error { return e.err }

// plain is an error of a call in words for people.
func plain(err error) error {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return &said{"connection refused: its lbagent does not run", err}
	case errors.Is(err, syscall.ECONNRESET):
		return &said{"connection reset", err}
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return &said{"connection lost: its lbagent or its machine has ended it", err}
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		return &said{fmt.Sprintf("%s: %s", ce.Code(), ce.Message()), err}
	}
	return err
}

// Plain is the error of a call to a Host in words for people.
func Plain(err error) string { return plain(err).Error() }
