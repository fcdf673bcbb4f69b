// Package endpoints knows what the cluster's EndpointSlices say of this node's pods. It
// owns the watches for that and must not know what is done with the answer.
package endpoints
