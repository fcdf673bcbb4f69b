package bgp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// flow sends a packet every few milliseconds and counts what comes back.
type flow struct {
	conn   *net.UDPConn
	server net.PacketConn
	quit   chan struct{}
	sender sync.WaitGroup
	done   sync.WaitGroup

	mu       sync.Mutex
	sent     uint64
	answered map[uint64]bool
	last     time.Time
	gap      time.Duration // the longest time without an answer
}

const flowEvery = 3 * time.Millisecond

// flow starts one between addresses of two hosts.
func (h *host) flow(from string, o *host, to string) *flow {
	h.l.t.Helper()
	f := &flow{server: o.echo(to), quit: make(chan struct{}), answered: map[uint64]bool{}}
	must(h.l.t, h.ns.Do(func() (err error) {
		f.conn, err = net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, f.server.LocalAddr().(*net.UDPAddr))
		return err
	}))
	roomy(h.l.t, f.conn)
	roomy(h.l.t, f.server.(*net.UDPConn))
	f.sender.Go(f.send)
	f.done.Go(f.receive)
	h.l.t.Cleanup(f.end)
	return f
}

// roomy makes a socket hold what comes while its reader waits for the processor: what does
// not fit is lost here, not on the way.
func roomy(t testing.TB, c *net.UDPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) }))
	must(t, err)
}

func (f *flow) send() {
	tick := time.NewTicker(flowEvery)
	defer tick.Stop()
	for {
		select {
		case <-f.quit:
			return
		case <-tick.C:
		}
		f.mu.Lock()
		n := f.sent
		f.sent++
		f.mu.Unlock()
		_, _ = f.conn.Write(binary.BigEndian.AppendUint64(nil, n)) // also what could not be sent is lost
	}
}

func (f *flow) receive() {
	buf := make([]byte, 64)
	for {
		n, err := f.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != 8 {
			continue // an ICMP error
		}
		f.mu.Lock()
		now := time.Now()
		if !f.last.IsZero() {
			f.gap = max(f.gap, now.Sub(f.last))
		}
		f.last = now
		f.answered[binary.BigEndian.Uint64(buf)] = true
		f.mu.Unlock()
	}
}

// flows says whether an answer to something sent from now on comes back.
func (f *flow) flows(t testing.TB) {
	t.Helper()
	f.mu.Lock()
	now := f.sent
	f.mu.Unlock()
	eventually(t, "packets flow", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		for n := now + 20; n < f.sent; n++ {
			if f.answered[n] && f.answered[n-1] && f.answered[n-2] {
				return nil
			}
		}
		return os.ErrDeadlineExceeded
	})
}

// reset forgets the longest gap, and returns it.
func (f *flow) reset() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	gap := f.gap
	f.gap = 0
	return gap
}

// stop ends sending and returns how many packets had no answer, of how many.
func (f *flow) stop(t testing.TB) (lost, sent uint64) {
	t.Helper()
	close(f.quit)
	f.sender.Wait()
	eventually(t, "the last packet is answered", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.answered[f.sent-1] {
			return os.ErrDeadlineExceeded
		}
		return nil
	})
	return f.sent - uint64(len(f.answered)), f.sent
}

func (f *flow) end() {
	select {
	case <-f.quit:
	default:
		close(f.quit)
	}
	f.sender.Wait()
	_ = f.conn.Close()
	_ = f.server.Close()
	f.done.Wait()
}

// watchDeletes records deleted routes of a host until the test ends.
func (h *host) watchDeletes() (deleted func() []netip.Prefix) {
	h.l.t.Helper()
	w, err := h.ns.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	must(h.l.t, err)
	var mu sync.Mutex
	var all []netip.Prefix
	var done sync.WaitGroup
	done.Go(func() {
		_ = w.Run(h.l.t.Context(), func(msg *syscall.NetlinkMessage) {
			if msg == nil || msg.Header.Type != unix.RTM_DELROUTE || len(msg.Data) < unix.SizeofRtMsg {
				return
			}
			raw, _ := linuxns.Attribute(msg.Data[unix.SizeofRtMsg:], unix.RTA_DST)
			dst, _ := netip.AddrFromSlice(raw)
			mu.Lock()
			all = append(all, netip.PrefixFrom(dst, int(msg.Data[1])))
			mu.Unlock()
		})
	})
	h.l.t.Cleanup(done.Wait)
	return func() []netip.Prefix {
		mu.Lock()
		defer mu.Unlock()
		return append([]netip.Prefix(nil), all...)
	}
}
