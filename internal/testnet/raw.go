package testnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// Packet is the first of a connection. Its source port tells it from others.
type Packet struct {
	From, To netip.Addr
	Protocol uint8 // TCP, UDP or SCTP
	ID       uint16
	Port     uint16
}

// bytes is the packet with its IP header. Checksums are left out: who checks them does so
// after the rules.
func (p Packet) bytes() []byte {
	l4 := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.ID), p.Port)
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		l4 = append(l4, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, 2, 255, 255, 0, 0, 0, 0)
	case unix.IPPROTO_UDP:
		l4 = append(l4, 0, 8, 0, 0)
	default: // an INIT chunk
		l4 = append(l4, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
	}
	if p.From.Is4() {
		h := []byte{0x45, 0, 0, byte(20 + len(l4)), 0, 0, 0, 0, 64, p.Protocol, 0, 0}
		return append(append(append(h, p.From.AsSlice()...), p.To.AsSlice()...), l4...)
	}
	h := []byte{0x60, 0, 0, 0, 0, byte(len(l4)), p.Protocol, 64}
	return append(append(append(h, p.From.AsSlice()...), p.To.AsSlice()...), l4...)
}

// Inject sends packets from inside a namespace, which must have their source addresses. All
// go through one processor's queue, in order.
func Inject(ns *linuxns.NS, packets ...Packet) error {
	return ns.Do(func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var before, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &before); err != nil {
			return fmt.Errorf("get affinity: %w", err)
		}
		for i := range 1024 {
			if before.IsSet(i) {
				one.Set(i)
				break
			}
		}
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("set affinity: %w", err)
		}
		defer func() { _ = unix.SchedSetaffinity(0, &before) }()
		for _, p := range packets {
			if err := send(p); err != nil {
				return fmt.Errorf("send %+v: %w", p, err)
			}
		}
		return nil
	})
}

func send(p Packet) error {
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: p.To.As16()})
	if p.To.Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: p.To.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, p.bytes(), 0, to); !errors.Is(err, unix.EPERM) { // EPERM: dropped on its way out
		return err
	}
	return nil
}

// Tap hears everything that reaches a namespace.
type Tap struct{ fd int }

// Listen opens a Tap; Close ends it.
func Listen(ns *linuxns.NS) (*Tap, error) {
	t := &Tap{}
	return t, ns.Do(func() (err error) {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
		t.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		// As root; a test that floods would lose what it waits for.
		_ = unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		timeout := unix.NsecToTimeval(int64(30 * time.Second))
		return unix.SetsockoptTimeval(t.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	})
}

// Close ends the Tap.
func (t *Tap) Close() { _ = unix.Close(t.fd) }

// Until returns what came before the last packet, and takes it all. Answers of the hosts
// are among it: ports, or ICMP's type and code, are where packets have their ID.
func (t *Tap) Until(last Packet) (map[Packet]bool, error) {
	seen := map[Packet]bool{}
	b := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(t.fd, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("wait for a packet to port %d: %w", last.Port, err)
		}
		if l, ok := from.(*unix.SockaddrLinklayer); !ok || l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		p, ok := parse(b[:n])
		if !ok {
			continue
		}
		if p == last {
			return seen, nil
		}
		seen[p] = true
	}
}

func parse(b []byte) (p Packet, ok bool) {
	var l4 int
	switch {
	case len(b) >= 24 && b[0]>>4 == 4:
		p.From, p.To = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		p.Protocol, l4 = b[9], 20
	case len(b) >= 44 && b[0]>>4 == 6:
		p.From, p.To = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		p.Protocol, l4 = b[6], 40
	default:
		return p, false
	}
	p.ID, p.Port = binary.BigEndian.Uint16(b[l4:]), binary.BigEndian.Uint16(b[l4+2:])
	return p, true
}
