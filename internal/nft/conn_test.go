package nft

import (
	"slices"
	"sync"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/vk-metal/vk-metal/internal/testnet"
)

// lab is a table in a namespace of its own.
func lab(t *testing.T) (*Conn, *nftables.Conn, *nftables.Table) {
	t.Helper()
	w := testnet.New(t)
	c := New(w.Node.FD(), "lab", SmallBuffer)
	t.Cleanup(c.Drop)
	conn, err := c.Open()
	testnet.Must(t, err)
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "lab"})
	testnet.Must(t, c.Commit())
	return c, conn, table
}

// TestAfterAnError: what was pending when a transaction failed does not go with the next.
func TestAfterAnError(t *testing.T) {
	c, conn, table := lab(t)
	conn.AddChain(&nftables.Chain{Table: table, Name: "stays-away"})
	conn.DelChain(&nftables.Chain{Table: table, Name: "never-there"})
	if err := c.Commit(); err == nil {
		t.Fatal("the kernel takes away what is not there")
	}
	conn, err := c.Open()
	testnet.Must(t, err)
	conn.AddChain(&nftables.Chain{Table: table, Name: "comes"})
	testnet.Must(t, c.Commit())
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	testnet.Must(t, err)
	if len(chains) != 1 || chains[0].Name != "comes" {
		t.Errorf("chains %v", chains)
	}
}

// TestHandles: a rule that is put in place anew shows, and a chain that is not there has none.
func TestHandles(t *testing.T) {
	c, conn, table := lab(t)
	if got, err := c.Handles(table, "missing"); err != nil || got != nil {
		t.Errorf("a missing chain: %v, %v", got, err)
	}
	chain := conn.AddChain(&nftables.Chain{Table: table, Name: "chain"})
	add := func() []uint64 {
		conn.FlushChain(chain)
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
		testnet.Must(t, c.Commit())
		got, err := c.Handles(table, "chain")
		testnet.Must(t, err)
		return got
	}
	if first, second := add(), add(); len(first) != 1 || slices.Equal(first, second) {
		t.Errorf("handles %v, then %v", first, second)
	}
}

// TestSets: owners that make sets at the same time do not share numbers, and more elements
// than one attribute holds arrive.
func TestSets(t *testing.T) {
	c, conn, table := lab(t)
	const owners = 8
	var wg sync.WaitGroup
	numbers := make([]uint32, owners)
	for i := range owners {
		wg.Go(func() {
			s := &nftables.Set{Table: table, Name: "own", KeyType: nftables.TypeInetService}
			own := New(c.nsFD, "lab", SmallBuffer)
			pending, err := own.Open()
			if err == nil {
				err = AddSet(pending, s)
			}
			if err != nil {
				t.Error(err)
			}
			own.Drop()
			numbers[i] = s.ID
		})
	}
	wg.Wait()
	slices.Sort(numbers)
	if len(slices.Compact(numbers)) != owners || numbers[0] == 0 {
		t.Errorf("numbers of sets %v", numbers)
	}
	set := &nftables.Set{Table: table, Name: "ports", KeyType: nftables.TypeInetService}
	var ports []nftables.SetElement
	for p := range 2*portion + 1 {
		ports = append(ports, nftables.SetElement{Key: []byte{byte(p >> 8), byte(p)}})
	}
	testnet.Must(t, AddSet(conn, set, ports...))
	testnet.Must(t, c.Commit())
	if got, err := c.Elements(set); err != nil || len(got) != len(ports) {
		t.Errorf("%d of %d elements (%v)", len(got), len(ports), err)
	}
}
