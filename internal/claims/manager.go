package claims

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"github.com/vk-metal/vk-metal/internal/keylock"
	"github.com/vk-metal/vk-metal/internal/paths"
)

// Options of a Manager; Layout, NodeName and Client are required.
type Options struct {
	Layout   paths.Layout
	NodeName string
	Client   kubernetes.Interface
	// SweepAfter is how long a driver may be away before its ResourceSlices of this node are
	// deleted; 30 seconds, as a kubelet's, when 0.
	SweepAfter time.Duration
	Log        *slog.Logger
}

// Manager has the claims of the node's pods. It is safe for concurrent use.
type Manager struct {
	o     Options
	log   *slog.Logger
	locks keylock.Mutex // by claim
	sweep chan struct{}

	mu      sync.Mutex
	drivers map[string][]*plugin // the last that has come is asked
	claims  map[string]*claim    // by namespace and name
}

// claim is what is known of a ResourceClaim that pods of this node use.
type claim struct {
	UID       string `json:"uid"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Pods are the UIDs of those that it was, or is to be, made ready for.
	Pods []string `json:"pods"`
	// Drivers have the claim's devices.
	Drivers map[string][]device `json:"drivers"`
	// ready is not kept: after a restart drivers are asked again, for what they made may be gone
	// with a reboot.
	ready bool
}

// device is one that a driver has made ready.
type device struct {
	Requests []string `json:"requests,omitempty"`
	CDI      []string `json:"cdi,omitempty"`
	// Pool, Name and Share say which it is, for who asks; empty when an agent noted it that did not.
	Pool  string  `json:"pool,omitempty"`
	Name  string  `json:"name,omitempty"`
	Share *string `json:"share,omitempty"`
}

func (c *claim) key() string { return c.Namespace + "/" + c.Name }

// New makes a Manager and takes up what it was before.
func New(o Options) (*Manager, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.SweepAfter == 0 {
		o.SweepAfter = 30 * time.Second
	}
	m := &Manager{o: o, log: o.Log, sweep: make(chan struct{}, 1), drivers: map[string][]*plugin{}}
	var err error
	if m.claims, err = readCheckpoint(m.checkpointPath()); err != nil {
		return nil, fmt.Errorf("take up resource claims: %w", err)
	}
	return m, nil
}

func (m *Manager) checkpointPath() string { return filepath.Join(m.o.Layout.Lib, "claims.json") }

// Wants says whether a pod has claims.
func Wants(pod *corev1.Pod) bool {
	return len(pod.Spec.ResourceClaims) > 0 || pod.Status.ExtendedResourceClaimStatus != nil
}

// Pods are the UIDs of the pods that claims are held for, each with its namespace.
func (m *Manager) Pods() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]string{}
	for _, c := range m.claims {
		for _, uid := range c.Pods {
			out[uid] = c.Namespace
		}
	}
	return out
}

// use is a claim, by name, that a container names, and which of its requests, "" for all.
type use struct{ claim, request string }

// uses are those of a container.
func uses(pod *corev1.Pod, c *corev1.Container) ([]use, error) {
	var out []use
	for _, wanted := range c.Resources.Claims {
		i := slices.IndexFunc(pod.Spec.ResourceClaims, func(p corev1.PodResourceClaim) bool { return p.Name == wanted.Name })
		if i < 0 {
			return nil, fmt.Errorf("container %s names the claim %q, which the pod has not", c.Name, wanted.Name)
		}
		name, _, err := resourceclaim.Name(pod, &pod.Spec.ResourceClaims[i])
		if err != nil {
			return nil, err
		}
		if name != nil { // or else its template made none
			out = append(out, use{*name, wanted.Request})
		}
	}
	if extended := pod.Status.ExtendedResourceClaimStatus; extended != nil {
		for _, mapping := range extended.RequestMappings {
			if mapping.ContainerName == c.Name {
				out = append(out, use{extended.ResourceClaimName, mapping.RequestName})
			}
		}
	}
	return out, nil
}

// Devices are the names of the CDI devices that a container of a prepared pod has.
func (m *Manager) Devices(pod *corev1.Pod, c *corev1.Container) ([]string, error) {
	wanted, err := uses(pod, c)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, u := range wanted {
		known := m.claims[pod.Namespace+"/"+u.claim]
		if known == nil || !known.ready {
			return nil, fmt.Errorf("ResourceClaim %s is not prepared", u.claim)
		}
		names = append(names, known.devices(u.request)...)
	}
	return names, nil
}

// devices are those of one request, or of all.
func (c *claim) devices(request string) []string {
	var names []string
	for _, driver := range slices.Sorted(maps.Keys(c.Drivers)) {
		for _, d := range c.Drivers[driver] {
			if request == "" || len(d.Requests) == 0 || slices.Contains(d.Requests, request) {
				names = append(names, d.CDI...)
			}
		}
	}
	return names
}

// lock has the claims to itself, in one order for all.
func (m *Manager) lock(ctx context.Context, keys []string) (unlock func(), err error) {
	var held []func()
	unlock = func() {
		for _, f := range slices.Backward(held) {
			f()
		}
	}
	for _, key := range slices.Compact(slices.Sorted(slices.Values(keys))) {
		f, err := m.locks.LockContext(ctx, key)
		if err != nil {
			unlock()
			return nil, fmt.Errorf("wait for ResourceClaim %s: %w", key, err)
		}
		held = append(held, f)
	}
	return unlock, nil
}
