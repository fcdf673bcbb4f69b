package main

import (
	"errors"
	"fmt"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/hostgw"
	"github.com/vk-metal/vk-metal/hostgw/bgp"
	"github.com/vk-metal/vk-metal/internal/dnscache"
	"github.com/vk-metal/vk-metal/internal/netclean"
	"github.com/vk-metal/vk-metal/netns"
)

// networkMarks are what everything of ours in the host's network bears.
var networkMarks = netclean.Marks{
	Tables: "vk-metal-", Links: "vk-metal/1 ",
	Routes: []int{bgp.RouteProtocol, hostgw.RouteProtocol, netns.RouteProtocol, dnscache.RouteProtocol},
	Rules:  []int{dnscache.RouteProtocol},
}

// newCleanNetwork is for a server that is no node any more: the package's purge runs it.
func newCleanNetwork() *cobra.Command {
	return &cobra.Command{
		Use:   "clean-network",
		Short: "Remove the pods' links, routes and nftables tables from this server; the agent must be stopped",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			running, err := systemdHas(cmd, "vk-metal.service")
			if err != nil {
				return err
			}
			if running {
				return errors.New("clean network: the agent runs and would put everything back: systemctl stop vk-metal.service, and kubepods.slice to end the pods")
			}
			return netclean.Remove("", networkMarks)
		},
	}
}

// systemdHas says whether a unit runs; where no systemd answers, none does.
func systemdHas(cmd *cobra.Command, unit string) (bool, error) {
	conn, err := dbus.NewSystemConnectionContext(cmd.Context())
	if err != nil {
		return false, nil //nolint:nilerr // no systemd: nothing runs as a unit
	}
	defer conn.Close()
	property, err := conn.GetUnitPropertyContext(cmd.Context(), unit, "ActiveState")
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", unit, err)
	}
	switch property.Value.Value() {
	case "active", "activating", "reloading":
		return true, nil
	}
	return false, nil
}
