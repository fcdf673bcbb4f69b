package netns

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// hostPortKey is one element of the host port maps; an unspecified ip (0.0.0.0, ::)
// means every local address of its IP version.
type hostPortKey struct {
	proto uint8
	ip    netip.Addr
	port  uint16
}

var protocols = map[string]uint8{"TCP": unix.IPPROTO_TCP, "UDP": unix.IPPROTO_UDP, "SCTP": unix.IPPROTO_SCTP, "": unix.IPPROTO_TCP}

func (k hostPortKey) String() string {
	name := fmt.Sprint(k.proto)
	for n, p := range protocols {
		if p == k.proto && n != "" {
			name = n
		}
	}
	return fmt.Sprintf("%s %s", name, netip.AddrPortFrom(k.ip, k.port))
}

// element is the key's map and binary form.
func (k hostPortKey) element() (set, key string) {
	proto := string([]byte{k.proto, 0, 0, 0})
	if k.ip.IsUnspecified() {
		return by4(k.ip, mapAnyPort4, mapAnyPort6), proto + portKey(k.port)
	}
	return by4(k.ip, mapHostPort4, mapHostPort6), proto + addrKey(k.ip) + portKey(k.port)
}

// parseHostPort is the inverse of element and of its value; false for what we do not write.
func parseHostPort(set, key, val string) (k hostPortKey, to netip.AddrPort, ok bool) {
	four := set == mapHostPort4 || set == mapAnyPort4
	size := 16
	k.ip = netip.IPv6Unspecified()
	if four {
		size, k.ip = 4, netip.IPv4Unspecified()
	}
	keySize := 8
	if set == mapHostPort4 || set == mapHostPort6 {
		keySize += size
	}
	if len(key) != keySize || len(val) != size+4 {
		return k, to, false
	}
	if keySize > 8 {
		k.ip, _ = netip.AddrFromSlice([]byte(key[4 : 4+size]))
	}
	k.proto = key[0]
	k.port = binary.BigEndian.Uint16([]byte(key[keySize-4:]))
	ip, _ := netip.AddrFromSlice([]byte(val[:size]))
	return k, netip.AddrPortFrom(ip, binary.BigEndian.Uint16([]byte(val[size:]))), true
}

// resolveHostPorts says where each published port leads. A port without HostIP is
// published on both IP versions that the pod has; one with HostIP on its version,
// and it is an error if the pod has no address of it.
func resolveHostPorts(ports []HostPort, ips []netip.Addr) (map[hostPortKey]netip.AddrPort, error) {
	out := map[hostPortKey]netip.AddrPort{}
	for _, p := range ports {
		proto, ok := protocols[strings.ToUpper(p.Protocol)]
		if !ok {
			return nil, fmt.Errorf("host port %d: protocol %q is none of TCP, UDP, SCTP", p.HostPort, p.Protocol)
		}
		if p.HostPort == 0 || p.ContainerPort == 0 {
			return nil, fmt.Errorf("host port %d to %d: port 0 is not allowed", p.HostPort, p.ContainerPort)
		}
		found := false
		for _, ip := range ips {
			host := p.HostIP.Unmap()
			if !host.IsValid() {
				host = netip.IPv6Unspecified()
				if ip.Is4() {
					host = netip.IPv4Unspecified()
				}
			}
			k := hostPortKey{proto, host.WithZone(""), p.HostPort}
			if _, dup := out[k]; host.Is4() != ip.Is4() || dup {
				continue
			}
			out[k], found = netip.AddrPortFrom(ip, p.ContainerPort), true
		}
		if !found {
			return nil, fmt.Errorf("host port %d on %s: already published by this pod or no pod address of its IP version", p.HostPort, p.HostIP)
		}
	}
	return out, nil
}
