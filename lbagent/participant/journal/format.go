package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/cutover/cutover/lbagent/participant"
)

// FormatVersion is the version of the file format.
type FormatVersion uint32

// The versions. A new one is added below; none is ever changed. An older agent refuses a newer file.
const (
	// FormatFirst is the format of doc.go.
	FormatFirst FormatVersion = 1
	// FormatNewest is what this agent writes.
	FormatNewest = FormatFirst
)

const (
	magic      = "CUTOVERJ"
	headerSize = len(magic) + 4 + 8 + 4
	frameSize  = 12
	// MaxFrame bounds one payload, in bytes: a Sync of a large Group fits, a length made of noise does not.
	MaxFrame = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CorruptError says that a journal holds something that no crash can have left there.
type CorruptError struct {
	Path   string
	Offset int64
	What   string
}

// Error says what is wrong, where, and what to do next.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is corrupt at byte %d: %s: the proxy goes on serving; move the file away and start the agent again: "+
		"it comes back empty, and takes changes once the orchestrator has synced this host", e.Path, e.Offset, e.What)
}

func encodeHeader(seq uint64) []byte {
	b := append([]byte(nil), magic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(FormatNewest))
	b = binary.LittleEndian.AppendUint64(b, seq)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func encodeFrame(kind byte, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode a journal frame: %w", err)
	}
	if len(body)+1 > MaxFrame {
		return nil, fmt.Errorf("a journal frame of %d bytes is over the limit of %d", len(body)+1, MaxFrame)
	}
	b := make([]byte, 0, frameSize+1+len(body))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)+1))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[:4], castagnoli))
	sum := crc32.Update(crc32.Checksum([]byte{kind}, castagnoli), castagnoli, body)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return append(append(b, kind), body...), nil
}

// contents is what a file holds.
type contents struct {
	seq     uint64
	state   participant.Durable
	records int   // since the snapshot
	torn    int64 // bytes dropped at the end
}

// decode replays a whole file.
func decode(path string, data []byte) (contents, error) {
	var c contents
	corrupt := func(off int, format string, args ...any) error {
		return &CorruptError{Path: path, Offset: int64(off), What: fmt.Sprintf(format, args...)}
	}
	// The header is written together with the snapshot before the file gets its name, so it is never torn.
	if len(data) < headerSize || string(data[:len(magic)]) != magic {
		return c, corrupt(0, "this is not a journal")
	}
	if crc32.Checksum(data[:headerSize-4], castagnoli) != binary.LittleEndian.Uint32(data[headerSize-4:]) {
		return c, corrupt(0, "the header's checksum is wrong")
	}
	if v := FormatVersion(binary.LittleEndian.Uint32(data[len(magic):])); v == 0 || v > FormatNewest {
		return c, fmt.Errorf("%s has format %d and this agent knows up to %d: start the newer agent that wrote it", path, v, FormatNewest)
	}
	c.seq = binary.LittleEndian.Uint64(data[len(magic)+4:])
	first := true
	for off := headerSize; off < len(data); {
		payload, err := nextFrame(data[off:])
		if errors.Is(err, errTorn) && !first {
			c.torn = int64(len(data) - off)
			return c, nil
		}
		if err != nil {
			return c, corrupt(off, "%v", err)
		}
		switch {
		case payload[0] == 'S' && first:
			err = json.Unmarshal(payload[1:], &c.state)
		case payload[0] == 'R' && !first:
			var records []participant.Record
			if err = json.Unmarshal(payload[1:], &records); err == nil {
				for _, r := range records {
					c.state = c.state.Apply(r)
				}
				c.records += len(records)
			}
		default:
			err = fmt.Errorf("a frame of kind %q is out of place", payload[0])
		}
		if err != nil {
			return c, corrupt(off, "%v", err)
		}
		first = false
		off += frameSize + len(payload)
	}
	if first {
		return c, corrupt(headerSize, "there is no snapshot")
	}
	return c, nil
}

// errTorn: the rest of the file is what a crash in the middle of an Append can leave.
var errTorn = errors.New("the file ends within a frame")

// nextFrame returns the payload of the frame at the start of b, which reaches to the end of the file. Of an interrupted write,
// the end may be missing or read as zeros.
func nextFrame(b []byte) ([]byte, error) {
	if len(b) < frameSize || allZero(b) {
		return nil, errTorn
	}
	n := int64(binary.LittleEndian.Uint32(b))
	if crc32.Checksum(b[:4], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		if allZero(b[frameSize:]) {
			return nil, errTorn // the write ended within the frame's own header
		}
		return nil, errors.New("the checksum of a length is wrong")
	}
	if n == 0 || n > MaxFrame {
		return nil, fmt.Errorf("a frame of %d bytes", n)
	}
	rest := int64(len(b)) - frameSize
	if rest < n {
		return nil, errTorn
	}
	payload := b[frameSize : frameSize+n]
	if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(b[8:]) {
		if rest == n {
			return nil, errTorn
		}
		return nil, errors.New("the checksum of a frame is wrong, and frames follow")
	}
	return payload, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
