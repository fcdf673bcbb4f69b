// Package cadvisor gives the figures of cgroups the names and labels of cAdvisor's metrics,
// as a kubelet serves them at /metrics/cadvisor: dashboards and alerts are written for them.
// It owns names, help and labels, and how a pod's links are counted; what runs, and in which
// cgroup, it is told by a Source.
package cadvisor
