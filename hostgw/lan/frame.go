package lan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Operations of ARP (RFC 826).
const (
	arpRequest = 1
	arpReply   = 2
)

var (
	broadcast   = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

// arp is an ARP packet for IPv4 over Ethernet.
type arp struct {
	op                   uint16
	senderMAC, targetMAC net.HardwareAddr
	sender, target       netip.Addr
}

// arpHead is hardware Ethernet, protocol IPv4, lengths 6 and 4.
var arpHead = []byte{0, 1, 8, 0, 6, 4}

func (p *arp) bytes() []byte {
	b := binary.BigEndian.AppendUint16(bytes.Clone(arpHead), p.op)
	b = append(append(b, p.senderMAC...), p.sender.AsSlice()...)
	return append(append(b, p.targetMAC...), p.target.AsSlice()...)
}

func parseARP(b []byte) (p arp, ok bool) {
	if len(b) < 28 || !bytes.Equal(b[:6], arpHead) {
		return p, false
	}
	p.op, p.senderMAC, p.targetMAC = binary.BigEndian.Uint16(b[6:]), net.HardwareAddr(b[8:14]), net.HardwareAddr(b[18:24])
	p.sender, p.target = netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	return p, true
}

const ip6Header = 40

// neighbour is a message of neighbour discovery with its addresses.
type neighbour struct {
	from, to netip.Addr
	message  ndp.Message
}

// bytes is the message in an IPv6 packet.
func (n *neighbour) bytes() ([]byte, error) {
	body, err := ndp.MarshalMessageChecksum(n.message, n.from, n.to)
	if err != nil {
		return nil, fmt.Errorf("encode a message of neighbour discovery: %w", err)
	}
	b := []byte{0x60, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, unix.IPPROTO_ICMPV6, ndp.HopLimit)
	b = append(append(b, n.from.AsSlice()...), n.to.AsSlice()...)
	return append(b, body...), nil
}

// parseNeighbour takes what RFC 4861, 7.1, calls valid: from this link, with a good checksum.
func parseNeighbour(b []byte) (n neighbour, ok bool) {
	if len(b) < ip6Header || b[0]>>4 != 6 || b[6] != unix.IPPROTO_ICMPV6 || b[7] != ndp.HopLimit {
		return n, false
	}
	size := ip6Header + int(binary.BigEndian.Uint16(b[4:]))
	if len(b) < size || checksum(b[:size]) != 0xffff {
		return n, false
	}
	n.from, n.to = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	var err error
	n.message, err = ndp.ParseMessage(b[ip6Header:size])
	return n, err == nil
}

// checksum adds up an ICMPv6 packet with its pseudo-header (RFC 8200, 8.1): 0xffff is right.
func checksum(packet []byte) uint16 {
	body := packet[ip6Header:]
	sum := uint32(len(body)) + unix.IPPROTO_ICMPV6
	for _, part := range [][]byte{packet[8:ip6Header], body} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
		if len(part)%2 == 1 {
			sum += uint32(part[len(part)-1]) << 8
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// groupMAC is where a multicast address is sent to (RFC 2464, 7).
func groupMAC(group netip.Addr) net.HardwareAddr {
	b := group.As16()
	return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// neighbourFilter lets ICMPv6 solicitations and advertisements of neighbours through.
// Offsets count from the IPv6 header.
var neighbourFilter = must(bpf.Assemble([]bpf.Instruction{
	bpf.LoadAbsolute{Off: 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 4},
	bpf.LoadAbsolute{Off: ip6Header, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 135, SkipTrue: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 136, SkipTrue: 1},
	bpf.RetConstant{Val: 1 << 16},
	bpf.RetConstant{Val: 0},
}))

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
