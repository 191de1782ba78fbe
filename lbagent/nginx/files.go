package nginx

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

// errDamaged is wrapped when a file is there and does not hold what was written: it is not whole, or of another App.
var errDamaged = errors.New("the file is damaged")

// readSections reads every published Section of a directory. Where a file is damaged the Section is what the journal says
// that it should hold: a damaged tree must not be taken for an empty one (NEVER-ZERO). The file stays as it is; Survey
// tells it, and Mend puts it right. damaged names the Apps, also those that the journal does not know, which are left out.
func readSections(o Options, dir string) (sections map[string]driver.Section, damaged []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	sections = make(map[string]driver.Section)
	for _, e := range entries {
		app, ok := strings.CutSuffix(e.Name(), sectionSuffix)
		if !ok {
			continue
		}
		s, err := readSection(filepath.Join(dir, e.Name()), app)
		if errors.Is(err, errDamaged) {
			o.Logger.Warn("a published file is damaged; the journal says what it should hold", "app", app, "damage", err)
			damaged = append(damaged, app)
			if s, ok = o.journaled(app); !ok {
				continue
			}
		} else if err != nil {
			return nil, nil, err
		}
		sections[app] = s
	}
	return sections, damaged, nil
}

// journaled is what the journal wants in the file of an App.
func (o Options) journaled(app string) (driver.Section, bool) {
	if o.Journaled == nil {
		return driver.Section{}, false
	}
	s, ok := o.Journaled(app)
	s = sectionfile.Published(s)
	return s, ok && sectionfile.Check(s) == nil && driver.Digest(s) != ""
}

// readSection reads the file of an App.
func readSection(name, app string) (driver.Section, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return driver.Section{}, err
	}
	s, _, err := sectionfile.Decode(text)
	if err == nil && s.App != app {
		err = fmt.Errorf("it holds the section of %q", s.App)
	}
	if err != nil {
		return driver.Section{}, fmt.Errorf("%s: %w: %w", name, errDamaged, err)
	}
	return s, nil
}

// fileDigest is the digest of the App's Section in a file; "" if there is none. That of a damaged file equals no other.
func fileDigest(name, app string) (string, error) {
	s, err := readSection(name, app)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", nil
	case errors.Is(err, errDamaged):
		text, err := os.ReadFile(name)
		sum := sha256.Sum256(text)
		return "altered:" + hex.EncodeToString(sum[:]), err
	case err != nil:
		return "", err
	}
	return driver.Digest(s), nil
}
