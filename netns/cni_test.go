package netns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

// bridgeList is a network of upstream's plugins: a bridge with addresses from files, and
// host ports where EXTRA asks for them.
const bridgeList = `{"cniVersion": "1.1.0", "name": "NAME", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {"type": "host-local", "dataDir": "DATA",
  "ranges": [[{"subnet": "10.244.7.0/24"}], [{"subnet": "fd00:244:7::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}EXTRA]}`

const portmap = `, {"type": "portmap", "backend": "nftables", "snat": false, "capabilities": {"portMappings": true}}`

// sickPlugin is a plugin whose STATUS fails while a file says so.
const sickPlugin = `#!/bin/sh
stdin=$(cat)
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}' ;;
STATUS) [ ! -e DIR/sick ] || { echo '{"cniVersion":"1.1.0","code":50,"msg":"the controller is away"}'; exit 1; } ;;
ADD) echo "$stdin" | sed 's/.*"prevResult"://; s/,"type":.*//' ;;
esac
`

// cniWorld is a world whose node has plugins.
type cniWorld struct {
	*world
	conf, data, bin string
}

func newCNIWorld(t *testing.T) *cniWorld {
	w := &cniWorld{world: newWorld(t)}
	w.conf, w.data, w.bin = filepath.Join(w.dir, "net.d"), filepath.Join(w.dir, "data"), filepath.Join(w.dir, "bin")
	must(t, os.MkdirAll(w.bin, 0o755))
	for _, name := range []string{"bridge", "host-local", "portmap"} {
		out, err := exec.Command("../tools/install.sh", name).Output()
		if err != nil {
			t.Fatalf("build the plugin %s: %v", name, err)
		}
		must(t, os.Symlink(strings.TrimSpace(string(out)), filepath.Join(w.bin, name)))
	}
	must(t, os.WriteFile(filepath.Join(w.bin, "sick"), []byte(strings.ReplaceAll(sickPlugin, "DIR", w.dir)), 0o755))
	must(t, w.node.Do(func() error {
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			if _, err := linuxns.SetSysctl(linuxns.Sysctl{Key: key, Value: "1"}); err != nil {
				return err
			}
		}
		return nil
	}))
	return w
}

// lists puts a network list in place, whole.
func (w *cniWorld) lists(name, extra string) {
	w.t.Helper()
	must(w.t, os.MkdirAll(w.conf, 0o755))
	text := strings.NewReplacer("NAME", name, "DATA", w.data, "EXTRA", extra).Replace(bridgeList)
	temporary := filepath.Join(w.dir, "list")
	must(w.t, os.WriteFile(temporary, []byte(text), 0o600))
	must(w.t, os.Rename(temporary, filepath.Join(w.conf, "10-list.conflist")))
}

// cni runs a CNI until the returned function, or the test, ends.
func (w *cniWorld) cni() (c *CNI, stop func()) {
	w.t.Helper()
	c, err := NewCNI(CNIOptions{
		Layout: w.layout(), ConfDir: w.conf, BinDirs: []string{w.bin}, HostNetNS: w.nodeP,
		Log: testnet.Log(w.t),
	})
	must(w.t, err)
	return c, w.runs(c.Run, c.Close)
}

func (w *cniWorld) ready() (c *CNI, stop func()) {
	w.t.Helper()
	c, stop = w.cni()
	eventually(w.t, "the network is ready", c.Ready)
	return c, stop
}

// reserved are the addresses that host-local has given away in a network.
func (w *cniWorld) reserved(network string) []string {
	w.t.Helper()
	entries, err := os.ReadDir(filepath.Join(w.data, network))
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if _, err := netip.ParseAddr(strings.ReplaceAll(e.Name(), "_", ":")); err == nil {
			out = append(out, e.Name())
		}
	}
	return out
}

func (w *cniWorld) setUp(c *CNI, uid string, change ...func(*PodNetwork)) PodAddress {
	w.t.Helper()
	pod := PodNetwork{PodUID: uid, Namespace: "default", Name: "web"}
	for _, f := range change {
		f(&pod)
	}
	a, err := c.Setup(context.Background(), pod)
	must(w.t, err)
	return a
}

// answers is for who asks again when there is no answer soon.
func answers(from *linuxns.NS, ip netip.Addr, port uint16) error {
	_, err := askFrom(from, "tcp", nil, netip.AddrPortFrom(ip, port), silence)
	return err
}

const (
	podA = "aaaaaaaa-0000-4000-8000-000000000001"
	podB = "aaaaaaaa-0000-4000-8000-000000000002"
)

