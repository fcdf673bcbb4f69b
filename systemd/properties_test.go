package systemd

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/godbus/dbus/v5"
)

func baseUnit() Unit {
	return Unit{
		Name: "vkm-u-c-0.service", Slice: "kubepods-podu.slice", Description: "ns/pod c",
		Identity:   Identity{PodUID: "u", PodNamespace: "ns", PodName: "pod", Container: "c", Attempt: 3, SpecHash: "h", Image: "i"},
		LaunchSpec: "/run/x/launch.json", ExitRecord: "/run/x/exit.json",
	}
}

func find(props []property, name string) (any, bool) {
	for _, p := range props {
		if p.Name == name {
			return p.Value.Value(), true
		}
	}
	return nil, false
}

func TestUnitProperties(t *testing.T) {
	shares, memory, tasks, quota := uint64(1024), uint64(1<<30), uint64(100), 1500*time.Millisecond
	full := Resources{CPUShares: &shares, CPUQuota: &quota, MemoryMax: &memory, TasksMax: &tasks}
	for _, test := range []struct {
		name    string
		change  func(*Unit)
		version cgroupVersion
		want    map[string]any
		without []string
	}{
		{
			"nothing set", func(*Unit) {}, cgroupV1,
			map[string]any{"Restart": "no", "KillMode": "mixed", "DevicePolicy": "strict", "TimeoutStopUSec": uint64(30e6), "TasksMax": uint64(math.MaxUint64)},
			[]string{"CPUShares", "CPUWeight", "MemoryMax", "MemorySwapMax", "Wants", "Requires", "ExecStartEx"},
		},
		{
			"nothing set, v2", func(*Unit) {}, cgroupV2,
			map[string]any{"MemorySwapMax": uint64(0), "TasksMax": uint64(math.MaxUint64)},
			[]string{"CPUWeight", "MemoryMax"},
		},
		{
			"v1", func(u *Unit) { u.Resources = full }, cgroupV1,
			map[string]any{"CPUShares": uint64(1024), "CPUQuotaPerSecUSec": uint64(1500000), "MemoryMax": uint64(1 << 30), "TasksMax": uint64(100)},
			[]string{"CPUWeight", "MemorySwapMax"},
		},
		{
			"v2", func(u *Unit) { u.Resources = full }, cgroupV2,
			map[string]any{"CPUWeight": uint64(100), "MemoryMax": uint64(1 << 30), "MemorySwapMax": uint64(0)},
			[]string{"CPUShares"},
		},
		{
			"all devices", func(u *Unit) { u.AllDevices = true }, cgroupV1,
			map[string]any{"DevicePolicy": "auto"},
			[]string{"DeviceAllow"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			unit := baseUnit()
			test.change(&unit)
			props, err := unitProperties(unit, "/launch", test.version)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range test.want {
				if got, ok := find(props, name); !ok || got != want {
					t.Errorf("%s = %v, want %v", name, got, want)
				}
			}
			for _, name := range test.without {
				if got, ok := find(props, name); ok {
					t.Errorf("%s = %v, want none", name, got)
				}
			}
		})
	}
}

// TestLogWriterStopsLast: at shutdown what a container writes last is still taken.
func TestLogWriterStopsLast(t *testing.T) {
	unit := baseUnit()
	unit.After = []string{"vkm-u-init-0.service"}
	props, err := unitProperties(unit, "/launch", cgroupV2)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := find(props, "After")
	if want := []string{"vk-metal-log.service", "vkm-u-init-0.service"}; !reflect.DeepEqual(got, want) {
		t.Errorf("After = %v, want %v", got, want)
	}
}

func TestUnitPropertiesRefuse(t *testing.T) {
	for name, change := range map[string]func(*Unit){
		"newline in the description": func(u *Unit) { u.Description = "a\nExecStartPre=/bin/sh" },
		"newline in the identity":    func(u *Unit) { u.Identity.PodName = "a\nb" },
		"NUL in the image":           func(u *Unit) { u.Identity.Image = "a\x00" },
		"bad UTF-8 in the slice":     func(u *Unit) { u.Slice = "\xff.slice" },
		"carriage return in a path":  func(u *Unit) { u.LaunchSpec = "/run/\r" },
		"variable in a path":         func(u *Unit) { u.LaunchSpec = "/run/$x" },
		"blank in a path":            func(u *Unit) { u.LaunchSpec = "/run/a b" },
		"empty path":                 func(u *Unit) { u.LaunchSpec = "" },
	} {
		unit := baseUnit()
		change(&unit)
		if _, err := unitProperties(unit, "/launch", cgroupV1); err == nil || !strings.Contains(err.Error(), "vkm-u-c-0.service") {
			t.Errorf("%s: error %v, want one that names the unit", name, err)
		}
	}
}

