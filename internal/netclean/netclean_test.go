package netclean

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/hostgw"
	"github.com/vk-metal/vk-metal/internal/dnscache"
	"github.com/vk-metal/vk-metal/netns"
)

// mine and others are made in a network namespace of the test's own.
const (
	mine = `
ip link add vkm-vxlan type vxlan id 118 dstport 4790 external && ip link set vkm-vxlan up alias 'vk-metal/1 vxlan'
ip link add vkmpod type veth peer name peer && ip link set vkmpod up alias 'vk-metal/1 uid=u ips=10.244.0.2'
ip route add 10.244.0.2/32 dev vkmpod proto 119
ip route add unreachable 10.244.0.0/24 proto 118
ip -6 route add unreachable fd00:244::/64 proto 118 metric 32767
ip route add 10.244.1.0/24 via 192.0.2.2 proto 118 table 77
ip rule add fwmark 0x100000/0x100000 lookup 30315 protocol 116 && ip -6 rule add fwmark 0x100000/0x100000 lookup 30315 protocol 116
nft 'add table inet vk-metal-pods; add chain inet vk-metal-pods a; add chain inet vk-metal-pods b; add rule inet vk-metal-pods a jump b'
nft 'add table ip vk-metal-services; add map ip vk-metal-services m { type ipv4_addr : verdict; }; add table ip6 vk-metal-services'`
	others = `
ip link set lo up
ip link add uplink type bridge && ip link set uplink up alias 'not ours' && ip addr add 192.0.2.1/24 dev uplink
ip route add 10.1.0.0/16 via 192.0.2.2
ip rule add fwmark 7 lookup 77 && ip -6 rule add fwmark 7 lookup 77 protocol 9
ip route add 10.244.9.0/24 via 192.0.2.2 proto 186
nft 'add table inet vk; add table inet filter; add chain inet filter input { type filter hook input priority 0; }'`
	look = `ip -o link | sed 's/^[0-9]*: //' | cut -d: -f1; ip route show table all | grep -v '^local\|^broadcast\|^multicast'; nft list ruleset; ip rule; ip -6 rule`
)

// TestRemove: ours goes, whatever it is, others' stays, and a second time is no error.
func TestRemove(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with its namespace
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	sh(t, others)
	before := sh(t, look)
	sh(t, mine)
	if sh(t, look) == before {
		t.Fatal("there is nothing to remove")
	}
	marks := Marks{Tables: "vk-metal-", Links: "vk-metal/1 ", Routes: []int{hostgw.RouteProtocol, netns.RouteProtocol}, Rules: []int{dnscache.RouteProtocol}}
	for range 2 {
		if err := Remove("/proc/thread-self/ns/net", marks); err != nil {
			t.Fatal(err)
		}
		if after := sh(t, look); after != before {
			t.Errorf("there was\n%s\nand there is\n%s", before, after)
		}
	}
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput() // inherits the thread's namespace
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}
