// Package objects holds the API objects that a node may read one at a time:
// ConfigMaps, Secrets, service-account tokens and certificates of the pods that run here, and
// ClusterTrustBundles.
//
// It owns the watches, the token cache and the requests for certificates; it must not know what the objects are for.
package objects
