package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// condition is one of a node's conditions, as "status reason".
func (e *env) condition(node string, kind corev1.NodeConditionType) string {
	e.Helper()
	n, err := e.c.Client.CoreV1().Nodes().Get(e.Context(), node, metav1.GetOptions{})
	if err != nil {
		e.Fatal(err)
	}
	for _, c := range n.Status.Conditions {
		if c.Type == kind {
			return string(c.Status) + " " + c.Reason
		}
	}
	return ""
}

// networkTainted says whether pods are kept away for want of a network.
func (e *env) networkTainted(node string) bool {
	e.Helper()
	n, err := e.c.Client.CoreV1().Nodes().Get(e.Context(), node, metav1.GetOptions{})
	if err != nil {
		e.Fatal(err)
	}
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeNetworkUnavailable })
}

// TestEncryptionDemanded: machines share the host's kernel, and one without WireGuard must not
// carry pods of a node that has to encrypt: the node says so until that is not asked any more.
func TestEncryptionDemanded(t *testing.T) {
	if kernelHasWireGuard(t) {
		t.Skip("this kernel has WireGuard; package wireguard's own tests show what it does then")
	}
	e := setupMore(t)
	node := e.c.Machines()[0].Name
	becomes := func(ready, message string, unavailable bool) {
		t.Helper()
		e.eventually(2*time.Minute, func() string {
			c, network := e.readyCondition(node), e.condition(node, corev1.NodeNetworkUnavailable)
			if string(c.Status) != ready || !strings.Contains(c.Message, message) || (network == "True EncryptionNotReady") != unavailable || e.networkTainted(node) != unavailable {
				return "Ready is " + string(c.Status) + " (" + c.Message + "), NetworkUnavailable " + network
			}
			return ""
		})
	}
	e.configure(node, "network: {encryption: Required, clusterCIDRs: [10.244.0.0/16, \"fd00:244::/56\"]}")
	becomes("False", "encryption not ready: add link vkm-wg0: the kernel has no WireGuard", true)
	if said := e.on(node, "vk-metal", "encryption"); !strings.Contains(said, "mode Required") || !strings.Contains(said, "error: add link vkm-wg0") {
		t.Errorf("vk-metal encryption says\n%s", said)
	}
	e.configure(node, "network: {encryption: Preferred}")
	becomes("True", "", false)
	n, err := e.c.Client.CoreV1().Nodes().Get(e.Context(), node, metav1.GetOptions{})
	if keys := n.Annotations["wireguard.vk-metal.io/keys"]; err != nil || keys != "" {
		t.Errorf("a node that cannot encrypt announces %q (%v)", keys, err)
	}
}

// kernelHasWireGuard looks at the kernel's files.
func kernelHasWireGuard(t *testing.T) bool {
	t.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	modules := filepath.Join("/lib/modules", strings.TrimSpace(string(release)))
	found, _ := filepath.Glob(filepath.Join(modules, "kernel/drivers/net/wireguard/*"))
	builtin, _ := os.ReadFile(filepath.Join(modules, "modules.builtin"))
	_, loaded := os.Stat("/sys/module/wireguard")
	return len(found) > 0 || strings.Contains(string(builtin), "wireguard.ko") || loaded == nil
}
