package e2e

import (
	"context"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/tests/artifacts"
)

// cniList is a network of upstream's plugins, of addresses that nobody else gives.
const cniList = `{"cniVersion": "1.1.0", "name": "e2e", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.7.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "backend": "nftables", "snat": false, "capabilities": {"portMappings": true}}]}`

// readyCondition is the Ready condition of a node.
func (e *env) readyCondition(node string) corev1.NodeCondition {
	e.Helper()
	n, err := e.c.Client.CoreV1().Nodes().Get(e.Context(), node, metav1.GetOptions{})
	if err != nil {
		e.Fatal(err)
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c
		}
	}
	return corev1.NodeCondition{}
}

// TestNetworkPlugins: a node that leaves pods' network to plugins is not ready before they
// are there; then a pod has an address and a host port from them, keeps both while the agent
// is killed, and leaves nothing with them.
func TestNetworkPlugins(t *testing.T) {
	e := setupMore(t)
	node := e.c.Machines()[0]
	root, err := artifacts.Root()
	if err != nil {
		t.Fatal(err)
	}
	e.on(node.Name, "apt-get", "install", "-y", "-q=2", "nftables") // portmap runs nft
	e.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := node.Run(ctx, "sh", "-c", "rm -rf /etc/cni /opt/cni /var/lib/cni; ip link del cni0; nft delete table inet cni_hostport || true"); err != nil {
			e.Errorf("take the plugins away: %v", err)
		}
	})
	e.configure(node.Name, "network: {plugin: cni}\nserviceProxy: external\nnetworkPolicy: external")
	e.eventually(2*time.Minute, func() string {
		c := e.readyCondition(node.Name)
		if c.Status != corev1.ConditionFalse || !strings.Contains(c.Message, "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady") {
			return "the node is " + string(c.Status) + ": " + c.Message
		}
		return ""
	})
	e.on(node.Name, "mkdir", "-p", "/opt/cni/bin", "/etc/cni/net.d")
	for _, name := range []string{"bridge", "host-local", "portmap"} {
		out, err := exec.CommandContext(e.Context(), filepath.Join(root, "tools", "install.sh"), name).Output()
		if err != nil {
			t.Fatalf("build the plugin %s: %v", name, err)
		}
		if err := node.CopyIn(e.Context(), strings.TrimSpace(string(out)), "/opt/cni/bin/"+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := node.WriteFile(e.Context(), "/etc/cni/net.d/10-e2e.conflist", []byte(cniList), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := e.c.WaitNodeReady(e.Context(), node.Name); err != nil {
		t.Fatal(err)
	}

	web := e.busybox("web", "echo plugins >/tmp/index.html; httpd -f -p 80 -h /tmp")
	web.Spec.NodeName = node.Name
	web.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8088}}
	e.create(web)
	pod := e.waitPod("web", podTimeout, running)
	address, err := netip.ParseAddr(pod.Status.PodIP)
	if err != nil || !netip.MustParsePrefix("10.99.7.0/24").Contains(address) {
		t.Errorf("the pod's address is %q", pod.Status.PodIP)
	}
	answers := func() string {
		out, err := e.outside("http://" + net.JoinHostPort(node.V4.String(), "8088") + "/")
		if err != nil {
			return err.Error()
		}
		if out != "plugins" {
			return "the host port answers " + out
		}
		return ""
	}
	e.eventually(time.Minute, answers)
	e.crash(node.Name, "vk-metal.service")
	if err := e.c.WaitNodeReady(e.Context(), node.Name); err != nil {
		t.Fatal(err)
	}
	e.eventually(time.Minute, answers)
	if now := e.pod("web"); now.Status.PodIP != pod.Status.PodIP || now.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the agent was killed, and the pod is another: %s", describe(now))
	}
	e.remove("web", 2*time.Minute)
	e.eventually(time.Minute, func() string { // the API's object goes first
		left := e.on(node.Name, "sh", "-c", "ls /var/lib/cni/networks/e2e /var/lib/vk-metal/cni/results | grep -E '^(10\\.99\\.7\\.[0-9]+|e2e-.*)$' || true")
		if strings.TrimSpace(left) != "" {
			return "the plugins still have " + left
		}
		return ""
	})
}
