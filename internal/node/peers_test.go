package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/vk-metal/vk-metal/internal/testapi"
)

func peerNode(i int) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("metal-%03d", i)}}
	n.Spec.PodCIDRs = []string{fmt.Sprintf("10.244.%d.0/24", i)}
	n.Status.Addresses = nodeAddresses(n.Name, []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})})
	return n
}

func updateNode(t *testing.T, client *fake.Clientset, n *corev1.Node) {
	t.Helper()
	if _, err := client.CoreV1().Nodes().Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestPeersAreToldTogether: the first that anybody hears is all of them, and afterwards only
// what changes a peer is told.
func TestPeersAreToldTogether(t *testing.T) {
	const count = 200
	client := testapi.NewClientset()
	for i := range count {
		if _, err := client.CoreV1().Nodes().Create(t.Context(), peerNode(i), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	told := make(chan []Peer, count)
	w := NewWatcher(WatchOptions{
		Client: client, Name: "metal-000", Self: func(*corev1.Node) {}, Peers: func(p []Peer) { told <- p }, PeersError: func(error) {},
		Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	defer func() { cancel(); <-done }()
	first := receive(t, told)
	if len(first) != count-1 || first[0].Name != "metal-001" || first[count-2].Name != "metal-199" {
		t.Fatalf("first told of %d peers, of %d", len(first), count-1)
	}
	beat := peerNode(5)
	beat.Status.NodeInfo.KernelVersion = "6.1"
	updateNode(t, client, beat)
	moved := peerNode(7)
	moved.Status.Addresses[0].Address = "192.0.2.250"
	updateNode(t, client, moved)
	if got := receive(t, told); len(got) != count-1 || got[6].Addrs[0].String() != "192.0.2.250" {
		t.Errorf("told of %d peers, the seventh %v", len(got), got[6])
	}
	broken := peerNode(8)
	broken.Spec.PodCIDRs = []string{"nonsense"}
	updateNode(t, client, broken)
	if got := receive(t, told); len(got) != count-2 || got[7].Name != "metal-009" {
		t.Errorf("told of %d peers, the eighth %v", len(got), got[7])
	}
	if err := client.CoreV1().Nodes().Delete(t.Context(), "metal-001", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, told); len(got) != count-3 || got[0].Name != "metal-002" {
		t.Errorf("told of %d peers, the first %v", len(got), got[0])
	}
	if len(told) > 0 {
		t.Errorf("told of %v besides", <-told)
	}
}
