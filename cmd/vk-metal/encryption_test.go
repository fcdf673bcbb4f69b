package main

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/hostgw/wireguard"
	"github.com/vk-metal/vk-metal/internal/config"
	"github.com/vk-metal/vk-metal/netns"
)

// TestEncryptionInTheNode: a node that must encrypt and cannot yet is not Ready and says that
// its network is not there; one that need not says nothing of it, or takes it back.
func TestEncryptionInTheNode(t *testing.T) {
	for _, tc := range []struct {
		encryption string
		before     string // the reason of the condition that the Node has
		want       string
		ready      bool
	}{
		{encryption: "Required", want: "True EncryptionNotReady"},
		{encryption: "Preferred", ready: true},
		{encryption: "None", ready: true},
		{encryption: "None", before: "EncryptionNotReady", want: "False EncryptionNotRequired", ready: true},
		{encryption: "Preferred", before: "RouteCreated", ready: true}, // another program's
	} {
		self := &corev1.Node{}
		if tc.before != "" {
			self.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: tc.before}}
		}
		network := config.Default().Network
		network.Encryption = tc.encryption
		a := &agent{name: "metal-1", log: slog.New(slog.DiscardHandler), cfg: config.Config{Network: network}, selfNode: self}
		a.pods.own = &netns.Manager{}
		a.pods.network = a.pods.own
		if err := a.openRoutes(); err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, c := range a.conditions() {
			if c.Type == corev1.NodeNetworkUnavailable {
				got = string(c.Status) + " " + c.Reason
			}
		}
		if ready := a.encryptionReady(t.Context()) == nil; got != tc.want || ready != tc.ready {
			t.Errorf("%+v: %q, ready %v", tc, got, ready)
		}
		if _, sealed := a.networkOfPods().(sealedNetwork); sealed != (tc.encryption == "Required") {
			t.Errorf("%+v: pods wait for the fence: %v", tc, sealed)
		}
		a.pods.routes.Close()
	}
}

func TestTunnelOverhead(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	if a, b, c := tunnelOverhead(true, []netip.Addr{four}), tunnelOverhead(true, []netip.Addr{four, six}), tunnelOverhead(false, []netip.Addr{six}); a != 60 || b != 80 || c != 0 {
		t.Errorf("%d, %d, %d", a, b, c)
	}
}

func TestPrintEncryption(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var out bytes.Buffer
	err := printEncryption(&out, &wireguard.Status{
		Mode: wireguard.Required, Devices: []wireguard.DeviceStatus{{Name: "vkm-wg0", PublicKey: "KEY=", Port: 51820, Made: now.Add(-time.Hour), Active: true}},
		Peers: []wireguard.PeerStatus{
			{Node: "b", Way: wireguard.Encrypted, Device: "vkm-wg0", Endpoint: "192.0.2.2:51820", LastHandshake: now.Add(-time.Minute), Received: 10, Sent: 20},
			{Node: "c", Way: wireguard.Blocked, Problem: "the node announces no keys"},
		},
		Error: "something",
	}, now)
	want := []string{"mode Required", "vkm-wg0  51820     KEY=        1h0m0s  true", "b     encrypted  vkm-wg0  192.0.2.2:51820  1m0s            10", "c     blocked", "the node announces no keys", "error: something"}
	for _, line := range want {
		if err != nil || !strings.Contains(out.String(), line) {
			t.Errorf("%v: no %q in\n%s", err, line, &out)
		}
	}
}
