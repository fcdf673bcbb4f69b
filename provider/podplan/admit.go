package podplan

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Place is what a pod is admitted to: the node, and the pods that it has admitted before.
type Place struct {
	// Node has labels and taints; nil while it is not known, then they are not compared.
	Node *corev1.Node
	// Allocatable is nil while it is not known, then nothing is counted.
	Allocatable corev1.ResourceList
	// Others are the admitted pods, with the resources that they were given.
	Others []*corev1.Pod
}

// Admit says why a node does not take a pod that was bound to it, in a kubelet's order and
// words (pkg/kubelet/lifecycle/predicate.go); nil if it does. Pods are bound by whom the
// scheduler does not know of, and two schedulers may fill one place.
func Admit(pod *corev1.Pod, place Place) *Refusal {
	if short := place.short(pod); short != nil {
		return &Refusal{Field: "spec.containers", Admission: "OutOf" + string(short.name), Reason: short.String()}
	}
	if place.Node != nil {
		fits, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(place.Node)
		if err != nil || !fits {
			return predicate("spec.affinity.nodeAffinity", "NodeAffinity")
		}
	}
	if place.portTaken(pod) {
		return predicate("spec.containers", "NodePorts")
	}
	if place.Node != nil && evictedByTaint(pod, place.Node.Spec.Taints) {
		return predicate("spec.tolerations", "TaintToleration")
	}
	return nil
}

func predicate(field, name string) *Refusal {
	return &Refusal{Field: field, Admission: name, Reason: fmt.Sprintf("Predicate %s failed", name)}
}

// shortage is one resource of which there is not enough.
type shortage struct {
	name                      corev1.ResourceName
	requested, used, capacity int64
}

func (s shortage) String() string {
	return fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.name, s.requested, s.used, s.capacity)
}

// short finds the first resource that the pod asks for and the others leave too little of.
// Resources that the node does not have are somebody else's affair, as for a kubelet.
func (p Place) short(pod *corev1.Pod) *shortage {
	if p.Allocatable == nil {
		return nil
	}
	if pods, ok := p.Allocatable[corev1.ResourcePods]; ok && int64(len(p.Others))+1 > pods.Value() {
		return &shortage{corev1.ResourcePods, 1, int64(len(p.Others)), pods.Value()}
	}
	requests := requestsOf(pod)
	for _, name := range inOrder(requests) {
		capacity, known := p.Allocatable[name]
		wanted := figure(name, requests[name])
		if !known || wanted == 0 {
			continue
		}
		used := int64(0)
		for _, other := range p.Others {
			used += figure(name, requestsOf(other)[name])
		}
		if wanted > figure(name, capacity)-used {
			return &shortage{name, wanted, used, figure(name, capacity)}
		}
	}
	return nil
}

func requestsOf(pod *corev1.Pod) corev1.ResourceList {
	return resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
}

// inOrder lists CPU, memory and storage first, as the scheduler's filter does.
func inOrder(list corev1.ResourceList) []corev1.ResourceName {
	first := []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}
	var rest []corev1.ResourceName
	for name := range list {
		if !slices.Contains(first, name) {
			rest = append(rest, name)
		}
	}
	slices.Sort(rest)
	return append(first, rest...)
}

// figure is a quantity in the unit that it is counted in.
func figure(name corev1.ResourceName, q resource.Quantity) int64 {
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// portTaken says whether another pod holds one of the pod's ports of the host.
func (p Place) portTaken(pod *corev1.Pod) bool {
	wanted := hostPorts(pod)
	for _, other := range p.Others {
		for _, held := range hostPorts(other) {
			if slices.ContainsFunc(wanted, func(w hostPort) bool { return w.collides(held) }) {
				return true
			}
		}
	}
	return false
}

type hostPort struct {
	ip, protocol string
	port         int32
}

func (h hostPort) collides(o hostPort) bool {
	return h.port == o.port && h.protocol == o.protocol && (h.ip == o.ip || h.ip == "" || o.ip == "")
}

func hostPorts(pod *corev1.Pod) []hostPort {
	var ports []hostPort
	for _, c := range Containers(pod) {
		if c.Role != RoleMain && c.Role != RoleSidecar {
			continue
		}
		for _, p := range c.Ports {
			if p.HostPort == 0 {
				continue
			}
			port := hostPort{p.HostIP, string(p.Protocol), p.HostPort}
			if port.ip == "0.0.0.0" || port.ip == "::" {
				port.ip = ""
			}
			if port.protocol == "" {
				port.protocol = string(corev1.ProtocolTCP)
			}
			ports = append(ports, port)
		}
	}
	return ports
}

// evictedByTaint says whether the pod would be evicted at once.
func evictedByTaint(pod *corev1.Pod, taints []corev1.Taint) bool {
	for _, taint := range taints {
		tolerated := slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool { return tolerates(t, taint) })
		if taint.Effect == corev1.TaintEffectNoExecute && !tolerated {
			return true
		}
	}
	return false
}

// tolerates knows Exists and Equal; the numeric operators are an alpha feature.
func tolerates(t corev1.Toleration, taint corev1.Taint) bool {
	switch {
	case t.Effect != "" && t.Effect != taint.Effect, t.Key != "" && t.Key != taint.Key:
		return false
	case t.Operator == corev1.TolerationOpExists:
		return true
	}
	return (t.Operator == "" || t.Operator == corev1.TolerationOpEqual) && t.Value == taint.Value
}
