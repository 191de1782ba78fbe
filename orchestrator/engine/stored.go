package engine

import (
	"slices"
	"strings"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// This file bounds the record of a Deploy. What Hosts said of a large App, times the Hosts, is more than a Commit of the store can
// hold, and a term that cannot write a Deploy is over. The proof is not in this record but in the Commit record, whole.

// Bounds of what a Deploy's record keeps, in bytes, so that with 1,000 tasks it is well below what one Commit can hold.
const (
	maxStoredRows  = 192 << 10 // upstreams that Hosts reported
	maxStoredTexts = 32 << 10  // what Hosts and tasks said in words
)

// stored is the Deploy as it is written: itself, or a copy that leaves out what is too much. What drains is left out before
// what serves; of the Hosts whose upstreams do not fit, the record says how many.
func (d *deployRecord) stored() *deployRecord {
	if d == nil {
		return nil
	}
	rows, texts := d.weigh()
	if rows <= maxStoredRows && texts <= maxStoredTexts {
		return d
	}
	out := *d
	out.Hosts, out.Stuck, out.Members = slices.Clone(d.Hosts), slices.Clone(d.Stuck), slices.Clone(d.Members)
	if rows > maxStoredRows {
		out.cutRows()
	}
	if texts > maxStoredTexts {
		out.cutTexts()
	}
	return &out
}

// weigh is about how many bytes the upstreams take, and the texts.
func (d *deployRecord) weigh() (rows, texts int) {
	for _, h := range d.Hosts {
		if h.Evidence != nil {
			rows += sizeOf(h.Evidence.Upstreams) + sizeOf(h.Evidence.Others)
		}
	}
	for _, s := range d.Stuck {
		for _, v := range s.Serves {
			rows += sizeOf(v.Upstreams)
		}
	}
	for _, s := range d.texts() {
		texts += len(*s)
	}
	return rows, texts
}

// sizeOf is about what the upstreams take in the record.
func sizeOf(rows []deploy.UpstreamView) int {
	n := 0
	for _, u := range rows {
		n += 130 + len(u.Name) + len(u.Address) + len(u.Status) + len(u.Mode)
	}
	return n
}

// texts are those that somebody else has made, of any length.
func (d *deployRecord) texts() []*string {
	var out []*string
	for i := range d.Hosts {
		out = append(out, &d.Hosts[i].Reason, &d.Hosts[i].Output)
	}
	for i := range d.Stuck {
		out = append(out, &d.Stuck[i].What)
	}
	for i := range d.Members {
		out = append(out, &d.Members[i].Why)
	}
	return slices.DeleteFunc(out, func(s *string) bool { return *s == "" })
}

func (d *deployRecord) cutRows() {
	room := maxStoredRows
	for i := range d.Hosts {
		ev := d.Hosts[i].Evidence
		if ev == nil {
			continue
		}
		short := *ev
		short.Omitted, short.Others = short.Omitted+len(ev.Others), nil
		if n := sizeOf(ev.Upstreams); n <= room {
			room -= n
		} else {
			short.Omitted, short.Upstreams = short.Omitted+len(ev.Upstreams), []deploy.UpstreamView{}
		}
		d.Hosts[i].Evidence = &short
	}
	for i := range d.Stuck {
		d.Stuck[i].Serves = slices.Clone(d.Stuck[i].Serves)
		for j := range d.Stuck[i].Serves {
			v := &d.Stuck[i].Serves[j]
			if n := sizeOf(v.Upstreams); n <= room {
				room -= n
			} else {
				v.Omitted, v.Upstreams = v.Omitted+len(v.Upstreams), []deploy.UpstreamView{}
			}
		}
	}
}

// cutTexts gives every text the same share, and what the short ones leave to the long ones. The end is left out.
func (d *deployRecord) cutTexts() {
	all := d.texts()
	slices.SortFunc(all, func(a, b *string) int { return len(*a) - len(*b) })
	room := maxStoredTexts
	for i, s := range all {
		if share := room / (len(all) - i); len(*s) > share {
			*s = strings.ToValidUTF8((*s)[:share], "")
		}
		room -= min(room, len(*s))
	}
}
