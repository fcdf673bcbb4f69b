package config

import (
	"errors"
	"fmt"
	"time"

	"gopkg.in/yaml.v3"
)

// minRotation leaves the other nodes time to hear of a new key before it is used; it is used
// a quarter of it after it was made, at the earliest.
const minRotation = 10 * time.Minute

func parseRotation(text string) (time.Duration, error) {
	d, err := parseDuration(text)
	if err == nil && d != 0 && d < minRotation {
		err = fmt.Errorf("%s is too short: give %s at least, or 0s to never change keys", text, minRotation)
	}
	return d, err
}

// maxKeepalive is what WireGuard has 16 bits for.
const maxKeepalive = 65535 * time.Second

func parseKeepalive(text string) (time.Duration, error) {
	d, err := parseDuration(text)
	if err == nil && (d%time.Second != 0 || d > maxKeepalive) {
		err = errors.New("must be whole seconds, 65535 at most, such as 25s")
	}
	return d, err
}

// checkEncryption finds what would leave pods' packets in plain where they must not be.
func (d *decoder) checkEncryption(n *Network, root *yaml.Node) {
	if n.Encryption == "None" || n.Plugin == "cni" { // refused before
		return
	}
	line := lookup(root, "network").Line
	if n.Routing == "BGP" {
		d.fail(line, "network.encryption", "does not work with network.routing: BGP, which leaves the routes to other nodes' pods to BGP: set it to HostGW or Both")
	}
	if n.Encryption == "Required" && len(n.ClusterCIDRs) == 0 {
		d.fail(line, "network.encryption", "Required needs network.clusterCIDRs, the ranges of all pods: nothing may leave in plain to a node that is not known yet either")
	}
	if n.Encapsulation != "Never" && (n.VXLANPort == n.WireGuardPort || n.VXLANPort == n.WireGuardPort+1) {
		d.fail(line, "network.wireguardPort", "this port and the next one are WireGuard's, but network.vxlanPort is %d: choose another", n.VXLANPort)
	}
}
