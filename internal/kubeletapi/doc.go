// Package kubeletapi serves the node's API on :10250 as a kubelet does: logs, exec,
// attach, port-forward, pods, statistics, metrics. Every request is authenticated (client
// certificate of the cluster's CA, or a token by TokenReview) and authorized by
// SubjectAccessReview. It knows HTTP and streams; it must not know how pods run.
package kubeletapi
