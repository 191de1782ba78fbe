package nginx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

// writeNew writes a file that does not exist yet and syncs it. The caller syncs the directory.
func writeNew(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// replace puts data in the place of a file: whoever opens it sees the old or the new content, and the new one is durable
// when replace returns.
func replace(name string, data []byte) error {
	tmp := name + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeNew(tmp, data); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// relink points a symbolic link to target, by rename(2), durably.
func relink(link, target string) error {
	if now, err := os.Readlink(link); err == nil && now == target {
		return nil
	}
	tmp := link + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, link); err != nil {
		return err
	}
	return syncDir(filepath.Dir(link))
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readSections reads every published Section of a directory. A file that is not whole is an error: the agent must not
// take a damaged tree for an empty one.
func readSections(dir string) (map[string]driver.Section, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	sections := make(map[string]driver.Section)
	for _, e := range entries {
		app, ok := strings.CutSuffix(e.Name(), sectionSuffix)
		if !ok {
			continue
		}
		s, err := readSection(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if s.App != app {
			return nil, fmt.Errorf("%s holds the section of %s", e.Name(), s.App)
		}
		sections[app] = s
	}
	return sections, nil
}

func readSection(name string) (driver.Section, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return driver.Section{}, err
	}
	s, _, err := sectionfile.Decode(text)
	if err != nil {
		return s, fmt.Errorf("%s: %w (remove it and let the agent sync)", name, err)
	}
	return s, nil
}
