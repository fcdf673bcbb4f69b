package lan

import (
	"net"
	"net/netip"
	"testing"

	"github.com/mdlayher/ndp"
)

func TestFrames(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	want := arp{op: arpRequest, senderMAC: mac, sender: netip.MustParseAddr("192.0.2.1"), targetMAC: broadcast, target: netip.MustParseAddr("192.0.2.2")}
	got, ok := parseARP(want.bytes())
	if !ok || got.op != want.op || got.sender != want.sender || got.target != want.target || got.senderMAC.String() != mac.String() {
		t.Errorf("%+v %v", got, ok)
	}
	n := neighbour{from: netip.MustParseAddr("2001:db8::1"), to: allNodes, message: &ndp.NeighborSolicitation{
		TargetAddress: netip.MustParseAddr("2001:db8::2"), Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac}},
	}}
	b, err := n.bytes()
	if err != nil {
		t.Fatal(err)
	}
	if back, ok := parseNeighbour(b); !ok || back.from != n.from || back.to != n.to {
		t.Errorf("%+v %v", back, ok)
	}
	for name, spoil := range map[string]func(b []byte){
		"from behind a router": func(b []byte) { b[7]-- },
		"a bad checksum":       func(b []byte) { b[len(b)-1]++ },
		"too long":             func(b []byte) { b[5] += 8 },
	} {
		bad := append([]byte{}, b...)
		spoil(bad)
		if _, ok := parseNeighbour(bad); ok {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzFrames(f *testing.F) {
	n := neighbour{from: netip.IPv6Unspecified(), to: allNodes, message: &ndp.NeighborAdvertisement{TargetAddress: netip.MustParseAddr("2001:db8::2")}}
	b, _ := n.bytes()
	f.Add(b)
	f.Add((&arp{op: arpReply, senderMAC: broadcast, sender: lan4.Addr(), targetMAC: broadcast, target: lan4.Addr()}).bytes())
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = parseARP(b)
		_, _ = parseNeighbour(b)
	})
}
