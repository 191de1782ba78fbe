package client

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
)

// maxEventBytes bounds one event: a View with the evidence of hundreds of Hosts fits.
const maxEventBytes = 16 << 20

// frame is one server-sent event, or the sign of life between two (Comment).
type frame struct {
	ID      string
	Type    string
	Data    []byte
	Comment bool
}

// frameReader takes server-sent events apart. An event that the end of the stream cuts off is dropped, as the standard says.
type frameReader struct {
	lines *bufio.Scanner
}

func newFrameReader(r io.Reader) *frameReader {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxEventBytes)
	return &frameReader{lines: lines}
}

// next returns the next frame, or io.EOF after a clean end.
func (r *frameReader) next() (frame, error) {
	var f frame
	var data bool
	size := 0
	for r.lines.Scan() {
		line := r.lines.Bytes()
		if len(line) == 0 {
			if data || f.Comment {
				return f, nil
			}
			f = frame{}
			continue
		}
		if size += len(line); size > maxEventBytes {
			return frame{}, fmt.Errorf("client: an event is larger than %d bytes", maxEventBytes)
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "":
			f.Comment = true
		case "id":
			f.ID = string(value)
		case "event":
			f.Type = string(value)
		case "data":
			if data {
				f.Data = append(f.Data, '\n')
			}
			f.Data = append(f.Data, value...)
			data = true
			f.Comment = false
		}
	}
	if err := r.lines.Err(); err != nil {
		return frame{}, fmt.Errorf("client: reading events: %w", err)
	}
	return frame{}, io.EOF
}
