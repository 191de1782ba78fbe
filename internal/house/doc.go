// Package house holds the tests that keep the structure of the project true: which package may import which, that every
// package says what it is for, and that the documents agree with the code.
package house
