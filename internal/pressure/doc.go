// Package pressure decides when a server is short of a resource, which pods go first for it
// and what is said of that, as a kubelet does (pkg/kubelet/eviction, Kubernetes 1.35). It is
// pure: it is given figures and a time, and answers with values. It must not know where
// figures come from nor how a pod is ended.
package pressure
