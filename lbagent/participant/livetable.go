package participant

// liveShards is how many parts a liveTable has: a Step copies the list of them and those parts that it writes, so that its
// cost hardly grows with the number of Apps (1,000 Apps: about 16 in a part).
const liveShards = 64

// liveTable is the volatile part by App. As a value it never changes: what writes it writes a copy (own).
type liveTable struct{ shards []map[string]*live }

func (t liveTable) get(app string) *live {
	if t.shards == nil {
		return nil
	}
	return t.shards[shardOf(app)][app]
}

// each calls f for every App, in no order.
func (t liveTable) each(f func(app string, l *live)) {
	for _, s := range t.shards {
		for app, l := range s {
			f(app, l)
		}
	}
}

// liveWriter is a liveTable that one Step owns: its parts are copied when they are first written.
type liveWriter struct {
	liveTable
	owned [liveShards]bool
}

func (t liveTable) own() liveWriter {
	w := liveWriter{}
	w.shards = make([]map[string]*live, liveShards)
	copy(w.shards, t.shards)
	return w
}

// shard returns the part of the App for writing.
func (w *liveWriter) shard(app string) map[string]*live {
	i := shardOf(app)
	if !w.owned[i] {
		w.shards[i] = cloned(w.shards[i])
		w.owned[i] = true
	}
	return w.shards[i]
}

func (w *liveWriter) put(app string, l *live) { w.shard(app)[app] = l }

func (w *liveWriter) delete(app string) { delete(w.shard(app), app) }

// shardOf spreads names evenly (FNV-1a).
func shardOf(app string) int {
	h := uint32(2166136261)
	for i := range len(app) {
		h = (h ^ uint32(app[i])) * 16777619
	}
	return int(h % liveShards)
}
