package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// Protocol is an IP protocol number; 0 is any.
type Protocol uint8

// protocolOf is the number of a protocol that policies know; TCP when it is not given.
func protocolOf(p corev1.Protocol) (Protocol, error) {
	switch p {
	case corev1.ProtocolTCP, "":
		return unix.IPPROTO_TCP, nil
	case corev1.ProtocolUDP:
		return unix.IPPROTO_UDP, nil
	case corev1.ProtocolSCTP:
		return unix.IPPROTO_SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q is none of TCP, UDP and SCTP", p)
}

// String is the protocol's name in nftables.
func (p Protocol) String() string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// Pod is what policies ask of a pod, on this node or another.
type Pod struct {
	UID             string
	Namespace, Name string
	Node            string
	Labels          map[string]string
	// IPs of a pod on the host's network are the node's: it counts as a peer, but no policy
	// isolates it.
	IPs         []netip.Addr
	HostNetwork bool
	// Finished pods have given their addresses back.
	Finished bool
	Created  int64 // seconds since 1970
	Ports    []NamedPort
	// Admitted says that this node is about to start the pod, or has: it has its addresses
	// from the node and not from the API.
	Admitted bool
}

// equal says whether nothing that policies ask has changed.
func (p *Pod) equal(o *Pod) bool {
	return p.UID == o.UID && p.Namespace == o.Namespace && p.Node == o.Node && p.HostNetwork == o.HostNetwork && p.Finished == o.Finished &&
		p.Admitted == o.Admitted && mapsEqual(p.Labels, o.Labels) && slices.Equal(p.IPs, o.IPs) && slices.Equal(p.Ports, o.Ports)
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// NamedPort is a container's port that has a name.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Direction of a connection, seen from the pod that a policy selects.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota
	Egress
)

// String names the direction.
func (d Direction) String() string { return [...]string{"ingress", "egress"}[d] }

var directions = []Direction{Ingress, Egress}
