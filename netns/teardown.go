package netns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/paths"
)

// reapPatience is how long the kernel may take to end a link with its namespace before
// the link is deleted directly (something still holds the namespace, a stray process
// or an open port-forward).
const reapPatience = time.Second

// doomed is a link that is on its way out; its addresses are not given away before.
type doomed struct {
	link  int
	name  string
	uid   string
	ips   []netip.Addr
	since time.Time // zero: delete now
}

// Teardown implements Network. When it returns, host ports and permission to send are
// gone and the namespace is unbound. The kernel ends the link together with the
// namespace, many at once and cheaper than one by one, a little later; until then List
// still shows the pod and its address is not given to another.
func (m *Manager) Teardown(ctx context.Context, podUID string) error {
	fail := func(err error) error { return fmt.Errorf("tear down network of pod %s: %w", podUID, err) }
	if err := checkUID(podUID); err != nil {
		return fail(err)
	}
	unlock, err := m.locks.LockContext(ctx, podUID)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if err := m.withdraw(podUID); err != nil {
		return fail(err)
	}
	if err := m.step("teardown rules"); err != nil {
		return fail(err)
	}
	if err := m.doom(podUID); err != nil {
		return fail(err)
	}
	if err := removeNamespace(m.layout, podUID); err != nil {
		return fail(err)
	}
	signal(m.reaping)
	return m.step("teardown namespace")
}

// removeNamespace unbinds the pod's namespace. Others may lie beside it, then the directory
// stays for them.
func removeNamespace(layout paths.Layout, podUID string) error {
	path := layout.Namespace(podUID, "net")
	if err := linuxns.Remove(path); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(path))
	return nil
}

func (m *Manager) step(name string) error {
	if m.onStep == nil {
		return nil
	}
	return m.onStep(name)
}

// withdraw takes the pod out of the table.
func (m *Manager) withdraw(uid string) error {
	m.mu.Lock()
	rec := m.pods[uid]
	m.mu.Unlock()
	if rec == nil {
		return nil
	}
	old, err := m.takePorts(uid, rec, nil)
	if err != nil {
		return err
	}
	if err := m.rules.change(podElements(linkName(uid), rec.ips, old), elements{}); err != nil {
		return err
	}
	m.forgetUDP(old, nil)
	return nil
}

// doom moves the pod from the known ones to those that wait for their link's end.
func (m *Manager) doom(uid string) error {
	l, err := linkByName(m.nl, linkName(uid))
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	rec := m.pods[uid]
	if rec == nil && l == nil {
		return nil
	}
	d := doomed{name: linkName(uid), uid: uid, since: time.Now()}
	if rec != nil {
		d.ips = rec.ips
	}
	if l != nil {
		d.link = l.Attrs().Index
		if l.Attrs().Group != LinkGroup {
			return nil // not ours, whatever its name
		}
	}
	delete(m.pods, uid)
	m.dying[d.name] = d
	return nil
}

// reap forgets links that are gone and deletes those that should be; it says when to
// look again (0: nothing waits).
func (m *Manager) reap() time.Duration {
	m.mu.Lock()
	waiting := make([]doomed, 0, len(m.dying))
	for _, d := range m.dying {
		waiting = append(waiting, d)
	}
	m.mu.Unlock()
	left := false
	for _, d := range waiting {
		if !m.reapOne(d, reapPatience) {
			left = true
		}
	}
	if left {
		return reapEvery
	}
	return 0
}

// reapOne says whether the link is gone.
func (m *Manager) reapOne(d doomed, patience time.Duration) bool {
	if d.link != 0 {
		l, err := m.nl.LinkByIndex(d.link)
		if err == nil && time.Since(d.since) >= patience {
			if err = m.nl.LinkDel(l); err != nil && !notFound(err) {
				m.log.Warn("cannot delete the link of a removed pod", "pod", d.uid, "link", d.name, "error", err)
			}
			_, err = m.nl.LinkByIndex(d.link)
		}
		if !notFound(err) {
			return false
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dying[d.name].link == d.link {
		delete(m.dying, d.name)
	}
	m.alloc.release(d.uid, d.ips)
	m.alloc.release(d.name, d.ips)
	return true
}

// finishTeardown ends what a Teardown, or a killed Setup, of this pod left; its addresses are free afterwards.
func (m *Manager) finishTeardown(uid string) error {
	if err := m.withdraw(uid); err != nil {
		return err
	}
	if err := m.doom(uid); err != nil {
		return err
	}
	m.mu.Lock()
	d, ok := m.dying[linkName(uid)]
	m.mu.Unlock()
	if ok && !m.reapOne(d, 0) {
		return fmt.Errorf("link %s of an earlier set-up cannot be removed", d.name)
	}
	return nil
}

// forgetUDP drops the connection tracking entries of UDP host ports that appear or go:
// an entry from before would keep sending a client's datagrams the old way for as long
// as it talks. Best effort; TCP and SCTP end by themselves.
func (m *Manager) forgetUDP(old, now map[hostPortKey]netip.AddrPort) {
	for k := range old {
		if _, stays := now[k]; !stays {
			m.forgetUDPPort(k)
		}
	}
	for k := range now {
		if _, was := old[k]; !was {
			m.forgetUDPPort(k)
		}
	}
}

func (m *Manager) forgetUDPPort(k hostPortKey) {
	if k.proto != unix.IPPROTO_UDP {
		return
	}
	f := &netlink.ConntrackFilter{}
	_ = f.AddProtocol(unix.IPPROTO_UDP)
	_ = f.AddPort(netlink.ConntrackOrigDstPort, k.port)
	if !k.ip.IsUnspecified() {
		_ = f.AddIP(netlink.ConntrackOrigDstIP, k.ip.AsSlice())
	}
	if _, err := m.nl.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(netlinkFamily(k.ip)), f); err != nil {
		m.log.Warn("cannot forget the flows of a UDP host port", "port", k.String(), "error", err)
	}
}
