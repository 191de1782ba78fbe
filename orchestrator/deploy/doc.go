// Package deploy holds the vocabulary of Deploys and the pure machine that moves an App from one Spec to another.
package deploy
