// Package sectionfile is the text of one Section as the nginx drivers keep it: in the published tree, in nginx's shared
// dictionary, and on the wire between agent and worker.
//
// It is pure. The format is lines of words and not JSON, because Debian's Lua module brings no JSON decoder and the same
// text is read by Go and by Lua:
//
//	cutover-section 1 WRITE
//	app NAME
//	route HOST PATH STRIP
//	upstream NAME IP:PORT WEIGHT MODE KIND HEALTHPATH INTERVAL_MS TIMEOUT_MS RISE FALL
//	end CRC32
//
// WRITE is the fencing number of a write to the dictionary (invariant FENCE). In files it is 0: a published file is a
// function of the Section alone, so restoring a Section restores its file byte for byte (UNDO). The CRC (IEEE, hexadecimal) covers everything before the end
// line. Check refuses every value that could leave its word, so no text of a user reaches a configuration unquoted.
package sectionfile
