package config

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"
)

const bgpHead = "apiVersion: vk-metal.io/v1alpha1\nkind: BGPConfig\nasn: 64512\n"

func TestParseBGP(t *testing.T) {
	b, err := ParseBGP("bgp.yaml", []byte(bgpHead+`
mesh: true
restartTime: 30s
advertise: {services: [LoadBalancerIP], communities: ["64512:1", "64512:2:3", no-export], localPref: 200}
import: {prefixes: [10.96.0.0/12], maxPrefixes: 50}
peers:
- {name: tor, nodes: "rack=a", address: 192.0.2.1, asn: 65001, ttlSecurity: true, passwordFile: /etc/vk-metal/tor, holdTime: 9s}
- {name: rr, nodes: "!rr", peerNodes: rr}
`))
	if err != nil {
		t.Fatal(err)
	}
	if !b.Mesh || b.RestartTime != 30*time.Second || b.ListenPort != 179 || !b.Advertise.PodCIDRs || len(b.Advertise.Communities) != 3 || b.Import.MaxPrefixes != 50 {
		t.Errorf("%+v", b)
	}
	tor, rr := b.Peers[0], b.Peers[1]
	if tor.ASN != 65001 || !tor.TTLSecurity || tor.HoldTime != 9*time.Second || tor.PeerNodes != nil || !tor.Nodes.Matches(labels.Set{"rack": "a"}) || tor.Nodes.Matches(labels.Set{}) {
		t.Errorf("tor: %+v", tor)
	}
	if rr.PeerNodes == nil || !rr.PeerNodes.Matches(labels.Set{"rr": ""}) || rr.Nodes.Matches(labels.Set{"rr": ""}) {
		t.Errorf("rr: %+v", rr)
	}
	data, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	var again BGP
	if err := json.Unmarshal(data, &again); err != nil || !reflect.DeepEqual(again, b) {
		t.Errorf("it does not survive JSON: %v", err)
	}
}

func TestParseBGPMistakes(t *testing.T) {
	peer := func(s string) string {
		return bgpHead + "peers:\n- {name: tor, address: 192.0.2.1, asn: 65001" + s + "}\n"
	}
	for name, tc := range map[string]struct{ text, want string }{
		"no asn":            {"apiVersion: vk-metal.io/v1alpha1\nkind: BGPConfig\n", "f:1: asn: missing"},
		"another kind":      {"apiVersion: vk-metal.io/v1alpha1\nkind: NodeConfig\nasn: 1\n", `f:2: kind: "NodeConfig" is not supported`},
		"unknown key":       {bgpHead + "mash: true\n", "f:4: mash: unknown key: did you mean mesh?"},
		"asn of none":       {"apiVersion: vk-metal.io/v1alpha1\nkind: BGPConfig\nasn: 23456\n", "f:3: asn: \"23456\" is not an AS number"},
		"default route":     {bgpHead + "import: {prefixes: [0.0.0.0/0]}\n", "import.prefixes: \"0.0.0.0/0\" is too wide"},
		"bad community":     {bgpHead + "advertise: {communities: [\"70000:1\"]}\n", "advertise.communities: \"70000:1\": \"70000\" must be a whole number"},
		"bad selector":      {bgpHead + "advertise: {serviceSelector: \"a in\"}\n", "is not a label selector"},
		"no name":           {bgpHead + "peers:\n- {address: 192.0.2.1, asn: 1}\n", "f:5: peers[0]: a peer needs a name"},
		"name twice":        {bgpHead + "peers:\n- {name: a, address: 192.0.2.1, asn: 1}\n- {name: a, address: 192.0.2.2, asn: 1}\n", "f:6: peers[1].name: \"a\" is the name of another peer"},
		"neither":           {bgpHead + "peers:\n- {name: a}\n", "give either address"},
		"both":              {peer(", peerNodes: a"), "give either address"},
		"peer without asn":  {bgpHead + "peers:\n- {name: a, address: 192.0.2.1}\n", "needs its asn"},
		"asn of nodes":      {bgpHead + "peers:\n- {name: a, peerNodes: a, asn: 3}\n", "remove it"},
		"gtsm and hops":     {peer(", ttlSecurity: true, multihop: 3"), "contradict"},
		"hold time":         {peer(", holdTime: 2s"), "f:5: peers[0].holdTime: \"2s\" must be whole seconds, from 3s"},
		"half second":       {peer(", holdTime: 3500ms"), "whole seconds"},
		"keepalive":         {peer(", keepalive: 90s"), "keepalive must be shorter"},
		"source of other":   {peer(", sourceAddress: 2001:db8::1"), "one IP version"},
		"IPv4 over IPv6":    {bgpHead + "peers:\n- {name: a, address: \"2001:db8::1\", asn: 3, families: [IPv4]}\n", "IPv4 routes need a session over IPv4"},
		"relative path":     {peer(", passwordFile: secret"), "absolute path"},
		"services of kinds": {bgpHead + "advertise: {services: [NodePort]}\n", "must be one of ClusterIP"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseBGP("f", []byte(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func FuzzParseBGP(f *testing.F) {
	f.Add([]byte(bgpHead + "peers:\n- {name: a, address: 192.0.2.1, asn: 1}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := ParseBGP("f", data)
		if err == nil && b.ASN == 0 {
			t.Error("no AS number and no error")
		}
	})
}
