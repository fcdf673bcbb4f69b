// Package podstatus computes the status that a pod's API object should have from what
// was observed: phase, conditions and container states as a kubelet writes them. It is
// pure and must not know how the status gets to the API server.
package podstatus
