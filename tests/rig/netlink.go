package rig

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where `ip netns` looks, so that a person can enter with `ip netns exec`.
const netnsDir = "/run/netns"

// netnsPath is where the rig's namespace of that name is pinned.
func netnsPath(id, name string) string { return filepath.Join(netnsDir, id+"-"+name) }

// makeNetns makes an empty network namespace with lo up and pins it at path.
func makeNetns(path string) error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	_ = f.Close()
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		errc <- pinNewNetns(path)
	}()
	if err := <-errc; err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("make network namespace %s: %w", path, err)
	}
	return nil
}

// pinNewNetns moves the calling thread into a new namespace and binds that to path.
func pinNewNetns(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	if err := setForwarding(false); err != nil {
		return err
	}
	return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
}

// removeNetns unpins a namespace; links and routes in it go with its last process.
func removeNetns(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// enterNetns moves the calling thread into the namespace at path. The thread must be
// locked and never be unlocked.
func enterNetns(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// InNetns runs do on a thread of its own in the network namespace at path; "" is the
// current one. Sockets stay in it, goroutines that do starts are not.
func InNetns(path string, do func() error) error { return inNetns(path, do) }

// inNetns runs do on a thread in the namespace at path; "" is the current one.
func inNetns(path string, do func() error) error {
	if path == "" {
		return do()
	}
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		if err := enterNetns(path); err != nil {
			errc <- err
			return
		}
		errc <- do()
	}()
	return <-errc
}

// setForwarding switches forwarding of both families in the thread's namespace.
func setForwarding(on bool) error {
	v := "0"
	if on {
		v = "1"
	}
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(v), 0); err != nil {
			return fmt.Errorf("set %s: %w", strings.ReplaceAll(key, "/", "."), err)
		}
	}
	return nil
}

// cable is a veth pair: a port of a rack's bridge and an interface elsewhere.
type cable struct {
	rackNetns string
	port      string // in the rack's namespace
	netns     string // "" is the caller's
	name      string // there
	mac       net.HardwareAddr
	addrs     []netip.Prefix
	attached  bool // to the bridge
}

// lay makes the pair, attaches it, and gives the far end its addresses.
func (c cable) lay() error {
	far, err := openNetns(c.netns)
	if err != nil {
		return err
	}
	defer far.Close()
	err = inNetns(c.rackNetns, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = c.port
		v := &netlink.Veth{LinkAttrs: attrs, PeerName: c.name, PeerHardwareAddr: c.mac, PeerNamespace: netlink.NsFd(far)}
		if err := netlink.LinkAdd(v); err != nil {
			return fmt.Errorf("make veth %s: %w", c.port, err)
		}
		// A port needs no address, and link-local noise of the port is not the rack's.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+c.port+"/disable_ipv6", []byte("1"), 0)
		return errors.Join(plugPort(c.port, c.attached), setLink(c.port, true))
	})
	if err != nil {
		return err
	}
	return inNetns(c.netns, func() error { return configure(c.name, c.addrs) })
}

// openNetns opens the namespace at path; "" is the calling thread's.
func openNetns(path string) (netns.NsHandle, error) {
	if path == "" {
		h, err := netns.Get()
		if err != nil {
			return h, fmt.Errorf("open own network namespace: %w", err)
		}
		return h, nil
	}
	h, err := netns.GetFromPath(path)
	if err != nil {
		return h, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return h, nil
}

// configure raises an interface of the thread's namespace with addresses that are
// usable at once (no duplicate address detection) and no others by advertisement.
func configure(name string, addrs []netip.Prefix) error {
	for key, v := range map[string]string{"accept_ra": "0", "accept_dad": "0", "autoconf": "0"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/"+key, []byte(v), 0); err != nil {
			return fmt.Errorf("set %s of %s: %w", key, name, err)
		}
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	for _, p := range addrs {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, name, err)
		}
	}
	return setLink(name, true)
}

// addRoute routes dst (zero: everything) through a gateway in the thread's namespace.
func addRoute(dst netip.Prefix, gw netip.Addr, link string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: gw.AsSlice()}
	if dst.IsValid() {
		r.Dst = ipNet(dst)
	}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("add route to %s through %s: %w", dst, gw, err)
	}
	return nil
}

// plugPort attaches a port of the thread's namespace to the bridge or detaches it.
func plugPort(port string, attached bool) error {
	l, err := netlink.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find port %s: %w", port, err)
	}
	if !attached {
		err = netlink.LinkSetNoMaster(l)
	} else {
		err = netlink.LinkSetMaster(l, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}})
	}
	if err != nil {
		return fmt.Errorf("attach port %s (%v): %w", port, attached, err)
	}
	return nil
}

// setLink raises or lowers a link of the thread's namespace.
func setLink(name string, up bool) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	set := netlink.LinkSetDown
	if up {
		set = netlink.LinkSetUp
	}
	if err := set(l); err != nil {
		return fmt.Errorf("set link %s (up: %v): %w", name, up, err)
	}
	return nil
}

// ipNet is the old form of a prefix, host bits kept.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// linkNames lists the links of the thread's namespace.
func linkNames() ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := make([]string, 0, len(links))
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names, nil
}

// deleteLink removes a link of the thread's namespace.
func deleteLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkDel(l); err != nil {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}