// TestSharesOf: what is told of a cgroup is about what it was given.
func TestSharesOf(t *testing.T) {
	for _, shares := range []uint64{2, 10, 102, 512, 1024, 2048, 65536, 262144} {
		if got := float64(sharesOf(cpuWeight(shares))); got < 0.8*float64(shares)-1 || got > 1.3*float64(shares)+3 {
			t.Errorf("%d shares are told as %v", shares, got)
		}
	}
	if got := sharesOf(0); got != 0 {
		t.Errorf("no weight is told as %d", got)
	}
}

func TestCPUWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 10: 4, 102: 17, 512: 59, 1024: 100, 2048: 174, 262144: 10000, math.MaxUint64: 10000} {
		if got := cpuWeight(shares); got != want {
			t.Errorf("cpuWeight(%d) = %d, want %d", shares, got, want)
		}
	}
}

// FuzzUnitProperties: whatever a pod's strings are, they are refused, or they go through
// the bus unharmed, no text can begin a line, and the identity comes back exactly.
func FuzzUnitProperties(f *testing.F) {
	f.Add("ns/pod c", "image", "/run/a", "kubepods.slice")
	f.Add("%n $HOME ${X} \\n", "a\nb", "/run/$x", "\xff")
	f.Fuzz(func(t *testing.T, description, image, spec, slice string) {
		unit := baseUnit()
		unit.Description, unit.Identity.Image, unit.LaunchSpec, unit.Slice = description, image, spec, slice
		props, err := unitProperties(unit, "/launch", cgroupV1)
		if err != nil {
			return
		}
		for _, text := range []string{description, image, spec, slice} {
			if strings.ContainsAny(text, "\n\r\x00") || !utf8.ValidString(text) {
				t.Fatalf("%q was accepted", text)
			}
		}
		fields, _ := find(props, "LogExtraFields")
		if id, ok := parseIdentity(fields.([][]byte)); !ok || id != unit.Identity {
			t.Fatalf("identity %+v came back as %+v", unit.Identity, id)
		}
		start, _ := find(props, "ExecStart")
		if argv := start.([]execCommand)[0].Argv; argv[2] != spec || strings.ContainsAny(spec, "$\\\"' ") {
			t.Fatalf("argument %q became %q", spec, argv[2])
		}
		message := &dbus.Message{
			Type: dbus.TypeMethodCall, Body: []any{props},
			Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldPath: dbus.MakeVariant(managerPath), dbus.FieldMember: dbus.MakeVariant("X"),
				dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(props)),
			},
		}
		var wire bytes.Buffer
		if err := message.EncodeTo(&wire, busOrder); err != nil {
			t.Fatal(err)
		}
		if _, err := dbus.DecodeMessage(&wire); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzUnitPath(f *testing.F) {
	f.Add("vkm-1_x.service")
	f.Add("\xff\x00_5f")
	f.Fuzz(func(t *testing.T, name string) {
		path := unitPath(name)
		if name != "" && !path.IsValid() {
			t.Fatalf("%q gives the bad path %q", name, path)
		}
		if back, ok := unitName(path); !ok || back != name {
			t.Fatalf("%q became %q and came back as %q", name, path, back)
		}
	})
}

func FuzzUnitName(f *testing.F) {
	f.Add("/org/freedesktop/systemd1/unit/_")
	f.Add("/org/freedesktop/systemd1/unit/_5")
	f.Fuzz(func(_ *testing.T, path string) { unitName(dbus.ObjectPath(path)) })
}

func TestUnitPath(t *testing.T) {
	// As busctl shows them.
	for name, want := range map[string]string{
		"vkm-1.service": "/org/freedesktop/systemd1/unit/vkm_2d1_2eservice",
		"1.slice":       "/org/freedesktop/systemd1/unit/_31_2eslice",
	} {
		if got := unitPath(name); string(got) != want {
			t.Errorf("unitPath(%q) = %s, want %s", name, got, want)
		}
	}
}

func TestSliceGroup(t *testing.T) {
	for name, want := range map[string]string{
		"-.slice":                         "/",
		"kubepods.slice":                  "/kubepods.slice",
		"kubepods-burstable-podu_1.slice": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podu_1.slice",
	} {
		if got, ok := sliceGroup(name); !ok || got != want {
			t.Errorf("sliceGroup(%q) = %q, want %q", name, got, want)
		}
	}
	if _, ok := sliceGroup("x.service"); ok {
		t.Error("a service is taken for a slice")
	}
}

// TestStrictProperties: they are added to a strict unit alone.
func TestStrictProperties(t *testing.T) {
	names := func(unit Unit) map[string]bool {
		props, err := unitProperties(unit, "/launch", cgroupV2)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]bool{}
		for _, p := range props {
			out[p.Name] = true
		}
		return out
	}
	plain, strict := baseUnit(), baseUnit()
	strict.Strict = true
	for _, p := range strictProperties(strict) {
		if names(plain)[p.Name] || !names(strict)[p.Name] {
			t.Errorf("%s: in a plain unit %v, in a strict one %v", p.Name, names(plain)[p.Name], names(strict)[p.Name])
		}
	}
	if len(names(strict)) <= len(names(plain)) {
		t.Error("a strict unit is no stricter")
	}
}
