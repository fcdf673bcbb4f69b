// Package objects holds the API objects that a node may read one at a time:
// ConfigMaps, Secrets and service-account tokens of the pods that run here.
//
// It owns the watches and the token cache; it must not know what the objects are for.
package objects
