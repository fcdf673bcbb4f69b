package wireguard

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// ErrUnsupported says that the kernel has no WireGuard.
var ErrUnsupported = errors.New("the kernel has no WireGuard: install a kernel with it, or load the module wireguard (modprobe wireguard says why it cannot)")

// devices makes and configures WireGuard devices; tests have some that are not the kernel's.
type devices interface {
	kind() string // the links' type
	add(h *netlink.Handle, name string) error
	Device(name string) (*wgtypes.Device, error)
	ConfigureDevice(name string, cfg wgtypes.Config) error
	Close() error
}

// kernelDevices are the kernel's, in a network namespace.
type kernelDevices struct {
	ns     *linuxns.NS
	client *wgctrl.Client // nil until it is needed
}

func (*kernelDevices) kind() string { return "wireguard" }

func (*kernelDevices) add(h *netlink.Handle, name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	err := h.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return ErrUnsupported
	}
	return err
}

// with calls f with a client. The kernel's interface is there only once its module is: a
// client that was opened before does not see it.
func (k *kernelDevices) with(f func(*wgctrl.Client) error) error {
	for again := false; ; again = true {
		if k.client == nil {
			err := k.ns.Do(func() (err error) {
				k.client, err = wgctrl.New()
				return err
			})
			if err != nil {
				return fmt.Errorf("open WireGuard's netlink interface: %w", err)
			}
		}
		err := f(k.client)
		if again || !errors.Is(err, os.ErrNotExist) {
			return err
		}
		_ = k.Close()
	}
}

// Device implements devices.
func (k *kernelDevices) Device(name string) (d *wgtypes.Device, err error) {
	err = k.with(func(c *wgctrl.Client) (err error) {
		d, err = c.Device(name)
		return err
	})
	return d, err
}

// ConfigureDevice implements devices.
func (k *kernelDevices) ConfigureDevice(name string, cfg wgtypes.Config) error {
	return k.with(func(c *wgctrl.Client) error { return c.ConfigureDevice(name, cfg) })
}

// Close implements devices.
func (k *kernelDevices) Close() (err error) {
	if k.client != nil {
		err, k.client = k.client.Close(), nil
	}
	return err
}

// aliasPrefix opens the alias of our links; behind it is when the key was made.
const aliasPrefix = "vk-metal/1 wireguard made="

func alias(made time.Time) string { return aliasPrefix + strconv.FormatInt(made.Unix(), 10) }

// madeOf reads an alias; what is not ours to read is long ago.
func madeOf(alias string) time.Time {
	n, err := strconv.ParseInt(strings.TrimPrefix(alias, aliasPrefix), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(n, 0)
}

// link is nil if there is none; a link of that name that is not ours is an error.
func (t *Tunnels) link(slot int) (netlink.Link, error) {
	name := t.names[slot]
	l, err := t.h.LinkByName(name)
	if nf := (netlink.LinkNotFoundError{}); errors.As(err, &nf) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up link %s: %w", name, err)
	}
	if a := l.Attrs().Alias; l.Type() != t.dev.kind() || a != "" && !strings.HasPrefix(a, aliasPrefix) {
		return nil, fmt.Errorf("link %s exists and is not ours: %w", name, unix.EEXIST)
	}
	return l, nil
}

// open makes a slot's device as far as it is not there, and reads what it has. A key that was
// lost with the link comes back from memory, so that the other nodes need not hear of it.
func (t *Tunnels) open(slot int, now time.Time) error {
	name, s := t.names[slot], &t.slots[slot]
	l, err := t.link(slot)
	if l == nil {
		s.index, s.dressed = 0, false
	}
	if err == nil && l == nil {
		if err := t.dev.add(t.h, name); err != nil {
			return fmt.Errorf("add link %s: %w", name, err)
		}
		if l, err = t.link(slot); err == nil && l == nil {
			err = fmt.Errorf("link %s is gone right after it was made", name)
		}
	}
	if err != nil {
		return err
	}
	t.links[slot].Store(int64(l.Attrs().Index))
	d, err := t.dev.Device(name)
	if err != nil {
		return fmt.Errorf("read device %s: %w", name, err)
	}
	if d, err = t.giveKey(slot, d, now); err != nil {
		return err
	}
	if s.made.IsZero() {
		s.made = madeOf(l.Attrs().Alias)
	}
	if want := alias(s.made); l.Attrs().Alias != want {
		if err := t.h.LinkSetAlias(l, want); err != nil {
			return fmt.Errorf("set alias of link %s: %w", name, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := t.h.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring up link %s on UDP port %d (another program may hold it): %w", name, t.port(slot), err)
		}
	}
	s.index, s.private, s.peers = l.Attrs().Index, d.PrivateKey, fromDevice(d)
	return nil
}

// giveKey sets a device's key, if it has none, and its port.
func (t *Tunnels) giveKey(slot int, d *wgtypes.Device, now time.Time) (*wgtypes.Device, error) {
	name, s, port := t.names[slot], &t.slots[slot], t.port(slot)
	var c wgtypes.Config
	if d.PrivateKey == (wgtypes.Key{}) {
		if s.private == (wgtypes.Key{}) {
			key, err := wgtypes.GeneratePrivateKey()
			if err != nil {
				return nil, fmt.Errorf("make a key for %s: %w", name, err)
			}
			s.private, s.made = key, now
		}
		c.PrivateKey = &s.private
	}
	if d.ListenPort != port {
		c.ListenPort = &port
	}
	if c.PrivateKey == nil && c.ListenPort == nil {
		return d, nil
	}
	if err := t.dev.ConfigureDevice(name, c); err != nil {
		return nil, fmt.Errorf("set key and UDP port %d of %s (another program may hold it): %w", port, name, err)
	}
	d, err := t.dev.Device(name)
	if err != nil {
		return nil, fmt.Errorf("read device %s: %w", name, err)
	}
	return d, nil
}

// rekey gives a slot that nobody sends by a new key, with all peers anew: that they have
// answered says something of the new key then.
func (t *Tunnels) rekey(slot int, want peers, now time.Time) error {
	name, s := t.names[slot], &t.slots[slot]
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return fmt.Errorf("make a key for %s: %w", name, err)
	}
	configs := diff(want, nil)
	if err := t.dev.ConfigureDevice(name, wgtypes.Config{PrivateKey: &key, ReplacePeers: true, Peers: configs}); err != nil {
		return fmt.Errorf("rotate the key of %s: %w", name, err)
	}
	s.private, s.made, s.peers, s.dressed, t.wait = key, now, after(peers{}, configs, want), false, firstLook
	l, err := t.link(slot)
	if err == nil && l != nil {
		err = t.h.LinkSetAlias(l, alias(now))
	}
	if err != nil {
		return fmt.Errorf("set alias of link %s: %w", name, err)
	}
	t.log.Info("key of a WireGuard device rotated", "link", name)
	return nil
}

// removeLinks takes away what is ours.
func (t *Tunnels) removeLinks() error {
	var errs []error
	for slot := range t.slots {
		l, err := t.link(slot)
		if err == nil && l != nil {
			err = t.h.LinkDel(l)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("remove link %s: %w", t.names[slot], err))
		}
		t.links[slot].Store(0)
	}
	return errors.Join(errs...)
}
