package netns

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/sandbox"
)

// TestNamespaceOfAUserNamespace: a network namespace that was made with the pod's user
// namespace is used as it is and is set up as any other.
func TestNamespaceOfAUserNamespace(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	stop := w.start(m, Config{PodCIDRs: dualStack, Masquerade: true})
	boxes := sandbox.New(w.layout())
	if _, err := boxes.Ensure(t.Context(), "a", sandbox.Options{Users: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, boxes.Remove(context.Background(), "a")) })
	path := w.layout().Namespace("a", "net")
	before := inode(t, path)
	a, err := m.Setup(t.Context(), PodNetwork{
		PodUID: "a", Namespace: "default", Name: "pod-a", Sysctls: map[string]string{"net.ipv4.ip_local_port_range": "2000 3000"},
	})
	must(t, err)
	if a.Path != path || inode(t, path) != before {
		t.Errorf("the network is in %s, another namespace", a.Path)
	}
	port := serve(t, w.out, "tcp", "198.51.100.2:0")
	seen(t, "to the world", w.pod(a.Path), "tcp", netip.AddrPortFrom(outIP4, port), nodeIP4)
	out := w.run(w.pod(a.Path), "sysctl", "-n", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range")
	if got := strings.Join(strings.Fields(out), " "); got != "2000 3000 0 0 2147483647" {
		t.Errorf("sysctls %q", got)
	}
	must(t, m.Teardown(t.Context(), "a"))
	if linuxns.Bound(path) {
		t.Error("the namespace is left")
	}
	stop()
	nothingLeft(t, w, "a")
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Ino
}
