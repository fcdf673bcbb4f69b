package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// serve answers every connection and datagram at both target ports: the server's address and the
// client's as the server sees it.
func (w *oracleWorld) serve(p *place) {
	w.Helper()
	for _, port := range oraclePorts {
		for _, a := range []netip.Addr{p.v4, p.v6} {
			at := netip.AddrPortFrom(a, uint16(port))
			var l net.Listener
			var u *net.UDPConn
			w.inside(p.netns, func() (err error) {
				if l, err = (&net.ListenConfig{}).Listen(w.Context(), "tcp", at.String()); err == nil {
					u, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
				}
				return err
			})
			w.Cleanup(func() { _ = errors.Join(l.Close(), u.Close()) })
			go answerTCP(l, at)
			go answerUDP(u, at)
		}
	}
}

func answerTCP(l net.Listener, at netip.AddrPort) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		_, _ = fmt.Fprintf(c, "%s %s", at, from)
		_ = c.Close()
	}
}

func answerUDP(u *net.UDPConn, at netip.AddrPort) {
	buf := make([]byte, 64)
	for {
		_, from, err := u.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = u.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s", at, from.Addr().Unmap()), from)
		}
	}
}
