package wireguard

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/vk-metal/vk-metal/hostgw"
	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/nft"
)

// Mode says what becomes of pods' packets for which there is no tunnel.
type Mode string

// Modes; the empty one is Off.
const (
	Off       Mode = "None"      // there are no tunnels; those of before go
	Preferred Mode = "Preferred" // they go in plain
	Required  Mode = "Required"  // they go nowhere
)

// Overhead of WireGuard in bytes, over IPv4 and IPv6.
const (
	Overhead4 = 60
	Overhead6 = 80
)

// DefaultPort is WireGuard's usual one; the second device has the port behind it.
const DefaultPort = 51820

// Options of Tunnels.
type Options struct {
	// HostNetNS is the path of the network namespace to work in; empty is the process's own.
	HostNetNS string
	NodeName  string
	Mode      Mode
	// Port is the first of two UDP ports; DefaultPort when 0.
	Port int
	// Rotation is how long a slot is in use; 0 never changes keys. The same on all nodes.
	Rotation time.Duration
	// Keepalive of tunnels through firewalls that forget; 0 is none.
	Keepalive time.Duration
	// ClusterCIDRs are ranges of which nothing may leave or come in plain, with Required.
	ClusterCIDRs []netip.Prefix
	// PodLinks is the interface group of pods' links.
	PodLinks uint32
	// Announce is given what the Node's Annotation has to be, "" for none; it must not block.
	Announce func(string)
	// Log is slog.Default() when nil.
	Log *slog.Logger
}

// slot is one device as we know it.
type slot struct {
	index   int // 0 while there is none
	private wgtypes.Key
	made    time.Time
	peers   peers
	dressed bool // the link's MTU and addresses are as these peers need them
}

// Tunnels owns the devices. It implements hostgw.Tunnels.
type Tunnels struct {
	o        Options
	log      *slog.Logger
	ns       *linuxns.NS
	h        *netlink.Handle
	dev      devices
	names    [slots]string
	schedule schedule
	now      func() time.Time
	guard    guard
	links    [slots]atomic.Int64 // indexes, 0 is none

	mu        sync.Mutex
	slots     [slots]slot
	podCIDRs  []netip.Prefix // this node's, that the links were dressed for
	plan      plan
	ways      map[string]hostgw.Way
	announced string
	told      bool // Announce was called
	synced    error
	sealed    error         // with Required, why something may leave in plain
	wait      time.Duration // until peers that have not answered are looked at again
	leaving   time.Time     // when the devices go, with Off
	left      bool          // they are gone
}

var _ hostgw.Tunnels = (*Tunnels)(nil)

// New opens the namespace. It changes nothing; Sync does.
func New(o Options) (*Tunnels, error) {
	if o.Port == 0 {
		o.Port = DefaultPort
	}
	t := &Tunnels{
		o: o, log: o.Log, names: [slots]string{"vkm-wg0", "vkm-wg1"}, schedule: newSchedule(o.Rotation, o.NodeName), now: time.Now,
		synced: errors.New("the other nodes are not known yet"), wait: firstLook,
	}
	if t.log == nil {
		t.log = slog.Default()
	}
	var err error
	if t.ns, err = linuxns.Open(o.HostNetNS); err != nil {
		return nil, err
	}
	if t.h, err = t.ns.Netlink(); err != nil {
		return nil, errors.Join(err, t.ns.Close())
	}
	t.dev = &kernelDevices{ns: t.ns}
	t.guard.conn = nft.New(t.ns.FD(), guardTable, nft.SmallBuffer)
	if o.Mode == Required && !t.guard.stands() {
		t.sealed = errors.New("what keeps pods' packets from leaving in plain is not in place yet")
	}
	return t, nil
}

// Close implements hostgw.Tunnels.
func (t *Tunnels) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.dev.Close()
	t.h.Close()
	t.guard.close()
	_ = t.ns.Close()
}

// Wanted implements hostgw.Tunnels.
func (t *Tunnels) Wanted() bool { return t.o.Mode == Preferred || t.o.Mode == Required }

// UsesLink implements hostgw.Tunnels.
func (t *Tunnels) UsesLink(index int) bool {
	return index != 0 && (t.links[0].Load() == int64(index) || t.links[1].Load() == int64(index))
}

// Touched implements hostgw.Tunnels.
func (t *Tunnels) Touched(table string, portID uint32) bool {
	return table == guardTable && !t.guard.own(portID)
}

// Ready is nil when all of this node's part is in place.
func (t *Tunnels) Ready() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.synced
}

// Sealed is nil when nothing can leave in plain that must not, be there tunnels or not: no pod
// may start before. An agent that was here since the server's start has left it so.
func (t *Tunnels) Sealed() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sealed
}

func (t *Tunnels) port(slot int) int { return t.o.Port + slot }

