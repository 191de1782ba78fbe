package nginx

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

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
