package linuxns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// eventBuffer holds the bursts of a full table load by somebody else; bytes.
const eventBuffer = 4 << 20

// Watch is a subscription to multicast groups of one netlink protocol. It exists from
// the call on, so nothing that happens between Subscribe and Run is lost. What this process
// itself does to nftables need not be delivered; see Silence.
type Watch struct {
	s      *nl.NetlinkSocket
	groups []uint

	mu     sync.Mutex
	fn     func(*syscall.NetlinkMessage) // of Run; nil before
	missed bool                          // there were events that nobody was told of
	err    error
}

// Subscribe joins the groups in the namespace.
func (n *NS) Subscribe(protocol int, groups ...uint) (*Watch, error) {
	s, err := nl.SubscribeAt(netns.NsHandle(n.FD()), netns.None(), protocol, groups...)
	if err != nil {
		return nil, fmt.Errorf("subscribe to netlink events: %w", err)
	}
	// Without CAP_NET_ADMIN over the host the buffer stays at its default size; lost
	// events are reported by the kernel and handled, so this is not an error.
	_ = s.SetReceiveBufferSize(eventBuffer, true)
	w := &Watch{s: s, groups: groups}
	if protocol == unix.NETLINK_NETFILTER {
		listen(n.FD(), w)
	}
	return w, nil
}

// Close ends the subscription and any Run.
func (w *Watch) Close() {
	unlisten(w)
	w.s.Close()
}

// Run calls fn for each message until ctx ends; a nil message says that events were
// lost and everything may have changed. fn must not block. It returns nil when ctx
// ended, else the error of the socket.
func (w *Watch) Run(ctx context.Context, fn func(msg *syscall.NetlinkMessage)) error {
	stop := context.AfterFunc(ctx, w.Close)
	defer stop()
	w.begin(fn)
	for {
		msgs, from, err := w.s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, os.ErrClosed):
			return w.failed()
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINVAL): // EINVAL: cut off in the receive buffer
			fn(nil)
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("receive netlink events: %w", err)
		}
		if from.Pid != nl.PidKernel {
			continue // a forged event of another process
		}
		for i := range msgs {
			fn(&msgs[i])
		}
	}
}

// TableOf is the nftables table that an nftables event is about: attribute 1 of tables, chains,
// rules, sets and elements alike.
func TableOf(msg *syscall.NetlinkMessage) string {
	const nfgenmsg = 4
	if msg.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN || len(msg.Data) < nfgenmsg {
		return ""
	}
	name, _ := Attribute(msg.Data[nfgenmsg:], unix.NFTA_TABLE_NAME)
	return strings.TrimSuffix(string(name), "\x00")
}

// Attribute finds the first netlink attribute of a type; what is malformed ends the search.
func Attribute(b []byte, kind uint16) ([]byte, bool) {
	const hdr, typeMask = 4, 0x3fff // without the nested and byte-order bits
	for len(b) >= hdr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < hdr || size > len(b) {
			return nil, false
		}
		if binary.NativeEndian.Uint16(b[2:])&typeMask == kind {
			return b[hdr:size], true
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil, false
}
