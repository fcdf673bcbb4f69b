package probes

import (
	"bytes"
	"context"
	"net/http"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// route is what a call needs to know of its target: it is the same from run to run, as
// long as the pod's address is.
type route struct {
	podIP   string
	at      netip.AddrPort
	to      unix.Sockaddr // at, for connect(2)
	request *http.Request // nil for a tcp probe
	wire    []byte        // the request as it is sent
}

// routeOf is nil for a probe that is not for a call: one that asks by TLS or a name,
// that is no http or tcp probe, or that is wrong, which whoever runs it will say.
func routeOf(spec *corev1.Probe, target Target) *route {
	switch {
	case spec.Exec != nil:
	case spec.HTTPGet != nil:
		return httpRoute(spec.HTTPGet, target)
	case spec.TCPSocket != nil:
		port, err := resolvePort(spec.TCPSocket.Port, target.Container)
		if err == nil {
			return routeTo(address(spec.TCPSocket.Host, target.PodIP, port), target)
		}
	}
	return nil
}

func httpRoute(get *corev1.HTTPGetAction, target Target) *route {
	req, err := newRequest(context.Background(), get, target, userAgent)
	if err != nil || req.URL.Scheme != "http" || req.URL.User != nil {
		return nil
	}
	r := routeTo(req.URL.Host, target)
	if r == nil {
		return nil
	}
	out := req.Clone(req.Context())
	out.Close = true
	var wire bytes.Buffer
	if out.Write(&wire) != nil {
		return nil
	}
	r.request, r.wire = req, wire.Bytes()
	return r
}

func routeTo(address string, target Target) *route {
	at, err := netip.ParseAddrPort(address)
	if err != nil || at.Addr().Zone() != "" {
		return nil
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	return &route{podIP: target.PodIP, at: at, to: sockaddrOf(at)}
}

// socket makes the route's kind of socket, that never blocks.
func (r *route) socket() (int, error) {
	family := unix.AF_INET
	if r.at.Addr().Is6() {
		family = unix.AF_INET6
	}
	return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
}

func sockaddrOf(at netip.AddrPort) unix.Sockaddr {
	if at.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
	}
	return &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
}

// localOf is a socket's own address. The one of x/sys makes a second system call.
func localOf(socket int) netip.AddrPort {
	sa, _ := syscall.Getsockname(socket)
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *syscall.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
