package podplan

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestNothingAddsLinesToTheFilesInEtc(t *testing.T) {
	for field, change := range map[string]func(*corev1.PodSpec, string){
		"spec.hostname":  func(s *corev1.PodSpec, v string) { s.Hostname = v },
		"spec.subdomain": func(s *corev1.PodSpec, v string) { s.Subdomain = v },
		"spec.hostAliases[0].ip": func(s *corev1.PodSpec, v string) {
			s.HostAliases = []corev1.HostAlias{{IP: v, Hostnames: []string{"a"}}}
		},
		"spec.hostAliases[0].hostnames[1]": func(s *corev1.PodSpec, v string) {
			s.HostAliases = []corev1.HostAlias{{IP: "192.0.2.1", Hostnames: []string{"a", v}}}
		},
		"spec.dnsConfig.nameservers[0]": func(s *corev1.PodSpec, v string) { s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{v}} },
		"spec.dnsConfig.searches[0]":    func(s *corev1.PodSpec, v string) { s.DNSConfig = &corev1.PodDNSConfig{Searches: []string{v}} },
		"spec.dnsConfig.options[0].name": func(s *corev1.PodSpec, v string) {
			s.DNSConfig = &corev1.PodDNSConfig{Options: []corev1.PodDNSConfigOption{{Name: v}}}
		},
		"spec.dnsConfig.options[0].value": func(s *corev1.PodSpec, v string) {
			s.DNSConfig = &corev1.PodDNSConfig{Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &v}}}
		},
	} {
		for value, bad := range map[string]bool{
			"fine-1.example": false, "a\n192.0.2.66 registry.k8s.io": true, "a b": true, "a\tb": true, "a\u2028b": true, "a#": true, "a\x00b": true, "a\x7f": true, "a\xff": true,
		} {
			pod := basePod()
			change(&pod.Spec, value)
			got := Refusals(pod, Policy{})
			if bad != (len(got) == 1 && got[0].Field == field) || !bad && len(got) > 0 {
				t.Errorf("%s = %q: %v", field, value, got)
			}
		}
	}
}

// FuzzUnitName: no identity that CheckNames lets through makes a unit or slice name that
// means anything else to systemd (systemd.unit(5): specifiers, templates, path characters).
func FuzzUnitName(f *testing.F) {
	f.Add("11111111-2222-3333-4444-555555555555", "ns", "pod.name", "app")
	f.Add("u@1", "n\ns", "%n", "a/../b")
	f.Fuzz(func(t *testing.T, uid, namespace, name, container string) {
		pod := basePod()
		pod.UID, pod.Namespace, pod.Name = types.UID(uid), namespace, name
		pod.Spec.Containers[0].Name = container
		if CheckNames(pod) != nil {
			return
		}
		for _, unit := range append(SliceNames(uid), UnitName(uid, container, 3)) {
			if strings.ContainsAny(unit, "/@%\\ \t\r\n\x00\"'$;#") || strings.Contains(unit, "..") || len(unit) > 255 || strings.HasPrefix(unit, "-") {
				t.Errorf("unit %q", unit)
			}
		}
		if slice := SliceName(uid, corev1.PodQOSBurstable); strings.Count(slice, "-") != 2 {
			t.Errorf("slice %q nests otherwise than it should", slice)
		}
	})
}
