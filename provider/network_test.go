package provider

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
)

// TestChangedNetworkIsTold: the pod is told of, and goes on.
func TestChangedNetworkIsTold(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		a.stop()
		w.mu.Lock()
		address := w.networks["uid-a"]
		address.Problem = "network lan: eth0 is away"
		w.networks["uid-a"] = address
		w.mu.Unlock()
		w.boot("")
		w.until("it is told", func() bool {
			return w.said("Warning NetworkChanged The network plugins find the pod's network changed: network lan: eth0 is away")
		})
		if len(w.started()) != 1 || !w.podIs("a", corev1.PodRunning)() {
			t.Errorf("starts %v", w.starts)
		}
	})
}
