package client

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFrames(t *testing.T) {
	in := ": hello\n\nid: 1\nevent: step\ndata: {\"a\":\ndata:1}\n\nretry: 5\n\n: x\nid: 2\ndata\n\nid: 3\ndata: cut off"
	want := []frame{
		{Comment: true},
		{ID: "1", Type: "step", Data: []byte("{\"a\":\n1}")},
		{ID: "2"},
	}
	r := newFrameReader(strings.NewReader(in))
	for i, w := range want {
		got, err := r.next()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(w, got); diff != "" {
			t.Errorf("frame %d: %s", i, diff)
		}
	}
	if _, err := r.next(); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add("id: 1\ndata: {}\n\n")
	f.Add(": beat\n\n\n\r\nevent:x\ndata\n\n")
	f.Fuzz(func(t *testing.T, in string) {
		r := newFrameReader(strings.NewReader(in))
		for n := 0; ; n++ {
			fr, err := r.next()
			if err != nil {
				return
			}
			if n > len(in) {
				t.Fatal("more frames than bytes")
			}
			if fr.Comment && fr.Data != nil {
				t.Fatalf("%+v", fr)
			}
		}
	})
}
