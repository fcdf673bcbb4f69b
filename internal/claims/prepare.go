package claims

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	drav1 "k8s.io/kubelet/pkg/apis/dra/v1"
)

// Prepare has the devices of all claims of a pod made ready by their drivers. It is idempotent.
// Nothing is noted of a pod that cannot have them, so that it can go without their drivers.
func (m *Manager) Prepare(ctx context.Context, pod *corev1.Pod) error {
	wanted, err := m.wanted(ctx, pod)
	if err != nil {
		return err
	}
	keys := make([]string, 0, len(wanted))
	for _, c := range wanted {
		keys = append(keys, c.key())
	}
	unlock, err := m.lock(ctx, keys)
	if err != nil {
		return err
	}
	defer unlock()
	batches, err := m.note(string(pod.UID), wanted)
	if err != nil {
		return err
	}
	for _, driver := range slices.Sorted(maps.Keys(batches)) {
		if err := m.prepareBy(ctx, driver, batches[driver]); err != nil {
			return err
		}
	}
	return m.finish(batches)
}

// wanted are the claims of a pod, as the API has them now. Each is allocated, for this pod,
// and its drivers are here.
func (m *Manager) wanted(ctx context.Context, pod *corev1.Pod) ([]*claim, error) {
	list := slices.Clone(pod.Spec.ResourceClaims)
	if extended := pod.Status.ExtendedResourceClaimStatus; extended != nil {
		list = append(list, corev1.PodResourceClaim{ResourceClaimName: &extended.ResourceClaimName})
	}
	var out []*claim
	for i := range list {
		name, owned, err := resourceclaim.Name(pod, &list[i])
		if err != nil {
			return nil, err
		}
		if name == nil {
			continue // its template made none
		}
		object, err := m.o.Client.ResourceV1().ResourceClaims(pod.Namespace).Get(ctx, *name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("fetch ResourceClaim %s: %w", *name, err)
		}
		if owned {
			if err := resourceclaim.IsForPod(pod, object); err != nil {
				return nil, err
			}
		}
		c, err := m.usable(pod, object)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func (m *Manager) usable(pod *corev1.Pod, object *resourceapi.ResourceClaim) (*claim, error) {
	if !resourceclaim.IsReservedForPod(pod, object) {
		return nil, fmt.Errorf("pod %s (%s) is not allowed to use ResourceClaim %s (%s)", pod.Name, pod.UID, object.Name, object.UID)
	}
	if object.Status.Allocation == nil {
		return nil, fmt.Errorf("ResourceClaim %s: not allocated", object.Name)
	}
	c := &claim{UID: string(object.UID), Namespace: object.Namespace, Name: object.Name, Drivers: map[string][]device{}}
	for _, result := range object.Status.Allocation.Devices.Results {
		c.Drivers[result.Driver] = nil
		if _, err := m.driver(result.Driver); err != nil {
			return nil, fmt.Errorf("ResourceClaim %s: %w", object.Name, err)
		}
	}
	return c, nil
}

// note keeps that the pod uses the claims, and returns those that are not ready, by driver.
func (m *Manager) note(podUID string, wanted []*claim) (map[string][]*claim, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	batches := map[string][]*claim{}
	for _, c := range wanted {
		if known := m.claims[c.key()]; known != nil && known.UID != c.UID {
			return nil, fmt.Errorf("old ResourceClaim with same name %s and different UID %s still exists (previous pod force-deleted?!)", c.Name, known.UID)
		}
	}
	for _, c := range wanted {
		known := m.claims[c.key()]
		if known == nil {
			known = c
			m.claims[c.key()] = c
		}
		if !slices.Contains(known.Pods, podUID) {
			known.Pods = append(known.Pods, podUID)
		}
		if known.ready {
			continue
		}
		for driver := range known.Drivers {
			batches[driver] = append(batches[driver], known)
		}
	}
	return batches, m.save()
}

// prepareBy has one driver make its devices of the claims ready.
func (m *Manager) prepareBy(ctx context.Context, driver string, list []*claim) error {
	p, err := m.driver(driver)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := p.client.NodePrepareResources(ctx, &drav1.NodePrepareResourcesRequest{Claims: asked(list)})
	if err != nil {
		return fmt.Errorf("NodePrepareResources: %w", err)
	}
	for _, c := range list {
		result, ok := answer.Claims[c.UID]
		switch {
		case !ok:
			return fmt.Errorf("NodePrepareResources skipped ResourceClaim %s", c.Name)
		case result.GetError() != "":
			return fmt.Errorf("NodePrepareResources failed for ResourceClaim %s: %s", c.Name, result.Error)
		}
		var made []device
		for _, d := range result.GetDevices() {
			made = append(made, device{Requests: d.RequestNames, CDI: d.CdiDeviceIds, Pool: d.PoolName, Name: d.DeviceName, Share: d.ShareId})
		}
		m.mu.Lock()
		c.Drivers[driver] = made
		m.mu.Unlock()
	}
	return nil
}

func asked(list []*claim) []*drav1.Claim {
	var out []*drav1.Claim
	for _, c := range list {
		out = append(out, &drav1.Claim{Namespace: c.Namespace, Uid: c.UID, Name: c.Name})
	}
	return out
}

// finish marks the claims of all batches ready.
func (m *Manager) finish(batches map[string][]*claim) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, list := range batches {
		for _, c := range list {
			c.ready = true
		}
	}
	if len(batches) == 0 {
		return nil
	}
	return m.save()
}

// Release takes back what was made ready for a pod and nobody else uses. It is idempotent, and
// fails while a driver is away that has to be asked.
func (m *Manager) Release(ctx context.Context, podUID string) error {
	m.mu.Lock()
	var keys []string
	for key, c := range m.claims {
		if slices.Contains(c.Pods, podUID) {
			keys = append(keys, key)
		}
	}
	m.mu.Unlock()
	slices.Sort(keys)
	var errs []error
	for _, key := range keys {
		errs = append(errs, m.releaseClaim(ctx, key, podUID))
	}
	return errors.Join(errs...)
}

func (m *Manager) releaseClaim(ctx context.Context, key, podUID string) error {
	unlock, err := m.lock(ctx, []string{key})
	if err != nil {
		return err
	}
	defer unlock()
	m.mu.Lock()
	c := m.claims[key]
	if c == nil || !slices.Contains(c.Pods, podUID) {
		m.mu.Unlock()
		return nil
	}
	if len(c.Pods) > 1 {
		defer m.mu.Unlock()
		c.Pods = slices.DeleteFunc(c.Pods, func(uid string) bool { return uid == podUID })
		return m.save()
	}
	c.ready = false // whoever comes now has it made ready again
	drivers := slices.Sorted(maps.Keys(c.Drivers))
	m.mu.Unlock()
	for _, driver := range drivers {
		if err := m.unprepareBy(ctx, driver, c); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.claims, key)
	return m.save()
}

func (m *Manager) unprepareBy(ctx context.Context, driver string, c *claim) error {
	p, err := m.driver(driver)
	if err != nil {
		return fmt.Errorf("unprepare ResourceClaim %s: %w", c.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := p.client.NodeUnprepareResources(ctx, &drav1.NodeUnprepareResourcesRequest{Claims: asked([]*claim{c})})
	if err != nil {
		return fmt.Errorf("NodeUnprepareResources: %w", err)
	}
	result, ok := answer.Claims[c.UID]
	switch {
	case !ok:
		return fmt.Errorf("NodeUnprepareResources skipped ResourceClaim %s", c.Name)
	case result.GetError() != "":
		return fmt.Errorf("NodeUnprepareResources failed for ResourceClaim %s: %s", c.Name, result.Error)
	}
	return nil
}
