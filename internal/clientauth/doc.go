// Package clientauth reads what a client of another server shows there: a secret from a file, and the certificates of TLS.
// Files are bounded, and errors name the file and never what is in it.
package clientauth
