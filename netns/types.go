package netns

import (
	"context"
	"net"
	"net/netip"
)

// PodNetwork asks for a pod's network.
type PodNetwork struct {
	PodUID    string     `json:"podUID"`
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	HostPorts []HostPort `json:"hostPorts,omitempty"`
	// Sysctls are net.* ones, set inside the namespace before any container starts.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Bandwidth is in force before any container starts.
	Bandwidth Bandwidth `json:"bandwidth"`
}

// HostPort publishes a pod's port on the host.
type HostPort struct {
	Protocol      string     `json:"protocol"` // TCP, UDP, SCTP
	HostIP        netip.Addr `json:"hostIP,omitempty"`
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
}

// PodAddress is what Setup gave the pod.
type PodAddress struct {
	// Path of the network namespace, to be joined by launchers.
	Path string
	// IPs in the order of the node's podCIDRs (the first is status.podIP).
	IPs []netip.Addr
	// Problem is what plugins find wrong with a network that was there before, empty for
	// nothing. The network is used all the same.
	Problem string
}

// Network is what the provider needs of the pod network. *Manager implements it.
type Network interface {
	// Ready is nil once the node's podCIDRs are known and the host side is in place;
	// else it says what is missing (NetworkNotReady).
	Ready() error
	// Setup makes (or finds again, unchanged) the pod's namespace and address; idempotent.
	Setup(ctx context.Context, pod PodNetwork) (PodAddress, error)
	// Teardown removes all of it; idempotent and safe without Setup.
	Teardown(ctx context.Context, podUID string) error
	// List returns what exists in the kernel now, by pod UID, from fields that Setup wrote.
	List(ctx context.Context) (map[string]PodAddress, error)
	// Dial connects from inside the pod's namespace to its loopback (port-forward).
	Dial(ctx context.Context, podUID, network, address string) (net.Conn, error)
}

// Config is the host side of the pod network.
type Config struct {
	// PodCIDRs of this node, from its Node object; IPv4 and IPv6.
	PodCIDRs []netip.Prefix
	// ClusterCIDRs (all pods) are not masqueraded; when empty, the other nodes' podCIDRs are used.
	ClusterCIDRs []netip.Prefix
	// NoMasquerade are further ranges that pods reach with their own address, such as
	// the other nodes' own addresses.
	NoMasquerade []netip.Prefix
	// Masquerade pods' traffic to the world behind the node's address.
	Masquerade bool
	// MTU 0 takes the uplink's less Overhead.
	MTU int
	// Overhead is what encapsulation between nodes takes of each packet; bytes.
	Overhead int
}
