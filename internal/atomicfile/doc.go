// Package atomicfile writes files so that a reader sees the old content or the new one, and a crash leaves either.
//
// What holds:
//   - What is written here belongs to its owner alone (0600), from the first byte on.
//   - A file is synced before it gets its name. When Write, Symlink and SyncDir return nil, the name is durable too.
//   - What a crash leaves has a name that starts with Temporary, in the directory of the file. Nothing is ever written
//     elsewhere: a key does not pass through a shared folder.
package atomicfile
