package wireguard

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Annotation of a Node holds the public keys and UDP ports of its two devices.
const Annotation = "wireguard.vk-metal.io/keys"

// slots is how many devices a node has: while one is in use the other one gets its new key.
const slots = 2

// endpoint is one device as others know it.
type endpoint struct {
	key  wgtypes.Key
	port uint16
}

// announcement is what a node tells of itself: "v1 KEY:PORT KEY:PORT".
type announcement [slots]endpoint

// announcementVersion opens the annotation: what has another one is not understood.
const announcementVersion = "v1"

func (a announcement) String() string {
	text := announcementVersion
	for _, e := range a {
		text += " " + e.key.String() + ":" + strconv.Itoa(int(e.port))
	}
	return text
}

// errNoKeys is why a peer has no tunnel.
var errNoKeys = errors.New("the node announces no keys: network.encryption is off there, or its kernel has no WireGuard")

// parseAnnouncement reads what another node wrote.
func parseAnnouncement(text string) (announcement, error) {
	var a announcement
	if text == "" {
		return a, errNoKeys
	}
	fields := strings.Split(text, " ")
	if len(fields) != 1+slots || fields[0] != announcementVersion {
		return a, fmt.Errorf("the annotation %s is not %q and %d times KEY:PORT", Annotation, announcementVersion, slots)
	}
	for i, field := range fields[1:] {
		key, port, _ := strings.Cut(field, ":")
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return a, fmt.Errorf("the annotation %s has no UDP port in its part %d", Annotation, i+1)
		}
		if a[i].key, err = wgtypes.ParseKey(key); err != nil || a[i].key == (wgtypes.Key{}) {
			return a, fmt.Errorf("the annotation %s has no public key in its part %d", Annotation, i+1)
		}
		a[i].port = uint16(n)
	}
	if a[0].key == a[1].key {
		return a, fmt.Errorf("the annotation %s has the same key twice", Annotation)
	}
	return a, nil
}
