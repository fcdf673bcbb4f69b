package testnet

import (
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// LAN is a bridge in a namespace of its own, which hears all that its hosts send.
type LAN struct {
	w  *World
	NS *linuxns.NS
}

// LAN makes one.
func (w *World) LAN() *LAN {
	w.t.Helper()
	l := &LAN{w: w, NS: w.Namespace("lan")}
	w.In(l.NS, "ip link add br0 type bridge", "ip link set br0 up")
	return l
}

// Host makes a namespace whose link "uplink" is on the LAN, with addresses in CIDR form.
func (l *LAN) Host(name string, addrs ...string) *linuxns.NS {
	l.w.t.Helper()
	host := l.w.Namespace(name)
	Must(l.w.t, l.NS.Do(func() error {
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: br.Attrs().Index, Flags: unix.IFF_UP},
			PeerName:  "uplink", PeerNamespace: netlink.NsFd(host.FD()),
		})
	}))
	l.w.In(l.NS, "ip link set dev "+name+" up")
	l.w.In(host, "ip link set uplink up")
	for _, a := range addrs {
		l.w.In(host, "ip addr add "+a+" dev uplink nodad")
	}
	return host
}