// TestCNIPod: a pod's life by real plugins: addresses, traffic, a host port, the same again
// after a restart of the agent, and nothing left.
func TestCNIPod(t *testing.T) {
	w := newCNIWorld(t)
	w.lists("lan", portmap)
	c, stop := w.ready()
	published := func(p *PodNetwork) {
		p.HostPorts = []HostPort{{Protocol: "TCP", HostPort: 8080, ContainerPort: 80}}
		p.Sysctls = map[string]string{"net.core.somaxconn": "77"}
	}
	a := w.setUp(c, podA, published)
	if len(a.IPs) != 2 || !a.IPs[0].Is4() || !a.IPs[1].Is6() {
		t.Fatalf("addresses %v", a.IPs)
	}
	pod := w.pod(a.Path)
	serve(t, pod, "tcp", ":80")
	for _, ip := range a.IPs {
		eventually(t, "the node reaches the pod", func() error { return answers(w.node, ip, 80) })
	}
	eventually(t, "the host port leads to the pod", func() error {
		client, err := askFrom(w.out, "tcp", nil, netip.AddrPortFrom(nodeIP4, 8080), silence)
		if err == nil && client != outIP4 {
			err = fmt.Errorf("the pod sees %s", client)
		}
		return err
	})
	if got := strings.TrimSpace(w.run(pod, "cat", "/proc/sys/net/core/somaxconn")); got != "77" {
		t.Errorf("sysctl is %s", got)
	}
	conn, err := c.Dial(context.Background(), podA, "tcp", "localhost:80")
	must(t, err)
	_ = conn.Close()

	stop()
	c, _ = w.ready()
	if again := w.setUp(c, podA, published); again.Path != a.Path || !slices.Equal(again.IPs, a.IPs) || again.Problem != "" {
		t.Errorf("after a restart %v, before %v", again, a)
	}
	if found := testutil.ToFloat64(c.changedNetworks); found != 0 {
		t.Errorf("%v networks are said to have changed", found)
	}
	list, err := c.List(context.Background())
	must(t, err)
	if len(list) != 1 || !slices.Equal(list[podA].IPs, a.IPs) || list[podA].Path != a.Path {
		t.Errorf("the list is %v", list)
	}
	other := w.setUp(c, podB)
	if slices.Contains(other.IPs, a.IPs[0]) {
		t.Errorf("both pods have %v", other.IPs)
	}
	for _, uid := range []string{podA, podB, podA} {
		must(t, c.Teardown(context.Background(), uid))
	}
	w.nothing(c, "lan")
	if client, err := askFrom(w.out, "tcp", nil, netip.AddrPortFrom(nodeIP4, 8080), silence); err == nil {
		t.Errorf("the host port still leads somewhere, as %s", client)
	}
}

// nothing asserts that neither the plugins nor we have anything of a pod.
func (w *cniWorld) nothing(c *CNI, network string) {
	w.t.Helper()
	list, err := c.List(context.Background())
	must(w.t, err)
	if held := w.reserved(network); len(list) > 0 || len(held) > 0 {
		w.t.Errorf("left: %v, addresses %v", list, held)
	}
}

// TestCNIKilled: whatever a kill leaves, the next Setup makes a pod with one attachment.
func TestCNIKilled(t *testing.T) {
	cache := func(w *cniWorld) string {
		files, err := filepath.Glob(filepath.Join(w.layout().CNI(), "results", "*"))
		must(w.t, err)
		if len(files) != 1 {
			w.t.Fatalf("the cache has %v", files)
		}
		return files[0]
	}
	for name, damage := range map[string]func(w *cniWorld){
		"before the result was kept":     func(w *cniWorld) { must(w.t, os.Remove(cache(w))) },
		"while the result was written":   func(w *cniWorld) { must(w.t, os.Truncate(cache(w), 20)) },
		"after the namespace had gone":   func(w *cniWorld) { must(w.t, linuxns.Remove(w.layout().Namespace(podA, "net"))) },
		"before plugins were asked":      func(w *cniWorld) { must(w.t, linuxns.Create(w.layout().Namespace(podB, "net"))) },
		"not at all, but the link broke": func(w *cniWorld) { w.run(w.pod(w.layout().Namespace(podA, "net")), "ip", "link", "set", "lo", "down") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newCNIWorld(t)
			w.lists("lan", "")
			c, stop := w.ready()
			w.setUp(c, podA)
			stop()
			damage(w)
			c, _ = w.ready()
			a := w.setUp(c, podA)
			serve(t, w.pod(a.Path), "tcp", ":80")
			eventually(t, "the node reaches the pod", func() error { return answers(w.node, a.IPs[0], 80) })
			if held := w.reserved("lan"); len(held) != len(a.IPs) {
				t.Errorf("%v are given away, the pod has %v", held, a.IPs)
			}
			for _, uid := range []string{podA, podB} {
				must(t, c.Teardown(context.Background(), uid))
			}
			w.nothing(c, "lan")
		})
	}
}

