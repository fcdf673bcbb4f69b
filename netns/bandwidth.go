package netns

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Bandwidth limits a pod's traffic in bits per second; 0 does not limit.
type Bandwidth struct {
	// Ingress is towards the pod, Egress from it.
	Ingress uint64 `json:"ingress,omitempty"`
	Egress  uint64 `json:"egress,omitempty"`
}

const (
	// burstTime is how much may go at once after a pause, and minBurst at least: a segment
	// as the kernel hands it down (64 KiB) must fit.
	burstTime = 10 * time.Millisecond
	minBurst  = 128 << 10
	// queueTime is how long a packet waits at most.
	queueTime = 50 * time.Millisecond
)

// bandwidth shapes at both ends of the link: towards the pod at the host's, from the pod at
// the pod's own, where a full queue holds the sender back instead of losing packets. A pod
// with CAP_NET_ADMIN could change the latter, in its own namespace.
func (s *setup) bandwidth() error {
	if s.made && s.pod.Bandwidth == (Bandwidth{}) {
		return nil // there is nothing to take away either
	}
	if err := shape(s.m.nl, s.link, s.pod.Bandwidth.Ingress); err != nil {
		return fmt.Errorf("limit traffic to the pod: %w", err)
	}
	h, err := s.ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	eth0, err := h.LinkByName(podLink)
	if err != nil {
		return fmt.Errorf("look up the pod's %s: %w", podLink, err)
	}
	if err := shape(h, eth0, s.pod.Bandwidth.Egress); err != nil {
		return fmt.Errorf("limit traffic from the pod: %w", err)
	}
	return nil
}

// shape gives the link a token bucket of the rate in bits per second; 0 takes ours away.
func shape(h *netlink.Handle, l netlink.Link, rate uint64) error {
	attrs := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: shaper, Parent: netlink.HANDLE_ROOT}
	if rate == 0 {
		return unshape(h, l)
	}
	bytes := max(rate/8, 1)
	burst := bucket(bytes)
	return wrap(h.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: attrs, Rate: bytes, Limit: burst + uint32(min(bytes*uint64(queueTime)/uint64(time.Second), 1<<30)),
		Buffer: netlink.Xmittime(bytes, burst),
	}), "set token bucket of %d bits per second", rate)
}

// shaper is the handle that tells our queueing discipline from others.
const shaper = 0x766b0000

// bucket is the burst in bytes for a rate in bytes per second.
func bucket(rate uint64) uint32 {
	return uint32(min(max(rate*uint64(burstTime)/uint64(time.Second), minBurst), 1<<30))
}

func unshape(h *netlink.Handle, l netlink.Link) error {
	have, err := h.QdiscList(l)
	if err != nil {
		return fmt.Errorf("list queueing disciplines: %w", err)
	}
	for _, q := range have {
		if q.Attrs().Handle != shaper {
			continue
		}
		if err := h.QdiscDel(q); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove token bucket: %w", err)
		}
	}
	return nil
}
