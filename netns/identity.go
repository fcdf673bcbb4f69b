package netns

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Marks of our links in the kernel. The group is set in the same request that creates
// the link, so that no link of ours is ever without it; the alias follows and holds the
// identity. The name carries nothing: it is a hash, for finding the link without a dump.
const (
	// LinkGroup is the interface group of every pod's host side (0x766b, "vk"). Rules of
	// ours and of the administrator may match it (iifgroup 30315).
	LinkGroup = 0x766b
	// RouteProtocol marks the host routes to the pods of this node.
	RouteProtocol = 119

	linkPrefix  = "vkm"
	aliasPrefix = "vk-metal/1 "
	podLink     = "eth0"
)

// hostMAC is the host side's address on every pod link: pods hold it in permanent
// neighbour entries for their gateways, so no pod ever asks who has them.
var hostMAC = net.HardwareAddr{0x02, 0x76, 0x6b, 0x00, 0x00, 0x01}

var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

var nameEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// linkName is the host side's name: prefix and 60 bits of the UID's hash, 15 bytes.
func linkName(uid string) string {
	sum := sha256.Sum256([]byte(uid))
	return linkPrefix + nameEncoding.EncodeToString(sum[:])[:12]
}

// podMAC is the pod side's address: locally administered, from the UID's hash.
func podMAC(uid string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("mac " + uid))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// checkUID refuses what is not a plain name: it becomes a directory and a link's alias.
func checkUID(uid string) error {
	ok := uid != "" && len(uid) <= 128 && uid[0] != '.'
	for _, c := range []byte(uid) {
		ok = ok && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return fmt.Errorf("pod UID %q is not usable as a name", uid)
	}
	return nil
}

// identity is what a link's alias says: whose it is and which addresses it claims.
type identity struct {
	uid string
	ips []netip.Addr
}

func (id identity) alias() string {
	ips := make([]string, len(id.ips))
	for i, ip := range id.ips {
		ips[i] = ip.String()
	}
	return aliasPrefix + "uid=" + id.uid + " ips=" + strings.Join(ips, ",")
}

// parseAlias reads an alias that identity.alias wrote; false for anything else.
func parseAlias(alias string) (identity, bool) {
	rest, ok := strings.CutPrefix(alias, aliasPrefix)
	if !ok {
		return identity{}, false
	}
	var id identity
	for field := range strings.FieldsSeq(rest) {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "uid":
			id.uid = value
		case "ips":
			for s := range strings.SplitSeq(value, ",") {
				ip, err := netip.ParseAddr(s)
				if err != nil {
					return identity{}, false
				}
				id.ips = append(id.ips, ip)
			}
		}
	}
	return id, checkUID(id.uid) == nil && len(id.ips) > 0
}
