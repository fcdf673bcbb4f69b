package netns

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// transfer sends n bytes by TCP and says how long it took until all had arrived.
func transfer(t *testing.T, from, to *linuxns.NS, addr netip.Addr, n int64) time.Duration {
	t.Helper()
	var l net.Listener
	must(t, to.Do(func() (err error) { l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String()); return err }))
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			_, err = io.CopyN(io.Discard, c, n)
		}
		done <- err
	}()
	var c net.Conn
	must(t, from.Do(func() (err error) { c, err = net.Dial("tcp", l.Addr().String()); return err }))
	defer c.Close()
	start := time.Now()
	_, err := c.Write(make([]byte, n))
	must(t, err)
	must(t, <-done)
	return time.Since(start)
}

// TestBandwidth: no more passes in a direction than its limit; the other direction is not
// held up, and a Setup without limits takes them away.
func TestBandwidth(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.start(m, Config{PodCIDRs: dualStack})
	const rate, n = 16_000_000, 1 << 20 // bits per second; bytes
	// What is in the bucket goes at once.
	least := time.Duration(n-bucket(rate/8)) * 8 * time.Second / rate
	for i, limit := range []Bandwidth{{Ingress: rate}, {Egress: rate}, {Ingress: rate, Egress: rate}} {
		pod := PodNetwork{PodUID: fmt.Sprint("limited", i), Namespace: "default", Name: "limited", Bandwidth: limit}
		a, err := m.Setup(context.Background(), pod)
		must(t, err)
		ns := w.pod(a.Path)
		if took := transfer(t, w.node, ns, a.IPs[0], n); limit.Ingress > 0 && took < least {
			t.Errorf("%+v: %d bytes came in %s, less than %s", limit, n, took, least)
		}
		if took := transfer(t, ns, w.node, nodeIP4, n); limit.Egress > 0 && took < least {
			t.Errorf("%+v: %d bytes went in %s, less than %s", limit, n, took, least)
		}
		for range 2 { // as after a restart of the agent
			_, err = m.Setup(context.Background(), pod)
			must(t, err)
			shaped(t, w.node, linkName(pod.PodUID), limit.Ingress)
			shaped(t, ns, podLink, limit.Egress)
		}
		pod.Bandwidth = Bandwidth{}
		_, err = m.Setup(context.Background(), pod)
		must(t, err)
		shaped(t, w.node, linkName(pod.PodUID), 0)
		shaped(t, ns, podLink, 0)
	}
}

// shaped asserts the rate of a link's token bucket, in bits per second; 0 is none.
func shaped(t *testing.T, ns *linuxns.NS, link string, want uint64) {
	t.Helper()
	h, err := ns.Netlink()
	must(t, err)
	defer h.Close()
	l, err := h.LinkByName(link)
	must(t, err)
	all, err := h.QdiscList(l)
	must(t, err)
	var got uint64
	for _, q := range all {
		if tbf, ok := q.(*netlink.Tbf); ok {
			got = tbf.Rate * 8
		}
	}
	if got != want {
		t.Errorf("%s is limited to %d, want %d", link, got, want)
	}
}
