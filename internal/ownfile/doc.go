// Package ownfile tells cheaply whether files still are what their writer wrote: a file that was found right costs one
// lstat(2) until it changes.
//
// A change is seen by size, inode, modification and status-change time. The last cannot be set by anybody, so an edit
// that puts the modification time back is seen too.
package ownfile
