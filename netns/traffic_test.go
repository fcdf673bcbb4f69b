package netns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

// serve answers on a TCP or UDP address inside a namespace with what it sees as the
// client's address, until the test ends. It returns the port.
func serve(t testing.TB, ns *linuxns.NS, network, address string) uint16 {
	t.Helper()
	var port uint16
	must(t, ns.Do(func() error {
		if network[:3] == "udp" {
			pc, err := net.ListenPacket(network, address)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = pc.Close() })
			port = pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			go serveUDP(pc)
			return nil
		}
		l, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		port = l.Addr().(*net.TCPAddr).AddrPort().Port()
		go serveTCP(l)
		return nil
	}))
	return port
}

func serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = fmt.Fprintf(c, "%s\n", c.RemoteAddr())
		_ = c.Close()
	}
}

func serveUDP(pc net.PacketConn) {
	b := make([]byte, 64)
	for {
		_, from, err := pc.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = pc.WriteTo([]byte(from.String()+"\n"), from)
	}
}

// silence is how long nobody may answer for there to be none, patience how long an answer
// may take that has to come: the machine may be busy.
const silence, patience = 700 * time.Millisecond, 30 * time.Second

// ask connects from inside a namespace and returns the client's address as the server saw it.
func ask(ns *linuxns.NS, network string, to netip.AddrPort) (netip.Addr, error) {
	return askFrom(ns, network, nil, to, patience)
}

func askFrom(ns *linuxns.NS, network string, local net.Addr, to netip.AddrPort, patience time.Duration) (netip.Addr, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err = (&net.Dialer{LocalAddr: local}).DialContext(ctx, network, to.String())
		return err
	})
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	if err := testnet.FirstPassed(c); err != nil {
		return netip.Addr{}, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if network[:3] == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return netip.Addr{}, err
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) || line == "" {
		return netip.Addr{}, fmt.Errorf("no answer: %w", err)
	}
	seen, err := netip.ParseAddrPort(line[:len(line)-1])
	return seen.Addr().Unmap(), err
}

// seen asserts which address the server sees.
func seen(t testing.TB, what string, ns *linuxns.NS, network string, to netip.AddrPort, want netip.Addr) {
	t.Helper()
	got, err := ask(ns, network, to)
	if err != nil || got != want {
		t.Errorf("%s: %s %s: the server saw %v (%v), want %v", what, network, to, got, err, want)
	}
}
