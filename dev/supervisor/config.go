package supervisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cutover/cutover/internal/atomicfile"
)

// MaxPause bounds the pause before a process that keeps dying is started again: a Host's agent and proxy are back
// within one second.
const MaxPause = 800 * time.Millisecond

// Process is one thing to keep running.
type Process struct {
	Name string   `json:"name"` // [a-z]+
	Argv []string `json:"argv"`
	Dir  string   `json:"dir,omitempty"`
	Env  []string `json:"env,omitempty"` // in addition to PATH and HOME
}

// Config is what one supervisor does; it is kept in DIR/supervisor.json.
type Config struct {
	Dir       string    `json:"dir"`
	Processes []Process `json:"processes"`
}

// ConfigFile is where Save puts the configuration of a Host's supervisor.
func ConfigFile(dir string) string { return filepath.Join(dir, "supervisor.json") }

// Save writes the configuration, atomically.
func (c Config) Save() error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(ConfigFile(c.Dir), data)
}

// Load reads the configuration of the supervisor in dir.
func Load(dir string) (Config, error) {
	var c Config
	data, err := os.ReadFile(ConfigFile(dir))
	if err != nil {
		return c, fmt.Errorf("read the supervisor's configuration: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("read %s: %w", ConfigFile(dir), err)
	}
	if len(c.Processes) == 0 {
		return c, fmt.Errorf("%s names no process", ConfigFile(dir))
	}
	return c, nil
}
