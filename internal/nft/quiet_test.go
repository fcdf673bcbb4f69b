package nft

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

// TestQuietly: nobody hears of a transaction that is made quietly, but that somebody else made
// one meanwhile is not missed, neither by a Watch that runs nor by one that does not yet; and
// afterwards all hear as before.
func TestQuietly(t *testing.T) {
	w := testnet.New(t)
	c := New(w.Node.FD(), "ours", SmallBuffer)
	defer c.Drop()
	conn, err := c.Open()
	testnet.Must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	heard, ended := make(chan string, 1000), make(chan error, 2)
	watch := func() *linuxns.Watch {
		watch, err := w.Node.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
		testnet.Must(t, err)
		t.Cleanup(watch.Close)
		return watch
	}
	run := func(watch *linuxns.Watch) {
		go func() {
			ended <- watch.Run(ctx, func(msg *syscall.NetlinkMessage) {
				if msg == nil {
					heard <- "(lost)"
				} else if table := linuxns.TableOf(msg); table != "" {
					heard <- table
				}
			})
		}()
	}
	hears := func(want ...string) {
		t.Helper()
		for _, name := range want {
			if got := <-heard; got != name {
				t.Errorf("heard %q, want %q", got, name)
			}
		}
	}
	add := func(name string) {
		conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
	}
	first, second := watch(), watch()
	run(first)
	w.In(w.Node, "nft add table inet theirs-1")
	hears("theirs-1")
	add("ours-1")
	testnet.Must(t, c.CommitMany())
	w.In(w.Node, "nft add table inet theirs-2")
	hears("theirs-2")

	add("ours-2")
	testnet.Must(t, linuxns.Quietly(w.Node.FD(), func() error {
		w.In(w.Node, "nft add table inet theirs-3")
		return c.conn.Flush()
	}))
	hears("(lost)")
	failed := errors.New("failed")
	if err := linuxns.Quietly(w.Node.FD(), func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("error %v", err)
	}
	w.In(w.Node, "nft add table inet theirs-4")
	hears("theirs-4")
	run(second)
	hears("(lost)", "theirs-1", "theirs-2", "theirs-4")
	stop()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
