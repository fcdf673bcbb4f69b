package policy

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

// bigCluster is pods and policies in 20 namespaces; each policy selects the pods of one app
// and lets two other apps and a range in.
func bigCluster(b *testing.B, pods, policies int, everyNth int) *engine {
	b.Helper()
	e := newEngine(testNode)
	const namespaces, apps = 20, 10
	for i := range namespaces {
		e.setNamespace(fmt.Sprint("ns", i), map[string]string{"name": fmt.Sprint(i)})
	}
	for i := range policies {
		p := parseBenchPolicy(b, i, namespaces, apps)
		e.setPolicy(p.Key, p)
	}
	for i := range pods {
		p := bigPod(i, namespaces, apps)
		if i%everyNth == 0 {
			p.Node = testNode
		}
		e.setPod(p.UID, p)
	}
	return e
}

func bigPod(i, namespaces, apps int) *Pod {
	return &Pod{
		UID: fmt.Sprint("pod", i), Namespace: fmt.Sprint("ns", i%namespaces), Node: "node-b", Labels: map[string]string{"app": fmt.Sprint(i / namespaces % apps)},
		IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)})},
	}
}

func parseBenchPolicy(b *testing.B, i, namespaces, apps int) *Policy {
	b.Helper()
	app := i / namespaces % apps
	text := fmt.Sprintf(`
metadata: {name: p%d, namespace: ns%d}
spec:
  podSelector: {matchLabels: {app: "%d"}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: "%d"}}}, {namespaceSelector: {matchLabels: {name: "%d"}}, podSelector: {matchLabels: {app: "%d"}}}]
    ports: [{port: 80}, {port: 443}]
  - from: [{ipBlock: {cidr: 192.0.2.0/24}}]`, i, i%namespaces, app, (app+1)%apps, (i+1)%namespaces, (app+2)%apps)
	p, err := compile(parsePolicies(b, text)[0])
	testnet.Must(b, err)
	return p
}

func benchTable(b *testing.B) *table {
	b.Helper()
	testnet.RequireRoot(b)
	path := b.TempDir() + "/ns"
	testnet.Must(b, linuxns.Create(path))
	b.Cleanup(func() { _ = linuxns.Remove(path) })
	ns, err := linuxns.Open(path)
	testnet.Must(b, err)
	b.Cleanup(func() { _ = ns.Close() })
	tb := newTable(ns.FD(), testnet.LinkGroup)
	b.Cleanup(tb.close)
	return tb
}

// BenchmarkLoad computes and programs a whole cluster of 1,000 pods and 500 policies; all of
// the pods, or a tenth of them, are on this node.
func BenchmarkLoad(b *testing.B) {
	for _, nth := range []int{1, 10} {
		b.Run(fmt.Sprintf("local=%d", 1000/nth), func(b *testing.B) {
			tb := benchTable(b)
			for b.Loop() {
				e := bigCluster(b, 1000, 500, nth)
				e.take()
				testnet.Must(b, tb.replace(e.content))
			}
		})
	}
}

// BenchmarkChange is one change at that size: another node's pod comes and goes (two
// changes), one of this node's, a policy's port changes.
func BenchmarkChange(b *testing.B) {
	for _, c := range []struct {
		name   string
		change func(b *testing.B, e *engine, i int)
	}{
		{"remotePod", func(_ *testing.B, e *engine, i int) {
			p := bigPod(5000, 20, 10)
			if i%2 == 1 {
				p = nil
			}
			e.setPod("pod5000", p)
		}},
		{"localPod", func(_ *testing.B, e *engine, i int) {
			p := bigPod(5000, 20, 10)
			if p.Node = testNode; i%2 == 1 {
				p = nil
			}
			e.setPod("pod5000", p)
		}},
		{"policy", func(b *testing.B, e *engine, i int) {
			p := parseBenchPolicy(b, 0, 20, 10)
			if i%2 == 0 {
				p.rules[Ingress] = p.rules[Ingress][:1]
			}
			e.setPolicy(p.Key, p)
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			tb := benchTable(b)
			e := bigCluster(b, 1000, 500, 10)
			e.take()
			testnet.Must(b, tb.replace(e.content))
			for i := 0; b.Loop(); i++ {
				c.change(b, e, i)
				d := e.take()
				if d.empty() {
					b.Fatal("nothing changed")
				}
				testnet.Must(b, tb.change(d))
			}
		})
	}
}

// watchedPod is a pod of ordinary size: two containers with probes, resources, mounts and
// environment, and a status with both.
func watchedPod() *corev1.Pod {
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}}, PeriodSeconds: 10, TimeoutSeconds: 1, FailureThreshold: 3, SuccessThreshold: 1}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: "web-5d4f8c7b9d-x2x7k", GenerateName: "web-5d4f8c7b9d-", Namespace: "production", UID: types.UID("6d5a3a1e-7d5b-4b52-9d5f-0a4b2c8d9e10"), ResourceVersion: "123456789",
		Labels:          map[string]string{"app.kubernetes.io/name": "web", "app.kubernetes.io/instance": "web-production", "pod-template-hash": "5d4f8c7b9d"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-5d4f8c7b9d", UID: "0b9b5a8e-5a1c-4b9e-8a5e-3b1d2c4f5a6b"}},
		ManagedFields: []metav1.ManagedFieldsEntry{
			{Manager: "kube-controller-manager", Operation: "Update", APIVersion: "v1", FieldsV1: &metav1.FieldsV1{Raw: make([]byte, 1400)}},
			{Manager: "kubelet", Operation: "Update", APIVersion: "v1", Subresource: "status", FieldsV1: &metav1.FieldsV1{Raw: make([]byte, 900)}},
		},
	}}
	for _, name := range []string{"web", "proxy"} {
		c := corev1.Container{
			Name: name, Image: "registry.example.com/team/" + name + "@sha256:0000000000000000000000000000000000000000000000000000000000000000",
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}, LivenessProbe: probe, ReadinessProbe: probe,
			Resources:    corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}, Limits: corev1.ResourceList{"memory": resource.MustParse("256Mi")}},
			VolumeMounts: []corev1.VolumeMount{{Name: "config", MountPath: "/etc/" + name}, {Name: "kube-api-access-x2x7k", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}},
		}
		for i := range 10 {
			c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_%d", i), Value: "some value of ordinary length"})
		}
		pod.Spec.Containers = append(pod.Spec.Containers, c)
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: name, Ready: true, Image: c.Image, ImageID: c.Image, ContainerID: "systemd://0000000000000000000000000000000000000000000000000000000000000000",
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
		})
	}
	for _, kind := range []corev1.PodConditionType{"PodReadyToStartContainers", corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
	}
	pod.Status.PodIPs = []corev1.PodIP{{IP: "10.244.17.123"}}
	return pod
}

// BenchmarkWatchedBytes prints what one pod's change costs: bytes that the API server sends
// to each node that watches, and to 5,000 of them; and what a node keeps of it.
func BenchmarkWatchedBytes(b *testing.B) {
	pod := watchedPod()
	full, err := pod.Marshal()
	testnet.Must(b, err)
	stripped, err := stripPod(pod)
	testnet.Must(b, err)
	kept, err := stripped.(*corev1.Pod).Marshal()
	testnet.Must(b, err)
	for b.Loop() {
	}
	b.ReportMetric(float64(len(full)), "B/event/node")
	b.ReportMetric(float64(len(full))*5000/1e6, "MB/event/5000nodes")
	b.ReportMetric(float64(len(kept)), "B/kept")
	b.ReportMetric(0, "ns/op")
}