const (
	firstLook = 100 * time.Millisecond
	lastLook  = 30 * time.Second
	// leaveAfter is what the other nodes are given to follow, with Off.
	leaveAfter = 30 * time.Second
)

// Sync implements hostgw.Tunnels.
func (t *Tunnels) Sync(in hostgw.TunnelInputs) (hostgw.TunnelPlan, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.Wanted() {
		return t.leave(in.Full)
	}
	now := t.now()
	fences, err := t.fences(&in)
	sealed := errors.Join(t.protect(in, fences), err)
	if t.sealed = nil; t.o.Mode == Required {
		t.sealed = sealed
	}
	err = errors.Join(t.sync(in, now), sealed)
	if err != nil && (t.synced == nil || t.synced.Error() != err.Error()) {
		t.log.Error("encryption of pods' traffic between nodes is not all in place", "error", err, "mode", t.o.Mode)
	}
	t.synced = err
	out := hostgw.TunnelPlan{Ways: t.decide(in, now), Fences: fences, Again: t.again(now)}
	if t.o.Mode == Preferred && errors.Is(err, ErrUnsupported) {
		err = nil // looked at again with the next full comparison
	}
	return out, err
}

// sync makes devices and peers.
func (t *Tunnels) sync(in hostgw.TunnelInputs, now time.Time) error {
	for slot := range t.slots {
		var err error
		if in.Full || t.slots[slot].index == 0 {
			err = t.open(slot, now)
		} else if t.silent(slot) {
			err = t.read(slot)
		}
		if errors.Is(err, ErrUnsupported) {
			t.announce("")
		}
		if err != nil {
			return err
		}
	}
	t.announce(t.self().String())
	t.plan = makePlan(inputs{TunnelInputs: in, self: t.self(), holders: t.plan.holders(), keepalive: t.o.Keepalive})
	idle := 1 - t.schedule.active(now)
	var errs []error
	for slot := range t.slots {
		if slot == idle && t.schedule.due(now, t.slots[slot].made) {
			errs = append(errs, t.rekey(slot, t.plan.slots[slot], now))
		} else {
			errs = append(errs, t.apply(slot))
		}
		errs = append(errs, t.dress(slot, in))
	}
	t.podCIDRs = in.Self
	t.announce(t.self().String())
	return errors.Join(errs...)
}

// holders is whose the keys are.
func (p plan) holders() map[wgtypes.Key]string {
	out := map[wgtypes.Key]string{}
	for name, keys := range p.keys {
		for _, e := range keys {
			out[e.key] = name
		}
	}
	return out
}

// self is what the other nodes have to know.
func (t *Tunnels) self() (a announcement) {
	for i := range a {
		a[i] = endpoint{key: t.slots[i].private.PublicKey(), port: uint16(t.port(i))}
	}
	return a
}

func (t *Tunnels) announce(text string) {
	if t.told && t.announced == text {
		return
	}
	t.announced, t.told = text, true
	if t.o.Announce != nil {
		t.o.Announce(text)
	}
}

// silent says whether a peer of the slot has not answered yet.
func (t *Tunnels) silent(slot int) bool {
	for _, p := range t.slots[slot].peers {
		if !p.answered {
			return true
		}
	}
	return false
}

func (t *Tunnels) read(slot int) error {
	d, err := t.dev.Device(t.names[slot])
	if err != nil {
		return fmt.Errorf("read device %s: %w", t.names[slot], err)
	}
	t.slots[slot].peers = fromDevice(d)
	return nil
}

// apply makes the peers of a device as planned, in one message if they are few.
func (t *Tunnels) apply(slot int) error {
	s, want := &t.slots[slot], t.plan.slots[slot]
	configs := diff(want, s.peers)
	if len(configs) == 0 {
		return nil
	}
	if err := t.dev.ConfigureDevice(t.names[slot], wgtypes.Config{Peers: configs}); err != nil {
		return fmt.Errorf("configure the peers of %s: %w", t.names[slot], err)
	}
	t.log.Debug("changed WireGuard peers", "link", t.names[slot], "peers", len(configs))
	s.peers, s.dressed, t.wait = after(s.peers, configs, want), false, firstLook
	return nil
}

// dress gives a link its MTU and addresses. Packets may come in by one device and be answered
// by the other, so a stricter rp_filter of the host must not hold here; who may send what is
// the business of the peers' allowed addresses.
func (t *Tunnels) dress(slot int, in hostgw.TunnelInputs) error {
	s, name := &t.slots[slot], t.names[slot]
	if !in.Full && s.dressed && slices.Equal(t.podCIDRs, in.Self) {
		return nil
	}
	l, err := t.h.LinkByIndex(s.index)
	if err != nil {
		return fmt.Errorf("look up link %s: %w", name, err)
	}
	if mtu := t.mtu(in, t.plan.slots[slot]); l.Attrs().MTU != mtu {
		if err := t.h.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set MTU of link %s to %d: %w", name, mtu, err)
		}
	}
	err = t.ns.Do(func() error {
		_, err := linuxns.SetSysctl(linuxns.Sysctl{Key: "net/ipv4/conf/" + name + "/rp_filter", Value: "2"})
		return err
	})
	err = errors.Join(err, hostgw.SyncAddresses(t.h, s.index, name, in.Self))
	s.dressed = err == nil
	return err
}

