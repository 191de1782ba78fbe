package mesosframework

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/mesos/mesos-go/api/v1/lib/recordio"
)

func TestRecordReader(t *testing.T) {
	big := strings.Repeat("x", 5<<20) // more than mesos-go's reader takes
	var b bytes.Buffer
	w := recordio.NewWriter(&b)
	records := []string{"one", "", big, "three\n4\n"}
	for _, r := range records {
		if err := w.WriteFrame([]byte(r)); err != nil {
			t.Fatal(err)
		}
	}
	rr := newRecordReader(iotest.HalfReader(&b), 6<<20)
	var got []string
	for {
		rec, err := rr.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(rec))
	}
	if d := cmp.Diff(records, got); d != "" {
		t.Error(d)
	}
	if cap(rr.buf) > keepBuffer {
		t.Errorf("a buffer of %d bytes is kept after the big record", cap(rr.buf))
	}
}

func TestRecordReaderRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"abc\n":                   "not RecordIO",
		"-1\nx":                   "not RecordIO",
		"\n":                      "without length",
		"99999999999999999999\nx": "not RecordIO",
		"101\n":                   "longer than the limit of 100",
		"5\nab":                   "unexpected EOF",
		"5":                       "unexpected EOF",
		"5\n":                     "unexpected EOF",
	} {
		if _, err := newRecordReader(strings.NewReader(in), 100).next(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
	if _, err := newRecordReader(strings.NewReader(""), 100).next(); !errors.Is(err, io.EOF) {
		t.Errorf("empty stream: %v", err)
	}
}

func FuzzRecordReader(f *testing.F) {
	f.Add([]byte("3\nabc2\nde"))
	f.Add([]byte("999999999\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		rr := newRecordReader(bytes.NewReader(in), 1<<20)
		for read := 0; ; {
			rec, err := rr.next()
			if err != nil {
				return
			}
			if read += len(rec); read > len(in) {
				t.Fatalf("%d bytes of records out of %d", read, len(in))
			}
		}
	})
}

func FuzzDecodeEvent(f *testing.F) {
	// The known crash of mesos-go's generated code: a length of 2^63-1.
	f.Add([]byte("\x1a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f"))
	f.Add([]byte("\x08\x04"))
	f.Fuzz(func(_ *testing.T, in []byte) {
		e, err := decodeEvent(in)
		if err == nil && e.GetUpdate() != nil {
			s := e.GetUpdate().GetStatus()
			fromStatus(&s)
		}
	})
}
