package node

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/internal/pressure"
	"github.com/vk-metal/vk-metal/internal/testcluster"
)

func fakeHost(t *testing.T, files map[string]string) Host {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Host{Root: root, Storage: root, Images: root}
}

func TestCapacityAndAllocatable(t *testing.T) {
	h := fakeHost(t, map[string]string{
		"/sys/devices/system/cpu/online": "0-2,8\n",
		"/proc/meminfo":                  "MemTotal:  4194304 kB\nMemAvailable: 2097152 kB\n",
		"/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "512\n",
	})
	capacity, err := Capacity(h, 110)
	if err != nil {
		t.Fatal(err)
	}
	kept := pressure.Reserve(pressure.Thresholds(pressure.DefaultHard(), nil, nil, nil), capacity)
	left := Allocatable(capacity, corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("1Gi"),
	}, kept)
	for name, want := range map[corev1.ResourceName][2]string{
		"cpu": {"4", "3500m"}, "memory": {"4Gi", "1948Mi"}, "hugepages-2Mi": {"1Gi", "1Gi"}, "pods": {"110", "110"},
	} {
		have, alloc := capacity[name], left[name]
		if have.Cmp(resource.MustParse(want[0])) != 0 || alloc.Cmp(resource.MustParse(want[1])) != 0 {
			t.Errorf("%s: capacity %s, allocatable %s, want %v", name, have.String(), alloc.String(), want)
		}
	}
	over := Allocatable(capacity, corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("9")}, nil)
	if cpu := over[corev1.ResourceCPU]; cpu.Sign() != 0 {
		t.Errorf("allocatable below zero: %s", cpu.String())
	}
}

func TestPressures(t *testing.T) {
	got := pressures([]corev1.NodeConditionType{corev1.NodeDiskPressure})
	want := []string{
		"MemoryPressure=False KubeletHasSufficientMemory kubelet has sufficient memory available",
		"DiskPressure=True KubeletHasDiskPressure kubelet has disk pressure",
		"PIDPressure=False KubeletHasSufficientPID kubelet has sufficient PID available",
	}
	for i, c := range got {
		if text := string(c.Type) + "=" + string(c.Status) + " " + c.Reason + " " + c.Message; text != want[i] {
			t.Errorf("%s, want %s", text, want[i])
		}
	}
}

func TestWorkingSet(t *testing.T) {
	h := fakeHost(t, map[string]string{
		"/proc/meminfo": "MemTotal: 1000 kB\nMemFree: 300 kB\nMemAvailable: 600 kB\nInactive: 400 kB\nInactive(file): 250 kB\n",
	})
	if used, total := h.WorkingSet(); used != 450<<10 || total != 1000<<10 {
		t.Errorf("%d of %d KiB", used>>10, total>>10)
	}
}

func TestInfo(t *testing.T) {
	h := fakeHost(t, map[string]string{
		"/etc/os-release": "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n", "/etc/machine-id": "abc\n",
	})
	info := h.Info("252.39-1~deb12u1")
	if info.OSImage != "Debian GNU/Linux 12 (bookworm)" || info.ContainerRuntimeVersion != "systemd://252" || info.SystemUUID != "abc" {
		t.Errorf("Info = %+v", info)
	}
	if release("257~rc1") != "257" || release("") != "" {
		t.Error("release")
	}
}

func TestReplaceAddresses(t *testing.T) {
	both := nodeAddresses("n", []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")})
	cases := map[string]struct{ patch, want string }{
		"untouched":  {`{"status":{"phase":"x"}}`, `{"status":{"phase":"x"}}`},
		"no status":  {`{"metadata":{}}`, `{"metadata":{}}`},
		"ordered":    {`{"status":{"$setElementOrder/addresses":[{"type":"InternalIP"}],"addresses":[{"type":"InternalIP","address":"2001:db8::1"}]}}`, `[{"$patch":"replace"},{"type":"InternalIP","address":"192.0.2.1"},{"type":"InternalIP","address":"2001:db8::1"},{"type":"Hostname","address":"n"}]`},
		"order only": {`{"status":{"$setElementOrder/addresses":[]}}`, `"$patch":"replace"`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := replaceAddresses([]byte(tc.patch), both)
			if err != nil || !strings.Contains(string(got), tc.want) || strings.Contains(string(got), "setElementOrder") || !json.Valid(got) {
				t.Errorf("replaceAddresses = %s, %v", got, err)
			}
		})
	}
	if _, err := replaceAddresses([]byte("{"), nil); err == nil {
		t.Error("bad JSON passed")
	}
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in a minute", what)
		}
	}
}

