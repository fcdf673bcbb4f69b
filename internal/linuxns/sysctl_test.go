package linuxns

import "testing"

func TestSysctlPath(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":              "/proc/sys/net/ipv4/ip_forward",
		"net/ipv4/ip_forward":              "/proc/sys/net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.rp_filter": "/proc/sys/net/ipv4/conf/eth0.100/rp_filter",
		"net/ipv4/conf/eth0.100/rp_filter": "/proc/sys/net/ipv4/conf/eth0.100/rp_filter",
		"kernel.shm_rmid_forced":           "",
		"net":                              "",
		"net.":                             "",
		"net/../kernel/hostname":           "",
		"net./.kernel":                     "",
		"/net/ipv4/ip_forward":             "",
		"net/ipv4/":                        "",
		"net.ipv4.x\x00":                   "",
		"network.x":                        "",
		"":                                 "",
	} {
		got, err := SysctlPath(key)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("SysctlPath(%q) = %q, %v, want %q", key, got, err, want)
		}
	}
}
