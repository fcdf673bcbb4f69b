// Package kubeletmetrics counts what a kubelet counts in /metrics, under the same names
// (pkg/kubelet/metrics of Kubernetes 1.35), for dashboards and alerts that ask for them. It
// stands between the provider and what that acts through, and knows neither. There is no pod
// lifecycle event generator here, so no kubelet_pleg_* either: events of systemd wake the pods.
package kubeletmetrics
