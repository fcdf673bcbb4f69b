package workload

import (
	"net/netip"
	"strings"
	"testing"
)

func TestMatrix(t *testing.T) {
	m := &Matrix{
		From:  []string{"a (metal-0)", "metal-1 (host)"},
		To:    []Target{{"a", "metal-0", netip.MustParseAddr("10.244.0.2")}, {"a", "metal-0", netip.MustParseAddr("fd00:244::2")}},
		cells: map[[2]int]string{}, ok: map[[2]int]bool{},
	}
	m.read(0, "0 a\n1 a\n")
	m.read(1, "bash: connect: No route to host\n0 other\n7 a\nnonsense\n")
	want := []string{
		`metal-1 (host) -> a (10.244.0.2, metal-0): answer "other"`,
		`metal-1 (host) -> a (fd00:244::2, metal-0): answer ""`,
	}
	if got := strings.Join(m.Failures(), "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
	table := `from \ to        1   2
a (metal-0)     ok  ok
metal-1 (host)   -   -
  1 = 10.244.0.2 a on metal-0
  2 = fd00:244::2 a on metal-0
`
	if m.String() != table {
		t.Errorf("got:\n%s\nwant:\n%s", m.String(), table)
	}
}
