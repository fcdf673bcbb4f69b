package e2e

import (
	"net/netip"
	"slices"
	"strings"
)

// known are the differences that are meant.
var known = []struct {
	why string
	is  func(q question, ours, theirs answer) bool
}{
	{
		"source ranges of one IP version only: kube-proxy lets everybody in on the other, vk-metal nobody",
		func(q question, ours, _ answer) bool {
			return q.front == frontBalancer && len(q.spec.Sources) > 0 && !q.spec.ranged(q.ipv6) && !ours.reached()
		},
	},
	{
		"a Service labelled headless or of another proxy, served by neither: kube-proxy drops or refuses what goes to its cluster IP, vk-metal leaves it to the other proxy and the routes",
		func(q question, ours, theirs answer) bool {
			return q.spec.Label != "" && !ours.reached() && !theirs.reached()
		},
	},
	{
		"node ports, policy Local: kube-proxy, which knows pods by the cluster's CIDR, takes another node's pods for its own and leads them anywhere",
		func(q question, _, _ answer) bool {
			return q.front == frontNode && q.from == "there-client" && q.spec.local()
		},
	},
	{
		"UDP clients of a Service whose last endpoint goes: kube-proxy lets them go on with it, vk-metal refuses them",
		func(q question, _, theirs answer) bool {
			return len(q.spec.Endpoints) == 0 && strings.HasPrefix(theirs.String(), stays)
		},
	},
}

// ranged says whether there is a source range of this IP version.
func (s *spec) ranged(ipv6 bool) bool {
	other := "6"
	if ipv6 {
		other = "4"
	}
	return slices.ContainsFunc(s.Sources, func(who string) bool { return !strings.HasSuffix(who, other) })
}

func hostPrefix(text string) (netip.Prefix, bool) {
	a, err := netip.ParseAddr(text)
	return netip.PrefixFrom(a, a.BitLen()), err == nil
}