// defaultMTU is that of an Ethernet link.
const defaultMTU = 1500

// mtu is what fits into the smallest of the links that lead to peers.
func (t *Tunnels) mtu(in hostgw.TunnelInputs, want peers) int {
	over := map[int]int{}
	for _, p := range want {
		link, _, err := in.Lookup(p.endpoint.Addr())
		if err != nil {
			continue
		}
		takes := Overhead6
		if p.endpoint.Addr().Is4() {
			takes = Overhead4
		}
		over[link] = max(over[link], takes)
	}
	mtu := 0
	for link, takes := range over {
		if l, err := t.h.LinkByIndex(link); err == nil && (mtu == 0 || l.Attrs().MTU-takes < mtu) {
			mtu = l.Attrs().MTU - takes
		}
	}
	if mtu == 0 {
		return defaultMTU - Overhead6
	}
	return mtu
}

// decide says by which way each peer is reached.
func (t *Tunnels) decide(in hostgw.TunnelInputs, now time.Time) map[string]hostgw.Way {
	active := t.schedule.active(now)
	ways := map[string]hostgw.Way{}
	for _, node := range in.Peers {
		ways[node.Name] = t.way(node.Name, active)
	}
	t.ways = ways
	return ways
}

func (t *Tunnels) way(node string, active int) hostgw.Way {
	var err error
	switch keys, ok := t.plan.keys[node]; {
	case t.slots[0].index == 0 || t.slots[1].index == 0:
		err = t.synced
	case !ok:
		err = t.plan.errs[node]
	default:
		have := [slots]peers{t.slots[0].peers, t.slots[1].peers}
		if slot, works := choose(active, keys, have); works || t.o.Mode == Required {
			return hostgw.Way{Link: t.slots[slot].index}
		}
	}
	if t.o.Mode == Required {
		if err == nil {
			err = errors.New("there is no tunnel to the node")
		}
		return hostgw.Way{Err: err}
	}
	return hostgw.Way{}
}

// again is when there may be something to do without an event: WireGuard tells nobody that a
// peer has answered.
func (t *Tunnels) again(now time.Time) time.Duration {
	next := t.schedule.next(now)
	if t.slots[0].index == 0 || t.slots[1].index == 0 || !t.silent(0) && !t.silent(1) {
		t.wait = firstLook
		return next
	}
	wait := t.wait
	t.wait = min(2*wait, lastLook)
	if next > 0 {
		wait = min(wait, next)
	}
	return wait
}

// leave takes back what was told, and later, when the others have followed, the devices.
func (t *Tunnels) leave(full bool) (hostgw.TunnelPlan, error) {
	t.announce("")
	now := t.now()
	if t.leaving.IsZero() {
		t.leaving = now.Add(leaveAfter)
	}
	t.synced = t.guard.sync(guarded{}, full)
	left := t.leaving.Sub(now)
	if left <= 0 && (full || !t.left) {
		t.synced = errors.Join(t.synced, t.removeLinks())
		t.left = t.synced == nil
	}
	return hostgw.TunnelPlan{Again: max(0, left)}, t.synced
}

// fences are the ranges that nothing plain may go to. One that holds a node's own address, or
// overlaps a subnet of the host, would cut the node off.
func (t *Tunnels) fences(in *hostgw.TunnelInputs) (fences []netip.Prefix, err error) {
	if t.o.Mode != Required {
		return nil, nil
	}
	var errs []error
	for _, c := range t.o.ClusterCIDRs {
		if what := inTheWay(c, in); what != "" {
			errs = append(errs, fmt.Errorf("network.clusterCIDRs: %s holds %s, so not all of it can be kept from leaving in plain: name the pods' ranges only", c, what))
			continue
		}
		fences = append(fences, c)
	}
	return fences, errors.Join(errs...)
}

func inTheWay(c netip.Prefix, in *hostgw.TunnelInputs) string {
	for _, s := range in.Subnets {
		own := slices.ContainsFunc(in.Self, func(self netip.Prefix) bool { return self.Overlaps(s) && self.Bits() <= s.Bits() })
		if c.Overlaps(s) && !own {
			return "the host's subnet " + s.String()
		}
	}
	for _, node := range in.Peers {
		for _, a := range node.Addrs {
			if c.Contains(a) {
				return "the address " + a.String() + " of node " + node.Name
			}
		}
	}
	return ""
}
