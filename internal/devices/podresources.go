package devices

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	deviceapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// lister tells monitoring agents who has which devices. Of processors and memory pods of this
// node have none of their own.
type lister struct {
	podresourcesapi.UnimplementedPodResourcesListerServer
	m *Manager
}

// List has every pod that has not ended.
func (l lister) List(context.Context, *podresourcesapi.ListPodResourcesRequest) (*podresourcesapi.ListPodResourcesResponse, error) {
	answer := &podresourcesapi.ListPodResourcesResponse{}
	for _, pod := range l.m.o.Pods() {
		if !ended(pod) {
			answer.PodResources = append(answer.PodResources, l.m.resourcesOf(pod))
		}
	}
	return answer, nil
}

// Get has one pod.
func (l lister) Get(_ context.Context, r *podresourcesapi.GetPodResourcesRequest) (*podresourcesapi.GetPodResourcesResponse, error) {
	for _, pod := range l.m.o.Pods() {
		if pod.Namespace == r.PodNamespace && pod.Name == r.PodName && !ended(pod) {
			return &podresourcesapi.GetPodResourcesResponse{PodResources: l.m.resourcesOf(pod)}, nil
		}
	}
	return nil, status.Error(codes.NotFound, fmt.Sprintf("pod %s in namespace %s not found", r.PodName, r.PodNamespace))
}

// GetAllocatableResources has all healthy devices.
func (l lister) GetAllocatableResources(context.Context, *podresourcesapi.AllocatableResourcesRequest) (*podresourcesapi.AllocatableResourcesResponse, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	answer := &podresourcesapi.AllocatableResourcesResponse{}
	for _, name := range slices.Sorted(maps.Keys(l.m.known)) {
		answer.Devices = append(answer.Devices, l.m.known[name].describe(name, l.m.known[name].healthy())...)
	}
	return answer, nil
}

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func (m *Manager) resourcesOf(pod *corev1.Pod) *podresourcesapi.PodResources {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := &podresourcesapi.PodResources{Name: pod.Name, Namespace: pod.Namespace}
	containers := slices.DeleteFunc(slices.Clone(pod.Spec.InitContainers), func(c corev1.Container) bool {
		return c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways
	})
	for _, c := range append(containers, pod.Spec.Containers...) {
		resources := &podresourcesapi.ContainerResources{Name: c.Name}
		lent := m.lent[string(pod.UID)][c.Name]
		for _, name := range slices.Sorted(maps.Keys(lent)) {
			resources.Devices = append(resources.Devices, m.known[name].describe(name, lent[name].IDs)...)
		}
		if m.o.Claimed != nil {
			resources.DynamicResources = m.o.Claimed(pod, &c)
		}
		out.Containers = append(out.Containers, resources)
	}
	return out
}

// describe has one entry for each place that devices are at.
func (p *pool) describe(resource string, ids []string) []*podresourcesapi.ContainerDevices {
	var out []*podresourcesapi.ContainerDevices
	for _, id := range ids {
		entry := &podresourcesapi.ContainerDevices{ResourceName: resource, DeviceIds: []string{id}}
		if p != nil && p.devices[id] != nil {
			entry.Topology = topology(p.devices[id].Topology)
		}
		out = append(out, entry)
	}
	return out
}

func topology(t *deviceapi.TopologyInfo) *podresourcesapi.TopologyInfo {
	if t == nil {
		return nil
	}
	out := &podresourcesapi.TopologyInfo{}
	for _, node := range t.Nodes {
		out.Nodes = append(out.Nodes, &podresourcesapi.NUMANode{ID: node.ID})
	}
	return out
}
