package nft

import (
	"context"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

// TestOwnChangesAreNotHeard: no part of the process gets messages about what another part of it
// did to nftables, whichever of the two was there first, but all that others do.
func TestOwnChangesAreNotHeard(t *testing.T) {
	w := testnet.New(t)
	ctx, stop := context.WithCancel(t.Context())
	heard := make(chan string, 1000)
	ended := make(chan error, 2)
	listen := func() {
		watch, err := w.Node.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
		testnet.Must(t, err)
		t.Cleanup(watch.Close)
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
	listen()
	c := New(w.Node.FD(), "ours", SmallBuffer)
	defer c.Drop()
	add := func(name string) {
		conn, err := c.Open()
		testnet.Must(t, err)
		conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
		testnet.Must(t, c.Commit())
	}
	add("ours-1")
	listen()
	add("ours-2")
	c.Drop()
	add("ours-3") // by another socket
	w.In(w.Node, "nft add table inet theirs")
	for range 2 {
		if got := <-heard; got != "theirs" {
			t.Errorf("heard of table %s", got)
		}
	}
	stop()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
