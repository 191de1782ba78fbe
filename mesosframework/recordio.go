package mesosframework

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// recordReader splits a stream into RecordIO records: decimal length, newline,
// that many bytes. Unlike mesos-go's reader its limit can be raised.
type recordReader struct {
	r     *bufio.Reader
	limit int
	buf   []byte
}

func newRecordReader(r io.Reader, limit int) *recordReader {
	return &recordReader{r: bufio.NewReaderSize(r, 64<<10), limit: limit}
}

// keepBuffer is the size up to which a buffer is kept for the next record.
const keepBuffer = 1 << 20

// next returns the next record, valid until the next call. io.EOF means that
// the stream ended between two records.
func (rr *recordReader) next() ([]byte, error) {
	length, digits := 0, 0
	for {
		c, err := rr.r.ReadByte()
		if err != nil {
			if err == io.EOF && digits > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if c == '\n' {
			break
		}
		if c < '0' || c > '9' || digits >= 18 {
			return nil, fmt.Errorf("the stream is not RecordIO: byte %q in a record's length", c)
		}
		length, digits = length*10+int(c-'0'), digits+1
	}
	if digits == 0 {
		return nil, fmt.Errorf("the stream is not RecordIO: a record without length")
	}
	if length > rr.limit {
		return nil, fmt.Errorf("a record of %d bytes is longer than the limit of %d (Options.MaxRecord)", length, rr.limit)
	}
	buf, err := rr.fill(length)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return buf, err
}

// fill reads length bytes. The buffer grows with what really arrives, so that a
// length alone does not allocate.
func (rr *recordReader) fill(length int) ([]byte, error) {
	buf := rr.buf[:0]
	if cap(buf) > keepBuffer {
		buf = nil
	}
	for len(buf) < length {
		step := min(length-len(buf), max(keepBuffer, len(buf)))
		at := len(buf)
		if cap(buf) < at+step {
			grown := make([]byte, at, at+step)
			copy(grown, buf)
			buf = grown
		}
		buf = buf[:at+step]
		if _, err := io.ReadFull(rr.r, buf[at:]); err != nil {
			return nil, err
		}
	}
	rr.buf = buf
	return buf, nil
}
