package policy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Admit returns once the rules for a pod of this node are in the kernel: before that no
// process of it may run. It waits a bounded time and then says what is missing; the pod must
// not start, and the caller tries again. Idempotent.
//
// After a restart of the agent a pod whose rules of before are still in the kernel need not
// wait for the API server.
func (c *Controller) Admit(ctx context.Context, pod *corev1.Pod, ips []netip.Addr) error {
	p := podOf(pod)
	p.Admitted, p.IPs, p.Node = true, ips, c.o.NodeName
	done := make(chan struct{})
	c.mu.Lock()
	guarded := !c.synced && !slices.ContainsFunc(ips, func(a netip.Addr) bool { return !c.before[a] })
	c.admitted[p.UID] = p
	c.pending.pods[p.UID] = c.merged(p.UID)
	if !guarded {
		c.pending.waiters = append(c.pending.waiters, done)
	}
	signal(c.wake)
	c.mu.Unlock()
	if guarded {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(c.o.Patience):
		if err := c.unready(); err != nil {
			return err
		}
		return fmt.Errorf("network policies of pod %s/%s are not in the kernel: %w", pod.Namespace, pod.Name, errSlow)
	}
}

var errSlow = errors.New("programming takes too long")

// Release forgets a pod whose network is gone. Safe without Admit.
func (c *Controller) Release(uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.admitted[uid]
	if p == nil {
		return
	}
	for _, a := range p.IPs {
		delete(c.before, a)
	}
	delete(c.admitted, uid)
	c.pending.pods[uid] = c.merged(uid)
	signal(c.wake)
}

// merged is what is known of a pod; nil when nothing is. A pod of ours has the addresses
// that we gave it, until its network is gone, whatever the API says.
func (c *Controller) merged(uid string) *Pod {
	known, ours := c.api[uid], c.admitted[uid]
	if ours == nil {
		return known
	}
	out := *ours
	if known != nil {
		out.Labels, out.Ports, out.Finished, out.Created = known.Labels, known.Ports, known.Finished, known.Created
	}
	return &out
}

// podSeen takes over a pod of the API; nil is that it is gone, or has ended.
func (c *Controller) podSeen(uid string, p *Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.api[uid] = p; p == nil {
		delete(c.api, uid)
		if ours := c.admitted[uid]; ours != nil {
			ended := *ours
			ended.Finished = true
			c.admitted[uid] = &ended
		}
	}
	c.pending.pods[uid] = c.merged(uid)
	signal(c.wake)
}

func (c *Controller) namespaceSeen(name string, labels map[string]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending.namespaces[name] = labels
	signal(c.wake)
}

func (c *Controller) policySeen(key string, p *Policy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending.policies[key] = p
	signal(c.wake)
}
