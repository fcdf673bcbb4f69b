package podplan

import (
	"fmt"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
)

// linesOf refuses what would become more than one word of a line in /etc/hosts or
// /etc/resolv.conf, and so could name other hosts and servers than it seems to. The API
// server lets none of it through; this holds when it is not what it seems.
func linesOf(pod *corev1.Pod) []Refusal {
	var refusals []Refusal
	check := func(field, value string) {
		if strings.ContainsFunc(value, func(r rune) bool {
			return unicode.IsSpace(r) || unicode.IsControl(r) || r == '#' || r == unicode.ReplacementChar
		}) {
			refusals = append(refusals, Refusal{Field: field, Reason: fmt.Sprintf("%q has white space, a control character or a #", value)})
		}
	}
	check("spec.hostname", pod.Spec.Hostname)
	check("spec.subdomain", pod.Spec.Subdomain)
	for i, alias := range pod.Spec.HostAliases {
		check(fmt.Sprintf("spec.hostAliases[%d].ip", i), alias.IP)
		for j, name := range alias.Hostnames {
			check(fmt.Sprintf("spec.hostAliases[%d].hostnames[%d]", i, j), name)
		}
	}
	dns := pod.Spec.DNSConfig
	if dns == nil {
		return refusals
	}
	for i, server := range dns.Nameservers {
		check(fmt.Sprintf("spec.dnsConfig.nameservers[%d]", i), server)
	}
	for i, domain := range dns.Searches {
		check(fmt.Sprintf("spec.dnsConfig.searches[%d]", i), domain)
	}
	for i, option := range dns.Options {
		check(fmt.Sprintf("spec.dnsConfig.options[%d].name", i), option.Name)
		if option.Value != nil {
			check(fmt.Sprintf("spec.dnsConfig.options[%d].value", i), *option.Value)
		}
	}
	return refusals
}
