// Package netclean removes from a host what vk-metal made in its network: it knows the marks
// that everything of ours bears, and nothing of what bears them. Sysctls stay as they are:
// others may have come to rely on them.
package netclean

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// Marks say what is ours.
type Marks struct {
	// Tables is the prefix of the names of nftables tables.
	Tables string
	// Links is the prefix of the aliases of links.
	Links string
	// Routes are the protocol numbers of routes, see ip-route(8).
	Routes []int
	// Rules are the protocol numbers of routing rules, see ip-rule(8).
	Rules []int
}

// Remove removes what bears the marks from the network namespace at path; the empty path is
// the process's own. It goes as far as it can; what is gone already is no error.
func Remove(path string, marks Marks) error {
	ns, err := linuxns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	return errors.Join(removeTables(ns.FD(), marks.Tables), removeRoutes(h, marks.Routes), removeRules(h, marks.Rules), removeLinks(h, marks.Links))
}

// removeTables deletes tables in one transaction each: none keeps another.
func removeTables(fd int, prefix string) error {
	c, err := nftables.New(nftables.WithNetNSFd(fd))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return fmt.Errorf("list nftables tables: %w", err)
	}
	var errs []error
	for _, table := range tables {
		if !strings.HasPrefix(table.Name, prefix) {
			continue
		}
		c.DelTable(table)
		if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove nftables table %s: %w", table.Name, err))
		}
	}
	return errors.Join(errs...)
}

// removeRules deletes routing rules.
func removeRules(h *netlink.Handle, protocols []int) error {
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := complete(func() ([]netlink.Rule, error) { return h.RuleList(family) })
		if err != nil {
			return fmt.Errorf("list routing rules: %w", err)
		}
		for i := range rules {
			if !slices.Contains(protocols, int(rules[i].Protocol)) {
				continue
			}
			rules[i].Family = family
			if err := h.RuleDel(&rules[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove routing rule %v: %w", rules[i], err))
			}
		}
	}
	return errors.Join(errs...)
}

// removeRoutes deletes the routes of all tables.
func removeRoutes(h *netlink.Handle, protocols []int) error {
	routes, err := complete(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	for i := range routes {
		if !slices.Contains(protocols, int(routes[i].Protocol)) {
			continue
		}
		if err := h.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route %s: %w", routes[i].Dst, err))
		}
	}
	return errors.Join(errs...)
}

func removeLinks(h *netlink.Handle, prefix string) error {
	links, err := complete(h.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, link := range links {
		if !strings.HasPrefix(link.Attrs().Alias, prefix) {
			continue
		}
		if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove link %s: %w", link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// complete repeats a dump that changes of others interrupted; the last try is good enough.
func complete[T any](list func() ([]T, error)) ([]T, error) {
	for range 10 {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	all, err := list()
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil
	}
	return all, err
}
