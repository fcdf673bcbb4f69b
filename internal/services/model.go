package services

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// Protocol is an IP protocol number.
type Protocol uint8

// protocolOf is the number of a Service's protocol; 0 for what cannot be proxied.
func protocolOf(p corev1.Protocol) Protocol {
	switch p {
	case corev1.ProtocolTCP, "":
		return unix.IPPROTO_TCP
	case corev1.ProtocolUDP:
		return unix.IPPROTO_UDP
	case corev1.ProtocolSCTP:
		return unix.IPPROTO_SCTP
	}
	return 0
}

// String is the protocol's name.
func (p Protocol) String() string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Kind is what sort of address a Frontend is.
type Kind uint8

// The kinds differ in who may use them and whether clients keep their address.
const (
	ClusterIP Kind = iota
	External       // an external IP or a load balancer's
	NodePort       // every address of the node
)

// String names the kind.
func (k Kind) String() string {
	return [...]string{"clusterIP", "external", "nodePort"}[k]
}

// Frontend is one address that clients of a Service connect to.
type Frontend struct {
	Kind Kind
	// Addr is 0.0.0.0 or :: for a NodePort.
	Addr netip.Addr
	Port uint16
	// Local restricts the frontend to this node's endpoints (internalTrafficPolicy or
	// externalTrafficPolicy Local).
	Local bool
	// Limited lets only Sources connect, of which there may be none in this IP version.
	Limited bool
	Sources []netip.Prefix
}

// Port is one port of a Service in one IP version: what its frontends lead to.
type Port struct {
	// ID is namespace/name:port/protocol.
	ID       string
	Protocol Protocol
	Frontend []Frontend
	// Cluster are the endpoints for everybody, Here those of this node; the position in
	// the slice is the slot in the kernel's map.
	Cluster, Here []netip.AddrPort
	// Serving are the endpoints that UDP clients may stay with, sorted: also those that end and
	// get nobody new. Other protocols need none.
	Serving []netip.AddrPort
	// Near are the endpoints of this node, whichever list they are in.
	Near []netip.Addr
	// Affinity is how long a client stays with its endpoint; 0 is no affinity.
	Affinity time.Duration
	// Some says that there is a usable endpoint somewhere, maybe not for this node.
	Some bool
}

// IPv6 says which of the tables the port is in.
func (p *Port) IPv6() bool { return len(p.Frontend) > 0 && p.Frontend[0].Addr.Is6() }

// String shows the port for people and tests.
func (p *Port) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", p.ID)
	for _, f := range p.Frontend {
		fmt.Fprintf(&b, " %s=%s", f.Kind, netip.AddrPortFrom(f.Addr, f.Port))
		if f.Local {
			b.WriteString("(local)")
		}
		if f.Limited {
			fmt.Fprintf(&b, "%v", f.Sources)
		}
	}
	fmt.Fprintf(&b, " → %v", p.Cluster)
	if len(p.Here) > 0 {
		fmt.Fprintf(&b, " here %v", p.Here)
	}
	if p.Affinity > 0 {
		fmt.Fprintf(&b, " affinity %s", p.Affinity)
	}
	if !p.Some {
		b.WriteString(" nobody")
	}
	return b.String()
}
