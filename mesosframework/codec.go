package mesosframework

import (
	"fmt"

	"github.com/mesos/mesos-go/api/v1/lib/encoding/codecs"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// mediaType is the encoding of calls and events.
const mediaType = string(codecs.MediaTypeProtobuf)

// decodeEvent decodes one event. The generated code of mesos-go panics on
// certain malformed input (the class of CVE-2021-3121): that becomes an error.
func decodeEvent(b []byte) (e *scheduler.Event, err error) {
	defer func() {
		if p := recover(); p != nil {
			e, err = nil, fmt.Errorf("malformed event of %d bytes: %v", len(b), p)
		}
	}()
	e = new(scheduler.Event)
	if err := e.Unmarshal(b); err != nil {
		return nil, fmt.Errorf("event of %d bytes: %w", len(b), err)
	}
	return e, nil
}