// TestCNIReboot: plugins give back what pods had that did not outlive the reboot, before the
// node is ready.
func TestCNIReboot(t *testing.T) {
	w := newCNIWorld(t)
	w.lists("lan", "")
	c, stop := w.ready()
	w.setUp(c, podA)
	stop()
	must(t, linuxns.Remove(w.layout().Namespace(podA, "net")))
	c, _ = w.ready()
	w.nothing(c, "lan")
}

// TestCNIChanged: a network that somebody has changed is told of, and used all the same.
func TestCNIChanged(t *testing.T) {
	w := newCNIWorld(t)
	w.lists("lan", "")
	c, stop := w.ready()
	before := w.setUp(c, podA)
	stop()
	w.run(w.pod(before.Path), "ip", "address", "del", before.IPs[0].String()+"/24", "dev", podLink)
	c, _ = w.ready()
	after := w.setUp(c, podA)
	if !slices.Equal(after.IPs, before.IPs) || !strings.Contains(after.Problem, "lan") || !strings.Contains(after.Problem, before.IPs[0].String()) {
		t.Errorf("after the change %+v, before %+v", after, before)
	}
	if found := testutil.ToFloat64(c.changedNetworks); found != 1 {
		t.Errorf("%v networks are said to have changed, want 1", found)
	}
	must(t, c.Teardown(context.Background(), podA))
	w.nothing(c, "lan")
}

// TestCNIReady: the node is not ready without a list, without a plugin of it, and while a
// plugin says that it does not work; all are followed.
func TestCNIReady(t *testing.T) {
	w := newCNIWorld(t)
	c, _ := w.cni()
	because := func(what string) {
		t.Helper()
		eventually(t, "the network is not ready: "+what, func() error {
			err := c.Ready()
			if err == nil || !strings.Contains(err.Error(), "NetworkPluginNotReady") || !strings.Contains(err.Error(), what) {
				return fmt.Errorf("it says %w", err)
			}
			return nil
		})
	}
	because("no network list in " + w.conf)
	if _, err := c.Setup(context.Background(), PodNetwork{PodUID: podA}); err == nil || !strings.Contains(err.Error(), "not ready") {
		t.Errorf("Setup without a network: %v", err)
	}
	w.lists("lan", `, {"type": "not-there"}`)
	because("not-there")
	must(t, os.WriteFile(filepath.Join(w.dir, "sick"), nil, 0o600))
	w.lists("lan", `, {"type": "sick"}`)
	because("the controller is away")
	must(t, os.Remove(filepath.Join(w.dir, "sick")))
	w.lists("lan", `, {"type": "sick"} `)
	eventually(t, "the network is ready", c.Ready)
	must(t, os.WriteFile(filepath.Join(w.conf, "00-broken.conflist"), []byte("{"), 0o600)) // the next one counts
	w.lists("lan", "")
	eventually(t, "the network is ready", c.Ready)
}

// TestCNICapabilities: what no plugin can do is an error that names it, and leaves nothing.
func TestCNICapabilities(t *testing.T) {
	w := newCNIWorld(t)
	w.lists("lan", portmap)
	c, _ := w.ready()
	_, err := c.Setup(context.Background(), PodNetwork{PodUID: podA, Bandwidth: Bandwidth{Egress: 1e6}})
	if err == nil || !strings.Contains(err.Error(), "no plugin of network lan has the capability bandwidth") {
		t.Errorf("bandwidth without a plugin: %v", err)
	}
	must(t, c.Teardown(context.Background(), podA))
	w.nothing(c, "lan")
}

// TestCNIOtherList: a pod is released by the list that it was made with.
func TestCNIOtherList(t *testing.T) {
	w := newCNIWorld(t)
	w.lists("old", "")
	c, stop := w.ready()
	w.setUp(c, podA)
	stop()
	w.lists("new", "")
	c, _ = w.ready()
	if held := w.reserved("old"); len(held) != 2 {
		t.Errorf("of a pod that is there %v is given away", held)
	}
	must(t, c.Teardown(context.Background(), podA))
	w.nothing(c, "old")
}
