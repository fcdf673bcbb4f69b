// Package nft has what all owners of an nftables table share: a connection that is not
// trusted after an error, elements in portions that netlink takes, sets with numbers of their
// own, and the handles that show whether somebody else touched a rule. It must not know what
// is in anybody's table.
package nft

import (
	"fmt"
	"iter"
	"slices"
	"sync/atomic"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

const (
	// SmallBuffer in bytes is for tables of some hundred elements.
	SmallBuffer = 4 << 20
	// BigBuffer in bytes is for tables of 100,000 elements: a whole table is one write.
	BigBuffer = 64 << 20
	// portion is how many elements go into one netlink attribute, which holds 64 KiB.
	portion = 400
)

// Conn is the connection of one table's owner, opened when it is needed. It is not safe for
// concurrent use.
type Conn struct {
	nsFD   int
	table  string
	buffer int
	conn   *nftables.Conn // nil after an error
	portID uint32
}

// New makes a Conn to the network namespace nsFD; table is named in errors. buffer is the
// socket's, in bytes each way.
func New(nsFD int, table string, buffer int) *Conn {
	return &Conn{nsFD: nsFD, table: table, buffer: buffer}
}

// Open gives the connection. Nothing is pending on it unless the owner left it there.
func (c *Conn) Open() (*nftables.Conn, error) {
	if c.conn != nil {
		return c.conn, nil
	}
	conn, err := nftables.New(nftables.WithNetNSFd(c.nsFD), nftables.AsLasting(), nftables.WithSockOptions(func(s *mdnetlink.Conn) error {
		c.portID = s.PID()
		// Best effort: the default is enough for a few hundred elements.
		_, _ = s.SetReadBuffer(c.buffer), s.SetWriteBuffer(c.buffer)
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	c.conn = conn
	linuxns.Silence(c.nsFD, c.portID)
	return conn, nil
}

// Drop closes the connection with all that is pending; Open makes another.
func (c *Conn) Drop() {
	if c.conn != nil {
		linuxns.Unsilence(c.nsFD, c.portID)
		_ = c.conn.CloseLasting()
		c.conn = nil
	}
}

// Own says whether an event with this netlink port is of this connection's making.
func (c *Conn) Own(portID uint32) bool { return c.conn != nil && portID == c.portID }

// Commit makes one transaction of what is pending. After an error the kernel is as before
// and the connection is dropped.
func (c *Conn) Commit() error { return c.commit(linuxns.Transact) }

// CommitMany is Commit for thousands of elements.
func (c *Conn) CommitMany() error { return c.commit(linuxns.Quietly) }

func (c *Conn) commit(transact func(nsFD int, do func() error) error) error {
	if err := transact(c.nsFD, c.conn.Flush); err != nil {
		c.Drop()
		return fmt.Errorf("commit nftables table %s: %w", c.table, err)
	}
	return nil
}

// Handles are the numbers that the kernel gave the rules of a chain: a rule that somebody
// deletes, adds or replaces shows as another list. It is nil for a chain that is not there.
func (c *Conn) Handles(table *nftables.Table, chain string) ([]uint64, error) {
	conn, err := c.Open()
	if err != nil {
		return nil, err
	}
	rules, err := conn.GetRules(table, &nftables.Chain{Table: table, Name: chain})
	if err != nil {
		c.Drop()
		return nil, fmt.Errorf("read back chain %s: %w", chain, err)
	}
	var out []uint64
	for _, r := range rules {
		out = append(out, r.Handle)
	}
	return out, nil
}

// Elements are what the kernel has in a set.
func (c *Conn) Elements(s *nftables.Set) ([]nftables.SetElement, error) {
	conn, err := c.Open()
	if err != nil {
		return nil, err
	}
	got, err := conn.GetSetElements(s)
	if err != nil {
		c.Drop()
		return nil, fmt.Errorf("read back set %s: %w", s.Name, err)
	}
	return got, nil
}

// lastSet is the number of the last set. The library counts in a variable that it does not
// guard, for sets that have none.
var lastSet atomic.Uint32

// AddSet has the pending transaction make a set, with these elements.
func AddSet(conn *nftables.Conn, s *nftables.Set, elements ...nftables.SetElement) error {
	if s.ID == 0 {
		s.ID = lastSet.Add(1)
	}
	if err := conn.AddSet(s, nil); err != nil {
		return fmt.Errorf("build set %s: %w", s.Name, err)
	}
	return Portions(s, slices.Values(elements), conn.SetAddElements)
}

// Portions adds elements to a set, or takes them away, as apply does, which may not keep them.
func Portions(s *nftables.Set, elements iter.Seq[nftables.SetElement], apply func(*nftables.Set, []nftables.SetElement) error) error {
	part := make([]nftables.SetElement, 0, portion)
	flush := func() error {
		if len(part) == 0 {
			return nil
		}
		if err := apply(s, part); err != nil {
			return fmt.Errorf("build elements of set %s: %w", s.Name, err)
		}
		part = part[:0]
		return nil
	}
	for e := range elements {
		if part = append(part, e); len(part) == portion {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}
