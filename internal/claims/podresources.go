package claims

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// Resources tell monitoring agents which devices of claims a container has: as a kubelet's, all of
// the claims that it names, also where it names single requests.
func (m *Manager) Resources(pod *corev1.Pod, c *corev1.Container) []*podresourcesapi.DynamicResource {
	named, err := uses(pod, c)
	if err != nil {
		return nil // the pod waits for its claims
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*podresourcesapi.DynamicResource
	told := map[string]bool{}
	for _, u := range named {
		known := m.claims[pod.Namespace+"/"+u.claim]
		if known == nil || told[u.claim] || !slices.Contains(known.Pods, string(pod.UID)) {
			continue
		}
		told[u.claim] = true
		out = append(out, &podresourcesapi.DynamicResource{ClaimName: known.Name, ClaimNamespace: known.Namespace, ClaimResources: known.resources()})
	}
	return out
}

func (c *claim) resources() []*podresourcesapi.ClaimResource {
	var out []*podresourcesapi.ClaimResource
	for _, driver := range slices.Sorted(maps.Keys(c.Drivers)) {
		for _, d := range c.Drivers[driver] {
			one := &podresourcesapi.ClaimResource{DriverName: driver, PoolName: d.Pool, DeviceName: d.Name, ShareId: d.Share}
			for _, name := range d.CDI {
				one.CdiDevices = append(one.CdiDevices, &podresourcesapi.CDIDevice{Name: name})
			}
			out = append(out, one)
		}
	}
	return out
}
