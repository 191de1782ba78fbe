package nginx

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

// orphanGrace is how long workers whose master was killed may finish their requests before a new nginx starts: the
// supervisor has to bring the proxy back within a second.
const orphanGrace = 500 * time.Millisecond

// BootstrapLua makes Dir hold a valid tree for the Lua driver; with Restore it clears what would keep nginx from starting. Run
// it so before every start of nginx, and without Restore at the start of the lbagent; it changes nothing that a running nginx uses.
func BootstrapLua(options Options) error {
	o, err := options.normal()
	if err != nil {
		return err
	}
	p := paths{o.Dir}
	if err := makeDirs(p.dir, p.run(), p.frames(), p.apps()); err != nil {
		return err
	}
	digest, files, err := luaFrame(o)
	if err != nil {
		return err
	}
	tree := filepath.Join(p.frames(), digest)
	if _, err := os.Stat(tree); errors.Is(err, fs.ErrNotExist) {
		if err := writeTree(p.frames(), digest, files); err != nil {
			return fmt.Errorf("nginx: write the Frame %s: %w", tree, err)
		}
	} else if o.Restore {
		if err := restoreLua(o, tree, files); err != nil {
			return fmt.Errorf("nginx: restore what is damaged: %w", err)
		}
	}
	if err := atomicfile.Symlink(filepath.Join("frames", digest), p.current()); err != nil {
		return fmt.Errorf("nginx: publish the Frame: %w", err)
	}
	return finishBootstrap(o)
}

// restoreLua writes damaged files of the Frame and of Apps again, for an nginx that is about to start on them.
func restoreLua(o Options, tree string, frame map[string][]byte) error {
	for name, want := range frame {
		path := filepath.Join(tree, name)
		if text, err := os.ReadFile(path); err == nil && bytes.Equal(text, want) {
			continue
		}
		o.Logger.Warn("a file of the Frame is damaged: it is written again", "file", path)
		if err := atomicfile.Write(path, want); err != nil {
			return err
		}
	}
	p := paths{o.Dir}
	sections, damaged, err := readSections(o, p.apps())
	if err != nil {
		return err
	}
	for _, app := range damaged {
		if s, ok := sections[app]; ok {
			if err := atomicfile.Write(p.sectionFile(app), sectionfile.File(s)); err != nil {
				return err
			}
		}
	}
	return nil
}

// finishBootstrap is the part that both drivers share.
func finishBootstrap(o Options) error {
	if err := linkInclude(o); err != nil || !o.Restore {
		return err
	}
	return clearStart(o)
}

func makeDirs(names ...string) error {
	for _, name := range names {
		if err := os.MkdirAll(name, 0o700); err != nil {
			return fmt.Errorf("nginx: %w", err)
		}
		// It may have been there with a wider mode; the private sockets rely on this one.
		if err := os.Chmod(name, 0o700); err != nil {
			return fmt.Errorf("nginx: %w", err)
		}
	}
	return nil
}

// writeTree writes a directory of files under a temporary name and renames it: it is there whole, or not.
func writeTree(parent, name string, files map[string][]byte) error {
	tmp, err := os.MkdirTemp(parent, atomicfile.Temporary)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // nothing is left of it after the rename
	for file, data := range files {
		if err := atomicfile.Create(filepath.Join(tmp, file), data); err != nil {
			return err
		}
	}
	if err := atomicfile.SyncDir(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(parent, name)); err != nil {
		return err
	}
	return atomicfile.SyncDir(parent)
}

// clearLeft removes what an agent that was killed left half written. Only a starting agent may: Bootstrap runs beside one
// that works.
func clearLeft(dirs ...string) error {
	for _, dir := range dirs {
		if err := atomicfile.Clean(dir); err != nil {
			return err
		}
	}
	return nil
}

// linkInclude makes the link beside the owner's base configuration, unless it is there.
func linkInclude(o Options) error {
	link := filepath.Join(filepath.Dir(o.BaseConfig), IncludeName)
	current := (paths{o.Dir}).current()
	if link == current {
		return nil
	}
	target, err := os.Readlink(link)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.Symlink(current, link); err != nil {
			return fmt.Errorf("nginx: %w (make it by hand: ln -s %s %s)", err, current, link)
		}
		return atomicfile.SyncDir(filepath.Dir(link))
	case err != nil || target != current:
		return fmt.Errorf("nginx: %s is not a link to %s: move it away, then ln -s %s %s", link, current, current, link)
	}
	return nil
}

// clearStart removes what a killed nginx left: workers without a master, which hold the ports, and sockets that nobody
// listens on, which nginx will not replace. A running nginx is left alone. Only whoever is about to start nginx may: it binds
// a socket a moment before it listens, and an lbagent that starts beside it would take the socket away for good.
func clearStart(o Options) error {
	entries, err := os.ReadDir((paths{o.Dir}).run())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".sock") {
			continue
		}
		name := filepath.Join((paths{o.Dir}).run(), e.Name())
		running, err := endOrphans(name, o)
		if err != nil {
			return err
		}
		if running || answers(name) {
			continue
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func answers(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// endOrphans ends the workers that listen on the socket and whose master is gone. They get orphanGrace to finish.
func endOrphans(socket string, o Options) (running bool, err error) {
	inodes, err := procfs.UnixListeners(socket)
	if err != nil || len(inodes) == 0 {
		return false, err
	}
	orphans := make(map[int]procfs.Stat)
	for _, inode := range inodes {
		pids, err := procfs.Holders(inode)
		if err != nil {
			return false, err
		}
		for _, pid := range pids {
			title, err := procfs.Title(pid)
			if err != nil {
				continue
			}
			if strings.HasPrefix(title, titleMaster) {
				return true, nil
			}
			if s, err := procfs.ReadStat(pid); err == nil && strings.HasPrefix(title, titleWorker) {
				orphans[pid] = s
			}
		}
	}
	end := func(sig syscall.Signal) (left int) {
		for pid, was := range orphans {
			s, err := procfs.ReadStat(pid)
			if err != nil || s.StartTicks != was.StartTicks {
				delete(orphans, pid)
				continue
			}
			left++
			if sig != 0 {
				_ = syscall.Kill(pid, sig) // it may have ended by itself; the next look tells
			}
		}
		return left
	}
	if end(syscall.SIGQUIT) == 0 {
		return false, nil
	}
	o.Logger.Warn("nginx's master was killed: ending its orphaned workers", "workers", len(orphans))
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	grace := time.Now().Add(orphanGrace)
	for end(0) > 0 {
		if time.Now().After(grace.Add(5 * time.Second)) {
			return false, fmt.Errorf("nginx: orphaned workers %v do not end: kill them by hand", orphans)
		}
		if time.Now().After(grace) {
			end(syscall.SIGKILL)
		}
		<-tick.C
	}
	return false, nil
}
