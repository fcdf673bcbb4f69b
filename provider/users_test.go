package provider

import (
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
)

func ownUsers(p *corev1.Pod) { no := false; p.Spec.HostUsers = &no }

// TestPodWithItsOwnUsers: the network is not made before the user namespace that it belongs
// to, and every process joins the two, those of a later agent too.
func TestPodWithItsOwnUsers(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", func(p *corev1.Pod) { ownUsers(p); sharePID(p) })
		w.create("b", func(p *corev1.Pod) { p.Spec.Containers[0].Name = "plain" })
		w.until("both run", func() bool { return w.podIs("a", corev1.PodRunning)() && w.podIs("b", corev1.PodRunning)() })
		for container, own := range map[string]bool{"app": true, ".pause": true, "plain": false} {
			users := w.launched(container).Namespaces.User
			if own != (users != nil && users.Path == "/ns/user" && users.First == 1<<30) {
				t.Errorf("%s has the users %+v", container, users)
			}
		}
		if n := testutil.ToFloat64(a.provider.users.started); n != 1 {
			t.Errorf("%v pods with user namespaces counted, want 1", n)
		}
		if n := testutil.ToFloat64(a.provider.users.failed); n != 0 {
			t.Errorf("%v failures counted", n)
		}
	})
}
