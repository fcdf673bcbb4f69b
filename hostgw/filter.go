package hostgw

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/nft"
)

// filterTable lets VXLAN packets in from other nodes only: whoever else can reach the
// port could speak to pods in the name of any.
const filterTable = "vk-metal-vxlan"

// filter owns that table. It exists only while there are encapsulated routes.
type filter struct {
	mu    sync.Mutex
	conn  *nft.Conn
	port  int
	nodes []netip.Addr // sorted
	there bool
}

// own says whether an event is of our own making.
func (f *filter) own(portID uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.conn.Own(portID)
}

func (f *filter) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conn.Drop()
}

// sync makes the table as wanted; check asks the kernel instead of trusting memory. No
// nodes: no table.
func (f *filter) sync(port int, nodes []netip.Addr, check bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	nodes = slices.Compact(slices.SortedFunc(slices.Values(nodes), netip.Addr.Compare))
	if !check && f.port == port && slices.Equal(f.nodes, nodes) && f.there == (len(nodes) > 0) {
		return nil
	}
	if check && f.same(port, nodes) {
		return nil
	}
	f.there = false
	if err := f.replace(port, nodes); err != nil {
		return err
	}
	f.port, f.nodes, f.there = port, nodes, len(nodes) > 0
	return nil
}

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: filterTable}
}

func nodeSets(t *nftables.Table) [2]*nftables.Set {
	return [2]*nftables.Set{
		{Table: t, Name: "nodes4", KeyType: nftables.TypeIPAddr},
		{Table: t, Name: "nodes6", KeyType: nftables.TypeIP6Addr},
	}
}

func inputChain(t *nftables.Table) *nftables.Chain {
	return &nftables.Chain{
		Table: t, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	}
}

// replace puts the whole table in place, or removes it, in one transaction.
func (f *filter) replace(port int, nodes []netip.Addr) error {
	c, err := f.conn.Open()
	if err != nil {
		return err
	}
	t := table()
	c.AddTable(t)
	c.DelTable(t)
	if len(nodes) == 0 {
		return f.conn.Commit()
	}
	c.AddTable(t)
	chain := inputChain(t)
	c.AddChain(chain)
	for i, set := range nodeSets(t) {
		var elements []nftables.SetElement
		for _, a := range nodes {
			if a.Is4() == (i == 0) {
				elements = append(elements, nftables.SetElement{Key: a.AsSlice()})
			}
		}
		if err := nft.AddSet(c, set, elements...); err != nil {
			f.conn.Drop() // what is pending must not go with the next transaction
			return err
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: dropStrangers(i == 0, port, set.Name)})
	}
	return f.conn.Commit()
}

// dropStrangers: udp dport PORT ip saddr != @nodes counter drop.
func dropStrangers(four bool, port int, set string) []expr.Any {
	const reg = unix.NFT_REG_1
	saddr := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16}
	nfproto := byte(unix.NFPROTO_IPV6)
	if four {
		nfproto, saddr.Offset, saddr.Len = unix.NFPROTO_IPV4, 12, 4
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{nfproto}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, uint16(port))},
		saddr, &expr.Lookup{SourceRegister: reg, SetName: set, Invert: true},
		&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// same compares the kernel's table; what cannot be read differs.
func (f *filter) same(port int, nodes []netip.Addr) bool {
	t := table()
	if len(nodes) == 0 {
		return f.absent(t)
	}
	if f.port != port || !slices.Equal(f.nodes, nodes) {
		return false
	}
	if rules, err := f.conn.Handles(t, inputChain(t).Name); err != nil || len(rules) != 2 {
		return false
	}
	have := map[netip.Addr]bool{}
	for _, set := range nodeSets(t) {
		elements, err := f.conn.Elements(set)
		if err != nil {
			return false
		}
		for _, e := range elements {
			a, _ := netip.AddrFromSlice(e.Key)
			have[a] = true
		}
	}
	want := map[netip.Addr]bool{}
	for _, a := range nodes {
		want[a] = true
	}
	return maps.Equal(have, want)
}

// absent says whether the kernel does not have the table.
func (f *filter) absent(t *nftables.Table) bool {
	c, err := f.conn.Open()
	if err != nil {
		return false
	}
	tables, err := c.ListTablesOfFamily(t.Family)
	return err == nil && !slices.ContainsFunc(tables, func(o *nftables.Table) bool { return o.Name == t.Name })
}
