package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/paths"
)

// Dial implements Network. The host of address is "localhost" or empty (127.0.0.1 is
// tried, then ::1) or an IP; names are not resolved. network is tcp, tcp4 or tcp6. Only
// the making of the socket happens on a thread of the pod's namespace.
func (m *Manager) Dial(ctx context.Context, podUID, network, address string) (net.Conn, error) {
	return dialPod(ctx, m.layout, podUID, network, address)
}

func dialPod(ctx context.Context, layout paths.Layout, podUID, network, address string) (net.Conn, error) {
	c, err := tryDial(ctx, layout, podUID, network, address)
	if err != nil {
		return nil, fmt.Errorf("dial %s in pod %s: %w", address, podUID, err)
	}
	return c, nil
}

func tryDial(ctx context.Context, layout paths.Layout, podUID, network, address string) (net.Conn, error) {
	if err := checkUID(podUID); err != nil {
		return nil, err
	}
	targets, err := dialTargets(network, address)
	if err != nil {
		return nil, err
	}
	ns, err := linuxns.Open(layout.Namespace(podUID, "net"))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	var errs []error
	for _, to := range targets {
		c, err := dialIn(ctx, ns, to)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// dialTargets is the list of addresses to try.
func dialTargets(network, address string) ([]netip.AddrPort, error) {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := net.LookupPort("tcp", service)
	if err != nil {
		return nil, err
	}
	ips := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	if host != "" && !strings.EqualFold(host, "localhost") {
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return nil, err
		}
		ips = []netip.Addr{ip.Unmap()}
	}
	var out []netip.AddrPort
	for _, ip := range ips {
		if network == "tcp" || ip.Is4() == (network == "tcp4") {
			out = append(out, netip.AddrPortFrom(ip, uint16(port)))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no address for %s", host, network)
	}
	return out, nil
}

// dialIn makes a socket inside the namespace and connects it from here.
func dialIn(ctx context.Context, ns *linuxns.NS, to netip.AddrPort) (net.Conn, error) {
	domain, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(to.Port()), Addr: last4(to.Addr())})
	if to.Addr().Is6() {
		domain, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	var fd int
	if err := ns.Do(func() (err error) {
		fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
		return err
	}); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), to.String())
	defer f.Close() // net.FileConn has its own
	if err := connect(ctx, f, sa); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return net.FileConn(f)
}

// connect waits for the connection or the end of ctx.
func connect(ctx context.Context, f *os.File, sa unix.Sockaddr) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	started := false
	var result error
	err = raw.Write(func(fd uintptr) (done bool) {
		if !started {
			started = true
			result = unix.Connect(int(fd), sa)
			return !errors.Is(result, unix.EINPROGRESS)
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		result = err
		if err == nil && code != 0 {
			result = unix.Errno(code)
		}
		return true
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, result)
}

// last4 is an IPv4 address, or the low end of an IPv6 one.
func last4(ip netip.Addr) (b [4]byte) {
	all := ip.As16()
	copy(b[:], all[12:])
	return b
}
