package netns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/keylock"
	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/paths"
)

// Options of a Manager.
type Options struct {
	Layout paths.Layout
	// HostNetNS is the path of the network namespace that is the host's; empty is the
	// process's own.
	HostNetNS string
	// Log is slog.Default() when nil.
	Log *slog.Logger
}

// Manager implements Network. All of its state is read back from the kernel by
// NewManager: link aliases hold the identity and the addresses, the table's own maps the
// host ports. It is safe for concurrent use.
type Manager struct {
	layout paths.Layout
	log    *slog.Logger
	host   *linuxns.NS
	nl     *netlink.Handle
	rules  *rules
	locks  keylock.Mutex
	// turns lets few pods be set up at a time, the first one first: the kernel changes links one
	// after the other, whatever the namespace, and pods whose networks are all half made start
	// late together.
	turns *semaphore.Weighted

	wake    chan struct{} // something changed: look at everything
	reaping chan struct{} // a link that is waited for may be gone
	broken  chan struct{} // a pod's link was taken down

	mu       sync.Mutex
	cfg      Config
	mtu      int
	notYet   error // why Ready is not nil
	alloc    *allocator
	pods     map[string]*podRecord
	ports    map[hostPortKey]string // the UID that holds the host port
	dying    map[string]doomed
	onStep   func(step string) error // tests: stop after a step, as a kill would
	sysctls  map[string]string       // host sysctls that we changed: what they were
	youngest []netip.Addr            // of the pod made last, at start
}

// atATime is how many networks are set up at once.
const atATime = 4

// podRecord is what the Manager knows of one pod that is set up or being set up.
type podRecord struct {
	ips   []netip.Addr
	ports map[hostPortKey]netip.AddrPort
	link  int // index of the host side once the pod is set up, else 0
}

var _ Network = (*Manager)(nil)

// NewManager opens the host's namespace and reads what earlier runs left in the
// kernel. It changes nothing. Close it after Run has returned.
func NewManager(o Options) (*Manager, error) {
	m := &Manager{
		layout: o.Layout, log: o.Log, wake: make(chan struct{}, 1), reaping: make(chan struct{}, 1), broken: make(chan struct{}, 1), alloc: newAllocator(),
		turns: semaphore.NewWeighted(atATime),
		pods:  map[string]*podRecord{}, ports: map[hostPortKey]string{}, dying: map[string]doomed{}, sysctls: map[string]string{},
		notYet: errors.New("the node has no podCIDR yet"),
	}
	if m.log == nil {
		m.log = slog.Default()
	}
	var err error
	if m.host, err = linuxns.Open(o.HostNetNS); err != nil {
		return nil, err
	}
	if m.nl, err = m.host.Netlink(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return nil, errors.Join(err, m.host.Close())
	}
	m.rules = newRules(m.host.FD())
	if err := m.load(); err != nil {
		m.Close()
		return nil, fmt.Errorf("read pod networks from the kernel: %w", err)
	}
	return m, nil
}

// Close releases sockets and descriptors. Pods keep their network.
func (m *Manager) Close() {
	m.rules.close()
	m.nl.Close()
	_ = m.host.Close()
}

// SetConfig gives the host side, when the Node object is known and whenever it changes.
// Pods that are set up keep their addresses. Invalid prefixes are an error and change
// nothing; the rest happens in Run, and Ready tells.
func (m *Manager) SetConfig(c Config) error {
	for _, p := range slices.Concat(c.PodCIDRs, c.ClusterCIDRs, c.NoMasquerade) {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("configure pod network: %s is not a network prefix", p)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cfg = c
	m.alloc.setCIDRs(c.PodCIDRs)
	m.alloc.resume(m.youngest)
	m.youngest = nil
	m.kick()
	return nil
}

// Ready is nil once the host side is in place.
func (m *Manager) Ready() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.notYet
}

func (m *Manager) kick() { signal(m.wake) }

// signal wakes without waiting; one that is pending is enough.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

const (
	checkEvery = 30 * time.Second       // the slow look at everything
	reapEvery  = 250 * time.Millisecond // only while links wait for their end
	retryAfter = time.Second            // after an error on the host side
)

// Run keeps the host side in place until ctx ends: sysctls, the table (also after
// somebody flushed it), the MTU, the end of torn-down links. It returns an error only
// when it cannot listen to the kernel.
func (m *Manager) Run(ctx context.Context) error {
	stop, failed, err := m.watch(ctx)
	if err != nil {
		return err
	}
	defer stop()
	slow := time.NewTicker(checkEvery)
	defer slow.Stop()
	retry := m.reconcile()
	for {
		waiting := m.reap()
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-m.reaping:
		case <-after(waiting):
		case <-m.wake:
			retry = m.reconcile()
		case <-m.broken:
			m.repair(ctx)
		case <-slow.C:
			retry = m.reconcile()
			m.repair(ctx)
		case <-after(retry):
			retry = m.reconcile()
		}
	}
}

// after is never for 0.
func after(d time.Duration) <-chan time.Time {
	if d == 0 {
		return nil
	}
	return time.After(d)
}

// reconcile brings the host side in step and says when to try again (0: it is).
func (m *Manager) reconcile() (retry time.Duration) {
	m.mu.Lock()
	cfg := m.cfg
	m.mu.Unlock()
	if len(cfg.PodCIDRs) == 0 {
		return 0
	}
	err := m.hostSide(cfg)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil && (m.notYet == nil || m.notYet.Error() != err.Error()) {
		m.log.Error("pod network is not ready", "error", err)
	}
	if err == nil && m.notYet != nil {
		m.log.Info("pod network is ready", "podCidrs", cfg.PodCIDRs, "mtu", m.mtu, "pods", len(m.pods))
	}
	m.notYet = err
	if err != nil {
		return retryAfter
	}
	return 0
}

// hostSide puts in place what all pods share.
func (m *Manager) hostSide(cfg Config) error {
	if err := m.setHostSysctls(cfg.PodCIDRs); err != nil {
		return err
	}
	mtu := cfg.MTU
	if mtu == 0 {
		mtu = uplinkMTU(m.nl) - cfg.Overhead
	}
	m.mu.Lock()
	m.mtu = mtu
	local := m.localRanges(cfg.PodCIDRs)
	m.mu.Unlock()
	noMasq := slices.Concat(cfg.ClusterCIDRs, local, cfg.NoMasquerade)
	slices.SortFunc(noMasq, netip.Prefix.Compare) // so that another order is no change
	if err := m.rules.configure(cfg.Masquerade, local, noMasq); err != nil {
		return err
	}
	healed, err := m.rules.check()
	if healed && err == nil {
		m.log.Warn("nftables table was changed by somebody else and has been put back", "table", tableName)
	}
	return err
}

// localRanges are the podCIDRs and the addresses of pods from earlier ones.
func (m *Manager) localRanges(cidrs []netip.Prefix) []netip.Prefix {
	local := slices.Clone(cidrs)
	for _, p := range m.pods {
		for _, ip := range p.ips {
			if !contains(cidrs, ip) {
				local = append(local, netip.PrefixFrom(ip, ip.BitLen()))
			}
		}
	}
	slices.SortFunc(local, netip.Prefix.Compare)
	return local
}
