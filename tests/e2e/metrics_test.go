package e2e

import (
	"fmt"
	"regexp"

	corev1 "k8s.io/api/core/v1"
)

// checkMetrics: a dashboard that was made for a kubelet finds the pod, its container "main" and the node.
func checkMetrics(e *env, pod *corev1.Pod) {
	e.Helper()
	node := pod.Spec.NodeName
	for path, wants := range map[string][]string{
		"metrics/cadvisor": {
			fmt.Sprintf(`container_cpu_usage_seconds_total\{container="main",cpu="total",id="/kubepods\.slice/[^"]+\.service",image="[^"]+",name="%s/main/0",namespace="%s",pod="%s"\} `,
				pod.UID, pod.Namespace, pod.Name),
			fmt.Sprintf(`container_memory_working_set_bytes\{container="main",id="[^"]+",image="[^"]+",name="[^"]+",namespace="%s",pod="%s"\} [1-9]`, pod.Namespace, pod.Name),
			fmt.Sprintf(`container_network_receive_bytes_total\{container="",id="/kubepods\.slice/[^"]+\.slice",image="",interface="eth0",name="",namespace="%s",pod="%s"\} `, pod.Namespace, pod.Name),
			`container_cpu_usage_seconds_total\{container="",cpu="total",id="/",image="",name="",namespace="",pod=""\} [1-9]`,
			`machine_memory_bytes\{.*\} [1-9]`, `container_scrape_error 0`,
		},
		"metrics": {
			fmt.Sprintf(`kubelet_node_name\{node="%s"\} 1`, node), `kubelet_running_pods [1-9]`, `kubelet_running_containers\{container_state="running"\} [1-9]`,
			`kubelet_started_pods_total [1-9]`, `kubelet_started_containers_total\{container_type="container"\} [1-9]`,
			`kubelet_runtime_operations_total\{operation_type="start_container"\} [1-9]`, `kubelet_cgroup_manager_duration_seconds_count\{operation_type="create"\} [1-9]`,
			`kubelet_certificate_manager_client_ttl_seconds [1-9]`, `kubelet_http_requests_total\{.*path="metrics".*\} [1-9]`,
		},
	} {
		data, err := e.c.Client.CoreV1().RESTClient().Get().Resource("nodes").Name(node).SubResource("proxy").Suffix(path).DoRaw(e.Context())
		if err != nil {
			e.Fatalf("%s: %v", path, err)
		}
		for _, want := range wants {
			if !regexp.MustCompile(`(?m)^` + want).Match(data) {
				e.Errorf("/%s has no %s", path, want)
			}
		}
	}
}