// TestNodeAgainstAPIServer registers with a node's own identity, NodeRestriction and all.
func TestNodeAgainstAPIServer(t *testing.T) {
	cluster := testcluster.Start(t, testcluster.Options{})
	client := cluster.Client(cluster.CA.Issue(t, "system:node:metal-1", "system:nodes"))
	var addrs atomic.Pointer[[]netip.Addr]
	addrs.Store(&[]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")})
	var broken atomic.Bool
	var events sync.Map
	n, err := New(t.Context(), Options{
		Handlers: []string{"", "strict"}, UserNamespaces: true,
		Name: "metal-1", Client: client, Host: Host{Root: "/", Storage: "/", Images: "/"},
		Labels: map[string]string{"example.com/rack": "r1"}, MaxPods: 110, Port: 10250,
		Taints:         []corev1.Taint{{Key: "new", Effect: corev1.TaintEffectNoSchedule}},
		Addresses:      func() ([]netip.Addr, error) { return *addrs.Load(), nil },
		SystemdVersion: func(context.Context) string { return "252.1" },
		Checks: []Check{{"engine", func(context.Context) error {
			if broken.Load() {
				return errors.New("on fire")
			}
			return nil
		}}},
		Event: func(_, reason, _ string) { events.Store(reason, true) },
		Log:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- n.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	<-n.Ready()
	get := func() *corev1.Node {
		node, err := cluster.Admin.CoreV1().Nodes().Get(t.Context(), "metal-1", metav1.GetOptions{})
		if err != nil {
			return &corev1.Node{}
		}
		return node
	}
	first := get()
	if first.Labels["example.com/rack"] != "r1" || first.Labels["kubernetes.io/hostname"] != "metal-1" || first.Labels["kubernetes.io/role"] != "" {
		t.Errorf("labels %v", first.Labels)
	}
	if cond := readyCondition(first); cond.Status != corev1.ConditionTrue {
		t.Errorf("Ready = %+v", cond)
	}
	if !slices.ContainsFunc(first.Spec.Taints, func(taint corev1.Taint) bool { return taint.Key == "new" }) {
		t.Errorf("taints %v", first.Spec.Taints)
	}
	eventually(t, "lease", func() bool {
		lease, err := cluster.Admin.CoordinationV1().Leases("kube-node-lease").Get(t.Context(), "metal-1", metav1.GetOptions{})
		return err == nil && lease.Spec.LeaseDurationSeconds != nil && *lease.Spec.LeaseDurationSeconds == 40
	})
	broken.Store(true)
	n.Changed()
	eventually(t, "not ready", func() bool {
		cond := readyCondition(get())
		return cond.Status == corev1.ConditionFalse && strings.Contains(cond.Message, "engine not ready: on fire")
	})
	for _, reason := range []string{"Starting", "NodeReady", "NodeHasNoDiskPressure", "NodeNotReady"} {
		if _, told := events.Load(reason); !told {
			t.Errorf("no event %s", reason)
		}
	}
	if h := first.Status.RuntimeHandlers; len(h) != 2 || h[0].Name != "" || h[1].Name != "strict" || !*h[1].Features.RecursiveReadOnlyMounts || !*h[1].Features.UserNamespaces || !*first.Status.Features.SupplementalGroupsPolicy {
		t.Errorf("runtime handlers %+v, features %+v", h, first.Status.Features)
	}
	addrs.Store(&[]netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")})
	n.Changed()
	eventually(t, "both new addresses", func() bool {
		var have []string
		for _, a := range get().Status.Addresses {
			have = append(have, a.Address)
		}
		return slices.Equal(have, []string{"192.0.2.9", "2001:db8::9", "metal-1"})
	})
	if err := cluster.Admin.CoreV1().Nodes().Delete(t.Context(), "metal-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	n.Deleted()
	eventually(t, "registered again", func() bool { uid := get().UID; return uid != "" && uid != first.UID })
	if err := n.Alive(); err != nil {
		t.Error(err)
	}
	t.Run("watcher", func(t *testing.T) { testWatcher(t, cluster) })
}

func readyCondition(n *corev1.Node) corev1.NodeCondition {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c
		}
	}
	return corev1.NodeCondition{}
}

// testWatcher sees its own podCIDRs at once, is refused the others, and gets them when the
// role is granted.
func testWatcher(t *testing.T, cluster *testcluster.Cluster) {
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "metal-2"}}
	other.Status.Addresses = nodeAddresses("metal-2", []netip.Addr{netip.MustParseAddr("192.0.2.2")})
	if _, err := cluster.Admin.CoreV1().Nodes().Create(t.Context(), other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	self, peers, failed := make(chan *corev1.Node, 9), make(chan []Peer, 9), make(chan error, 9)
	w := NewWatcher(WatchOptions{
		Client: cluster.Client(cluster.CA.Issue(t, "system:node:metal-1", "system:nodes")), Name: "metal-1",
		Self: func(n *corev1.Node) { self <- n }, Peers: func(p []Peer) { peers <- p }, PeersError: func(err error) { failed <- err },
		Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for node := receive(t, self); len(node.Spec.PodCIDRs) == 0; node = receive(t, self) {
		t.Log("own Node has no podCIDR yet")
	}
	if err := receive(t, failed); !errors.Is(err, ErrPeersForbidden) {
		t.Errorf("PeersError(%v)", err)
	}
	grantNodes(t, cluster)
	if err := receive(t, failed); err != nil {
		t.Errorf("PeersError(%v) after the grant", err)
	}
	for p := receive(t, peers); len(p) != 1 || p[0].Name != "metal-2" || len(p[0].PodCIDRs) != 1 || len(p[0].Addrs) != 1; p = receive(t, peers) {
		t.Logf("peers %v", p)
	}
}

func grantNodes(t *testing.T, cluster *testcluster.Cluster) {
	meta := metav1.ObjectMeta{Name: "test-nodes"}
	role := &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "list", "watch"}}}}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "system:nodes"}},
	}
	if _, err := cluster.Admin.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.Admin.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func receive[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(time.Minute):
		t.Fatalf("nothing received on %T in a minute", c)
	}
	return v
}
