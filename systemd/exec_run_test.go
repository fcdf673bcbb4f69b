package systemd

import "testing"

func TestGroupBelow(t *testing.T) {
	const unit = "/kubepods.slice/kubepods-poduid.slice/vkm-a.service"
	for name, c := range map[string]struct {
		table, below string
		ok           bool
	}{
		"divided":              {"0::" + unit + "/init\n", "/init", true},
		"deeper, after v1's":   {"5:devices:/x\n0::" + unit + "/a/b\n", "/a/b", true},
		"itself":               {"0::" + unit + "\n", "", false},
		"left":                 {"0::/system.slice/x.service\n", "/system.slice/x.service", false},
		"another's name":       {"0::" + unit + "s/init\n", "", false},
		"no unified hierarchy": {"5:devices:" + unit + "/init\n", "", false},
	} {
		below, ok := groupBelow(c.table, unit)
		if ok != c.ok || ok && below != c.below {
			t.Errorf("%s: %q %t", name, below, ok)
		}
	}
}
