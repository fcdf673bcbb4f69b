package devices

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	deviceapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// need is what one container asks of one resource.
type need struct {
	container, resource string
	count               int
	// reusable says that later containers may have the devices: it is an init container that
	// will have ended.
	reusable bool
}

// needs lists what the pod asks of resources of plugins, init containers first.
func (m *Manager) needs(pod *corev1.Pod) []need {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []need
	add := func(c *corev1.Container, reusable bool) {
		for _, name := range slices.Sorted(maps.Keys(c.Resources.Limits)) {
			quantity := c.Resources.Limits[name]
			if m.known[string(name)] != nil && !quantity.IsZero() {
				list = append(list, need{c.Name, string(name), int(quantity.Value()), reusable})
			}
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		add(c, c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways)
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i], false)
	}
	return list
}

// Wants says whether the pod asks for devices at all.
func (m *Manager) Wants(pod *corev1.Pod) bool { return len(m.needs(pod)) > 0 }

// Allocate lends the pod the devices that its containers ask for; idempotent. ErrNotYet says
// that it is too early to tell; other errors are for good, in a kubelet's words.
func (m *Manager) Allocate(ctx context.Context, pod *corev1.Pod) error {
	uid := string(pod.UID)
	free := map[string][]string{} // of init containers, by resource
	for _, n := range m.needs(pod) {
		l, err := m.allocate(ctx, uid, n, free[n.resource])
		if err != nil {
			return err
		}
		if n.reusable {
			free[n.resource] = union(free[n.resource], l.IDs)
		} else {
			free[n.resource] = without(free[n.resource], l.IDs)
		}
	}
	return nil
}

// allocate lends one container its devices of one resource, those of ended containers first.
func (m *Manager) allocate(ctx context.Context, uid string, n need, reuse []string) (*loan, error) {
	p, ids, have, err := m.choose(ctx, uid, n, reuse)
	if err != nil || have != nil {
		return have, err
	}
	answer, err := p.client.Allocate(ctx, &deviceapi.AllocateRequest{ContainerRequests: []*deviceapi.ContainerAllocateRequest{{DevicesIds: ids}}})
	if err == nil && len(answer.GetContainerResponses()) == 0 {
		err = errors.New("no containers return in allocation response")
	}
	if err != nil {
		m.giveUp(uid, n)
		return nil, fmt.Errorf("allocate %s: %w", n.resource, err)
	}
	l := &loan{IDs: ids, Answer: answer.ContainerResponses[0]}
	return l, m.lend(uid, n, l)
}

// choose picks devices and marks them as lent, so that nobody else gets them meanwhile. have
// is what the container already has.
func (m *Manager) choose(ctx context.Context, uid string, n need, reuse []string) (p *plugin, ids []string, have *loan, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.lent[uid][n.container][n.resource]; l != nil && l.Answer != nil {
		if len(l.IDs) != n.count {
			return nil, nil, nil, fmt.Errorf("pod %q container %q changed request for resource %q from %d to %d", uid, n.container, n.resource, len(l.IDs), n.count)
		}
		return nil, nil, l, nil
	}
	p, pool := m.plugins[n.resource], m.known[n.resource]
	switch {
	case (p == nil || !pool.gone.IsZero()) && time.Since(m.begun) < registerPatience:
		return nil, nil, nil, fmt.Errorf("%s: %w", n.resource, ErrNotYet)
	case p == nil:
		return nil, nil, nil, fmt.Errorf("cannot allocate unregistered device %s", n.resource)
	case len(pool.healthy()) == 0:
		return nil, nil, nil, fmt.Errorf("no healthy devices present; cannot allocate unhealthy devices %s", n.resource)
	}
	available := union(intersection(reuse, pool.healthy()), without(pool.healthy(), m.taken(n.resource)))
	if len(available) < n.count {
		return nil, nil, nil, fmt.Errorf("requested number of devices unavailable for %s. Requested: %d, Available: %d", n.resource, n.count, len(available))
	}
	must := intersection(reuse, available)
	must = must[:min(len(must), n.count)]
	ids = p.prefer(ctx, available, must, n.count)
	return p, ids, nil, m.save(m.lent.with(uid, n, &loan{IDs: ids}))
}

// preferTimeout bounds what a plugin may think about which devices go well together: others wait.
const preferTimeout = 5 * time.Second

// prefer asks the plugin which of the available devices it would have; any will do.
func (p *plugin) prefer(ctx context.Context, available, must []string, count int) []string {
	any := union(must, available)[:count]
	if !p.options.GetGetPreferredAllocationAvailable() {
		return any
	}
	ctx, cancel := context.WithTimeout(ctx, preferTimeout)
	defer cancel()
	answer, err := p.client.GetPreferredAllocation(ctx, &deviceapi.PreferredAllocationRequest{ContainerRequests: []*deviceapi.ContainerPreferredAllocationRequest{
		{AvailableDeviceIDs: available, MustIncludeDeviceIDs: must, AllocationSize: int32(count)},
	}})
	if err != nil || len(answer.GetContainerResponses()) == 0 {
		return any
	}
	wanted := intersection(answer.ContainerResponses[0].DeviceIDs, available)
	return union(union(must, wanted), available)[:count]
}

// taken are the devices of the resource that pods have. The lock is held.
func (m *Manager) taken(resource string) []string {
	var ids []string
	for _, containers := range m.lent {
		for _, resources := range containers {
			if l := resources[resource]; l != nil {
				ids = append(ids, l.IDs...)
			}
		}
	}
	return ids
}

func (m *Manager) lend(uid string, n need, l *loan) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.save(m.lent.with(uid, n, l)); err != nil {
		return fmt.Errorf("write down lent devices: %w", err)
	}
	return nil
}

// giveUp takes back what was chosen and not allocated.
func (m *Manager) giveUp(uid string, n need) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.save(m.lent.with(uid, n, nil)); err != nil {
		m.log.Error("cannot take back devices", "uid", uid, "container", n.container, "err", err)
	}
}

// with is a copy in which the container has l of its resource.
func (l loans) with(uid string, n need, entry *loan) loans {
	all := maps.Clone(l)
	containers := maps.Clone(all[uid])
	if containers == nil {
		containers = map[string]map[string]*loan{}
	}
	resources := maps.Clone(containers[n.container])
	if resources == nil {
		resources = map[string]*loan{}
	}
	resources[n.resource] = entry
	if entry == nil {
		delete(resources, n.resource)
	}
	containers[n.container] = resources
	all[uid] = containers
	return all
}

// union keeps the order: a's, then those of b that a lacks.
func union(a, b []string) []string { return append(slices.Clone(a), without(b, a)...) }

func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(id string) bool { return slices.Contains(b, id) })
}

func intersection(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(id string) bool { return !slices.Contains(b, id) })
}
