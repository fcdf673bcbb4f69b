package linuxns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Transact runs do, which makes a transaction of nftables by a socket that is Silenced.
func Transact(nsFD int, do func() error) error {
	if s := spaceOf(nsFD); s != nil {
		s.commits.RLock()
		defer s.commits.RUnlock()
	}
	return do()
}

// Quietly is Transact for exactly one transaction of many elements. While somebody listens, in
// any namespace, the kernel makes a message of each and holds a page for it until the end, which
// takes as long as all the rest: so this process's Watches leave their group meanwhile. If the namespace's generation then says that there was another
// transaction, they are told that events were lost.
func Quietly(nsFD int, do func() error) error {
	s := spaceOf(nsFD)
	if s == nil {
		return do()
	}
	s.commits.Lock()
	defer s.commits.Unlock()
	want, err := generation(nsFD)
	if err != nil {
		return do()
	}
	s.hear(unix.NETLINK_DROP_MEMBERSHIP)
	if err = do(); err == nil {
		want++
	}
	for _, w := range s.hear(unix.NETLINK_ADD_MEMBERSHIP) {
		if now, genErr := generation(nsFD); genErr != nil || now != want {
			w.lose()
		}
	}
	return err
}

// hear has the Watches leave or join their groups, and returns them.
func (s *echoSpace) hear(option int) []*Watch {
	echoes.mu.Lock()
	defer echoes.mu.Unlock()
	for _, w := range s.watches {
		for _, group := range w.groups {
			if err := unix.SetsockoptInt(w.s.GetFd(), unix.SOL_NETLINK, option, int(group)); err != nil {
				w.fail(fmt.Errorf("change a subscription to netlink events: %w", err))
			}
		}
	}
	return slices.Clone(s.watches)
}

// lose says that events were lost.
func (w *Watch) lose() {
	w.mu.Lock()
	fn := w.fn
	w.missed = fn == nil
	w.mu.Unlock()
	if fn != nil {
		fn(nil)
	}
}

// fail ends Run.
func (w *Watch) fail(err error) {
	w.mu.Lock()
	w.err = errors.Join(w.err, err)
	w.mu.Unlock()
	w.s.Close()
}

// begin takes what Run tells, and tells what there was before.
func (w *Watch) begin(fn func(*syscall.NetlinkMessage)) {
	w.mu.Lock()
	missed := w.missed
	w.fn, w.missed = fn, false
	w.mu.Unlock()
	if missed {
		fn(nil)
	}
}

func (w *Watch) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// generation counts the transactions of nftables in a namespace.
func generation(nsFD int) (uint32, error) {
	s, err := nl.GetNetlinkSocketAt(netns.NsHandle(nsFD), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: unix.NFNETLINK_V0})
	if err := s.Send(request); err != nil {
		return 0, err
	}
	list, _, err := s.Receive()
	if err != nil {
		return 0, err
	}
	for _, msg := range list {
		if msg.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN && len(msg.Data) >= nl.SizeofNfgenmsg {
			if id, ok := Attribute(msg.Data[nl.SizeofNfgenmsg:], unix.NFTA_GEN_ID); ok && len(id) == 4 {
				return binary.BigEndian.Uint32(id), nil
			}
		}
	}
	return 0, errors.New("the kernel does not tell the generation of nftables")
}
