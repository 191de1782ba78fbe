package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// keptDeploys are the Deploys by id. One that is done stays as it is stored until somebody asks for it: most of a store are
// Deploys at which nobody looks again, each with the evidence of every Host, and a restart must not take the time to read
// them all. The loop owns it, as all of the state.
type keptDeploys struct {
	log    *slog.Logger
	read   map[string]*deployRecord
	stored map[string][]byte // those that are done and were not asked for
}

func newKeptDeploys(log *slog.Logger) keptDeploys {
	return keptDeploys{log: log, read: map[string]*deployRecord{}, stored: map[string][]byte{}}
}

// doneMark is in the record of each Deploy that is done, and of no other: it is that step's name among the steps that the
// Deploy has taken. In a text it would have its quotes escaped.
var doneMark = []byte(`"step":"` + string(deploy.StepDone) + `"`)

// readDeploy reads a stored Deploy, unless it is done: then it is nil.
func readDeploy(value []byte) (*deployRecord, error) {
	if bytes.Contains(value, doneMark) {
		return nil, nil //nolint:nilnil // nothing is wrong with it, and nothing is to be read yet
	}
	var d deployRecord
	return &d, json.Unmarshal(value, &d)
}

// get returns the Deploy, nil if there is none. It stays the same one for as long as it is kept.
func (k keptDeploys) get(id string) *deployRecord {
	if d := k.read[id]; d != nil {
		return d
	}
	value, ok := k.stored[id]
	if !ok {
		return nil
	}
	delete(k.stored, id)
	var d deployRecord
	if err := json.Unmarshal(value, &d); err != nil {
		k.log.Error("the record of a Deploy that is done cannot be read: it is shown no longer", "deploy", id, "error", fmt.Errorf("record %s%s: %w", prefixDeploy, id, err))
		return nil
	}
	k.read[id] = &d
	return &d
}

func (k keptDeploys) put(d *deployRecord) { k.read[d.ID] = d }

// putStored keeps a Deploy that is done as it is stored.
func (k keptDeploys) putStored(id string, value []byte) { k.stored[id] = value }

func (k keptDeploys) drop(id string) {
	delete(k.read, id)
	delete(k.stored, id)
}

func (k keptDeploys) has(id string) bool {
	_, stored := k.stored[id]
	return stored || k.read[id] != nil
}

// ids are those of all, sorted: by time.
func (k keptDeploys) ids() []string {
	ids := slices.AppendSeq(slices.Collect(maps.Keys(k.read)), maps.Keys(k.stored))
	slices.Sort(ids)
	return ids
}

// keptTasks are tasks that are over: they have ended, no Host knows them, and nothing follows from them any more. They stay as
// they are stored until somebody asks for one, as Deploys that are done.
type keptTasks struct {
	log    *slog.Logger
	stored map[string][]byte
	of     map[string]map[string]bool // their ids by App
}

func newKeptTasks(log *slog.Logger) keptTasks {
	return keptTasks{log: log, stored: map[string][]byte{}, of: map[string]map[string]bool{}}
}

// isOver judges a stored task by the fields that come after those of its place, whose attributes have the names that
// somebody else gives. In a text each of these would have its quotes escaped.
func isOver(value []byte) bool {
	i := bytes.LastIndex(value, []byte(`"role":"`))
	if i < 0 {
		return false
	}
	value = value[i:]
	return bytes.HasPrefix(value, []byte(`"role":"`+roleRetiring+`"`)) && bytes.Contains(value, []byte(`"ended_at":"`)) &&
		!bytes.Contains(value, []byte(`"holds":`)) && !bytes.Contains(value, []byte(`"port_held":true`)) && !bytes.Contains(value, []byte(`"moving":`))
}

func (k keptTasks) put(id string, value []byte) {
	app := appOfTask(id)
	if k.of[app] == nil {
		k.of[app] = map[string]bool{}
	}
	k.of[app][id] = true
	k.stored[id] = value
}

// take reads a task, which is the caller's from then on; nil if there is none.
func (k keptTasks) take(id string) *taskRecord {
	value, ok := k.stored[id]
	if !ok {
		return nil
	}
	delete(k.stored, id)
	delete(k.of[appOfTask(id)], id)
	t, err := decodeJSON[taskRecord](id, value)
	if err != nil {
		k.log.Error("the record of a task that is over cannot be read: it is shown no longer", "task", id, "error", fmt.Errorf("record %s%s: %w", prefixTask, id, err))
		return nil
	}
	return t
}
