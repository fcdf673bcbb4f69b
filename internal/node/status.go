package node

import (
	"context"
	"maps"
	"net/netip"
	"runtime"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/internal/pressure"
)

// maxImages bounds status.images, as a kubelet does (nodeStatusMaxImages).
const maxImages = 50

// observe looks at the server and returns the Node as it should be now. before holds the
// conditions whose transition times go on.
func (n *Node) observe(ctx context.Context, before []corev1.NodeCondition) (*corev1.Node, error) {
	capacity, err := Capacity(n.o.Host, n.o.MaxPods)
	if err != nil {
		return nil, err
	}
	addrs, err := n.o.Addresses()
	if err != nil {
		return nil, err
	}
	var hold []corev1.NodeConditionType
	if n.o.Pressure != nil {
		hold = n.o.Pressure()
	}
	conditions := append(pressures(hold), ready(ctx, n.o.Checks))
	if n.o.Conditions != nil {
		conditions = append(conditions, n.o.Conditions()...)
	}
	allocatable := Allocatable(capacity, n.o.Reserved, pressure.Reserve(n.o.Thresholds, capacity))
	if n.o.Devices != nil {
		all, healthy := n.o.Devices()
		maps.Copy(capacity, all)
		maps.Copy(allocatable, healthy)
	}
	keepTransitions(metav1.Now(), before, conditions)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.o.Name, Labels: n.labels(), Annotations: map[string]string{controllerAttaches: "true"}},
		Spec:       corev1.NodeSpec{Taints: n.o.Taints, ProviderID: n.o.ProviderID},
		Status: corev1.NodeStatus{
			Capacity:        capacity,
			Allocatable:     allocatable,
			Conditions:      conditions,
			Addresses:       nodeAddresses(n.o.Name, addrs),
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(n.o.Port)}},
			NodeInfo:        n.o.Host.Info(n.o.SystemdVersion(ctx)),
			Images:          n.images(ctx),
			VolumesInUse:    n.volumesInUse(),
			RuntimeHandlers: n.runtimeHandlers(),
			Features:        &corev1.NodeFeatures{SupplementalGroupsPolicy: new(true)},

			DeclaredFeatures: declaredFeatures,
		},
	}, nil
}

// declaredFeatures are those of KEP-5328 that this node has, sorted: with the gate
// NodeDeclaredFeatures the scheduler and the API server ask for them; without it the API server
// drops them.
var declaredFeatures = []string{"GuaranteedQoSPodCPUResize", "RestartAllContainersOnContainerExits"}

// controllerAttaches has the cluster's controller attach volumes to this node.
const controllerAttaches = "volumes.kubernetes.io/controller-managed-attach-detach"

func (n *Node) volumesInUse() []corev1.UniqueVolumeName {
	if n.o.VolumesInUse == nil {
		return nil
	}
	return n.o.VolumesInUse()
}

// runtimeHandlers are those of pods without a RuntimeClass and of pods with one.
func (n *Node) runtimeHandlers() []corev1.NodeRuntimeHandler {
	var handlers []corev1.NodeRuntimeHandler
	for _, name := range n.o.Handlers {
		handlers = append(handlers, corev1.NodeRuntimeHandler{
			Name:     name,
			Features: &corev1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: new(true), UserNamespaces: new(n.o.UserNamespaces)},
		})
	}
	return handlers
}

func (n *Node) labels() map[string]string {
	labels := maps.Clone(n.o.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for key, value := range map[string]string{
		corev1.LabelHostname:      n.o.Name,
		corev1.LabelOSStable:      runtime.GOOS,
		corev1.LabelArchStable:    runtime.GOARCH,
		"beta.kubernetes.io/os":   runtime.GOOS,
		"beta.kubernetes.io/arch": runtime.GOARCH,
	} {
		if _, set := labels[key]; !set {
			labels[key] = value
		}
	}
	return labels
}

// images lists the largest images, so that the scheduler can favour nodes that have them.
func (n *Node) images(ctx context.Context) []corev1.ContainerImage {
	if n.o.Images == nil {
		return nil
	}
	list, err := n.o.Images(ctx)
	if err != nil {
		n.o.Log.Warn("cannot list images for the node status", "err", err)
		return nil
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b corev1.ContainerImage) int {
		switch {
		case a.SizeBytes > b.SizeBytes:
			return -1
		case a.SizeBytes < b.SizeBytes:
			return 1
		}
		return slices.Compare(a.Names, b.Names)
	})
	return list[:min(len(list), maxImages)]
}

func nodeAddresses(name string, addrs []netip.Addr) []corev1.NodeAddress {
	var list []corev1.NodeAddress
	for _, addr := range addrs {
		list = append(list, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: addr.String()})
	}
	return append(list, corev1.NodeAddress{Type: corev1.NodeHostName, Address: name})
}
