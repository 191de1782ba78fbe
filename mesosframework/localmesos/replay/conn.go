package replay

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/mesosframework/localmesos/wire"
)

// event is one event of a stream, or its end.
type event struct {
	what string // type, or "EOF"
	body any
	at   time.Time
	used bool
}

// conn is one subscription.
type conn struct {
	client   *http.Client // for the ordered calls
	response *http.Response
	cancel   func()
	done     chan struct{}

	mu     sync.Mutex
	events []*event
	wake   chan struct{}
}

func newConn(client *http.Client) *conn {
	return &conn{client: client, wake: make(chan struct{}, 1)}
}

// read reads the stream to its end.
func (c *conn) read() {
	defer close(c.done)
	defer c.response.Body.Close()
	r := bufio.NewReader(c.response.Body)
	protobuf := c.response.Header.Get("Content-Type") == wire.Protobuf
	for {
		record, err := readRecord(r)
		if err != nil {
			c.add(&event{what: "EOF", at: time.Now()})
			return
		}
		if protobuf {
			var e scheduler.Event
			if err := wire.UnmarshalProto(record, &e); err != nil {
				c.add(&event{what: fmt.Sprintf("undecodable protobuf: %v", err), at: time.Now()})
				continue
			}
			record = wire.MarshalJSON(&e)
		}
		var body map[string]any
		if err := json.Unmarshal(record, &body); err != nil {
			c.add(&event{what: fmt.Sprintf("undecodable JSON: %v", err), at: time.Now()})
			continue
		}
		what, _ := body["type"].(string)
		c.add(&event{what: what, body: body, at: time.Now()})
	}
}

func readRecord(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(line, "\n"))
	if err != nil || n <= 0 || n > 64<<20 {
		return nil, fmt.Errorf("bad record length %q", line)
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r, b)
	return b, err
}

// add notes events; offers one by one.
func (c *conn) add(e *event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.what == "OFFERS" {
		for _, o := range offersOf(e.body) {
			c.events = append(c.events, &event{what: "OFFERS", body: o, at: e.at})
		}
	} else {
		c.events = append(c.events, e)
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func offersOf(body any) []any {
	b, _ := body.(map[string]any)
	o, _ := b["offers"].(map[string]any)
	list, _ := o["offers"].([]any)
	return list
}

// await gives pick the events that are not used yet, in order, again and again
// until it takes one or the deadline has passed.
func (c *conn) await(deadline time.Time, pick func(unused []*event) *event) *event {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		c.mu.Lock()
		e := pick(c.unused())
		if e != nil {
			e.used = true
		}
		c.mu.Unlock()
		if e != nil {
			return e
		}
		select {
		case <-c.wake:
		case <-timer.C:
			return nil
		}
	}
}

func (c *conn) unused() []*event {
	var out []*event
	for _, e := range c.events {
		if !e.used {
			out = append(out, e)
		}
	}
	return out
}
