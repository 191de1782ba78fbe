package orchestrator

import (
	"testing"

	"github.com/cutover/cutover/mesosframework"
)

func TestReadOutput(t *testing.T) {
	// What an agent of Mesos does: at most 4 bytes at once, an offset past the end is answered as it was asked.
	file := []byte("0123456789")
	read := func(offset int64, length int) (mesosframework.Chunk, error) {
		size := int64(len(file))
		if offset < 0 {
			return mesosframework.Chunk{Offset: size}, nil
		}
		if offset >= size {
			return mesosframework.Chunk{Offset: offset}, nil
		}
		return mesosframework.Chunk{Offset: offset, Data: file[offset:min(size, offset+int64(min(length, 4)))]}, nil
	}
	for _, c := range []struct {
		name   string
		offset int64
		limit  int
		data   string
		at     int64
	}{
		{"whole", 0, 100, "0123456789", 0},
		{"tail", -1, 3, "789", 7},
		{"piece", 2, 6, "234567", 2},
		{"nothing new", 10, 100, "", 10},
		{"shorter than what was read before", 5000, 100, "", 10},
	} {
		data, at, err := readOutput(c.offset, c.limit, read)
		if err != nil || string(data) != c.data || at != c.at {
			t.Errorf("%s: %q at %d, %v; want %q at %d", c.name, data, at, err, c.data, c.at)
		}
	}
}
