//go:build crashpoints

package crashpoint

import (
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// File, in the working directory, names the moment.
const File = "crash-at"

var (
	mu   sync.Mutex
	seen int    // how often the label of text was come to
	text string // of File when it was last read
)

// At ends or stops the process if the moment is the one that is asked for. Safe for concurrent use.
func At(label string) {
	if os.Getenv("CUTOVER_CRASH_AT") == label {
		die()
	}
	if comes(label) {
		die()
	}
}

// comes reports whether the process is to die here. A stop happens inside of it: what has been stopped goes on later as
// if nothing had been.
func comes(label string) bool {
	mu.Lock()
	defer mu.Unlock()
	data, err := os.ReadFile(File)
	if err != nil {
		return false
	}
	if string(data) != text {
		text, seen = string(data), 0
	}
	words := strings.Fields(text)
	if len(words) == 0 || words[0] != label {
		return false
	}
	want, stop := 1, false
	for _, w := range words[1:] {
		if n, err := strconv.Atoi(w); err == nil {
			want = n
		} else {
			stop = w == "stop"
		}
	}
	if seen++; seen < want {
		return false
	}
	seen, text = 0, ""
	if os.Remove(File) != nil {
		return false
	}
	if stop {
		// To this very thread: it stands still before it runs another instruction.
		_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
	}
	return !stop
}

func die() {
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}
