package seccomp

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"pgregory.net/rapid"
)

// data is a struct seccomp_data.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

// run interprets a program as the kernel does (net/core/filter.c, for seccomp's subset).
func run(t interface{ Fatalf(string, ...any) }, program []byte, d data) uint32 {
	word := func(offset uint32) uint32 {
		switch {
		case offset == dataNr:
			return d.nr
		case offset == dataArch:
			return d.arch
		case offset >= dataArgs && offset < 64 && offset%4 == 0:
			return uint32(d.args[(offset-dataArgs)/8] >> (8 * (offset % 8)))
		}
		t.Fatalf("load at %d", offset)
		return 0
	}
	var acc uint32
	for pc := 0; pc < len(program)/8; pc++ {
		at := program[8*pc:]
		code, jt, jf, k := binary.NativeEndian.Uint16(at), at[2], at[3], binary.NativeEndian.Uint32(at[4:])
		jump := func(yes bool) {
			if yes {
				pc += int(jt)
			} else {
				pc += int(jf)
			}
		}
		switch code {
		case opLoad:
			acc = word(k)
		case opAnd:
			acc &= k
		case opReturn:
			return k
		case opJump:
			pc += int(k)
		case opJumpEq:
			jump(acc == k)
		case opJumpGt:
			jump(acc > k)
		case opJumpGe:
			jump(acc >= k)
		default:
			t.Fatalf("unknown instruction %#x", code)
		}
	}
	t.Fatalf("the program ends without a verdict for %+v", d)
	return 0
}

var bothHosts = []Host{{Arch: "amd64"}, {Arch: "arm64"}}

// compareAll checks a program against the profile's model for every number up to the last
// known ones and some beyond, on every architecture, with the argument values given.
func compareAll(t *testing.T, p *Profile, caps []string, host Host, values []uint64) {
	t.Helper()
	program, err := p.Compile(caps, host)
	if err != nil {
		t.Fatal(err)
	}
	arches, err := p.architectures(host)
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range arches {
		policy, err := p.policyFor(arch, caps, host)
		if err != nil {
			t.Fatal(err)
		}
		for _, nr := range interesting(arch) {
			for _, value := range values {
				d := data{nr: nr, arch: auditArches[arch], args: [6]uint64{value, value, value, value, value, value}}
				want := policy.verdict(nr, d.args)
				if got := run(t, program, d); got != want {
					t.Fatalf("%s, call %#x with %#x: %#x, the profile says %#x", arch, nr, value, got, want)
				}
			}
		}
	}
}

// interesting are all numbers near those in use, and the edges of 32 bits.
func interesting(arch specs.Arch) []uint32 {
	var base uint32
	if arch == specs.ArchX32 {
		base = x32Bit
	}
	var out []uint32
	for nr := range uint32(700) {
		out = append(out, base+nr)
	}
	if arch == specs.ArchX32 {
		return append(out, 0x7fffffff, 0x80000000, ^uint32(0)-1, ^uint32(0))
	}
	for nr := uint32(0xefff0); nr < 0xf0010; nr++ {
		out = append(out, nr)
	}
	return append(out, x32Bit-1)
}

var defaultArgs = []uint64{
	0, 1, 8, 37, 38, 39, 40, 41, 0x20000, 0x20008, 0x10000, 0xffffffff, 0x100000000, 0x100000026, ^uint64(0),
	0x10000000, 0x7e020000, 0x01200011, 0x02000000, 0x20000000, 1 << 63,
}

func TestTheDefaultProfileIsWhatIsCompiled(t *testing.T) {
	for _, host := range bothHosts {
		for _, caps := range [][]string{
			nil,
			{"CAP_CHOWN", "CAP_SYS_CHROOT"},
			{"CAP_SYS_ADMIN"},
			{"CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG", "CAP_SYS_TIME", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"},
		} {
			compareAll(t, Default(), caps, host, defaultArgs)
		}
	}
}

// TestTheDefaultProfileRefuses holds what users of the published profile rely on.
func TestTheDefaultProfileRefuses(t *testing.T) {
	const eperm, enosys = verdictErrno | errnoEPERM, verdictErrno | errnoENOSYS
	for _, test := range []struct {
		call string
		args [6]uint64
		caps string
		want uint32
	}{
		{"read", [6]uint64{}, "", verdictAllow},
		{"keyctl", [6]uint64{}, "", eperm},
		{"add_key", [6]uint64{}, "CAP_SYS_ADMIN", eperm},
		{"io_uring_setup", [6]uint64{}, "CAP_SYS_ADMIN", eperm},
		{"userfaultfd", [6]uint64{}, "", eperm},
		{"kexec_load", [6]uint64{}, "CAP_SYS_BOOT", eperm},
		{"swapon", [6]uint64{}, "CAP_SYS_ADMIN", eperm},
		{"reboot", [6]uint64{}, "", eperm},
		{"reboot", [6]uint64{}, "CAP_SYS_BOOT", verdictAllow},
		{"mount", [6]uint64{}, "", eperm},
		{"mount", [6]uint64{}, "CAP_SYS_ADMIN", verdictAllow},
		{"unshare", [6]uint64{0x10000000}, "", eperm},
		{"setns", [6]uint64{}, "", eperm},
		{"bpf", [6]uint64{}, "", eperm},
		{"bpf", [6]uint64{}, "CAP_BPF", verdictAllow},
		{"perf_event_open", [6]uint64{}, "", eperm},
		{"chroot", [6]uint64{}, "", eperm},
		{"chroot", [6]uint64{}, "CAP_SYS_CHROOT", verdictAllow},
		{"clone", [6]uint64{0x01200011}, "", verdictAllow},
		{"clone", [6]uint64{0x10000011}, "", eperm},
		{"clone", [6]uint64{0x10000011}, "CAP_SYS_ADMIN", verdictAllow},
		{"clone3", [6]uint64{}, "", enosys},
		{"clone3", [6]uint64{}, "CAP_SYS_ADMIN", verdictAllow},
		{"personality", [6]uint64{0}, "", verdictAllow},
		{"personality", [6]uint64{0x20008}, "", verdictAllow},
		{"personality", [6]uint64{0x0040000}, "", eperm}, // ADDR_NO_RANDOMIZE
		{"socket", [6]uint64{2}, "", verdictAllow},
		{"socket", [6]uint64{38}, "", eperm}, // AF_ALG
		{"socket", [6]uint64{40}, "", eperm}, // AF_VSOCK
		{"socket", [6]uint64{41}, "", verdictAllow},
		{"ptrace", [6]uint64{}, "", verdictAllow},
		{"open_tree_attr", [6]uint64{}, "", enosys}, // newer than the profile
	} {
		var caps []string
		if test.caps != "" {
			caps = []string{test.caps}
		}
		for _, host := range bothHosts {
			program, err := Default().Compile(caps, host)
			if err != nil {
				t.Fatal(err)
			}
			arch := native[host.Arch][0]
			nr, ok := syscallNumbers()[arch][test.call]
			if !ok {
				t.Fatalf("%s has no %s", arch, test.call)
			}
			if got := run(t, program, data{nr, auditArches[arch], test.args}); got != test.want {
				t.Errorf("%s: %s(%#x) with %q: %#x, want %#x", arch, test.call, test.args[0], test.caps, got, test.want)
			}
		}
	}
}

func TestForeignArchitecturesEndTheProcess(t *testing.T) {
	only, err := Parse([]byte(`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64", "SCMP_ARCH_S390X"]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range bothHosts {
		program, err := only.Compile(nil, host)
		if err != nil {
			t.Fatal(err)
		}
		own := auditArches[native[host.Arch][0]]
		for d, want := range map[data]uint32{
			{nr: 1, arch: own}:                verdictAllow,
			{nr: ^uint32(0), arch: own}:       verdictAllow,
			{nr: 1, arch: own ^ 0x80000000}:   verdictKillProcess,
			{nr: 1, arch: 0x40000003}:         verdictKillProcess,
			{nr: 1, arch: 0}:                  verdictKillProcess,
			{nr: 1, arch: 0x80000016}:         verdictKillProcess, // s390x
			{nr: 0x1000, arch: own}:           verdictAllow,
			{nr: x32Bit - 1, arch: own}:       verdictAllow,
			{nr: x32Bit, arch: own}:           map[string]uint32{"amd64": verdictKillProcess, "arm64": verdictAllow}[host.Arch],
			{nr: ^uint32(0) - 1, arch: own}:   map[string]uint32{"amd64": verdictKillProcess, "arm64": verdictAllow}[host.Arch],
			{nr: x32Bit + 600, arch: own ^ 1}: verdictKillProcess,
		} {
			if got := run(t, program, d); got != want {
				t.Errorf("%s: %+v: %#x, want %#x", host.Arch, d, got, want)
			}
		}
	}
}

// TestProfilesAreWhatIsCompiled draws profiles and compares program and model.
func TestProfilesAreWhatIsCompiled(t *testing.T) {
	names := slices.Collect(func(yield func(string) bool) {
		for name := range syscallNumbers()[specs.ArchX86_64] {
			if !yield(name) {
				return
			}
		}
	})
	slices.Sort(names)
	values := []uint64{0, 1, 2, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x100000001, 0x200000000, ^uint64(0), ^uint64(0) - 1}
	rapid.Check(t, func(rt *rapid.T) {
		config := &seccomp.Seccomp{}
		config.DefaultAction = rapid.SampledFrom([]specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActLog, specs.ActTrap}).Draw(rt, "default")
		config.Architectures = rapid.SampledFrom([][]specs.Arch{nil, {specs.ArchX86_64, specs.ArchX86}, {specs.ArchX86, specs.ArchX32, specs.ArchARM}}).Draw(rt, "arches")
		var used []string
		for range rapid.IntRange(0, 12).Draw(rt, "rules") {
			call := &seccomp.Syscall{}
			call.Names = rapid.SliceOfN(rapid.SampledFrom(names), 1, 5).Draw(rt, "names")
			used = append(used, call.Names...)
			call.Action = rapid.SampledFrom([]specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActTrace, specs.ActKillProcess}).Draw(rt, "action")
			for range rapid.IntRange(0, 7).Draw(rt, "args") {
				call.Args = append(call.Args, specs.LinuxSeccompArg{
					Index: rapid.UintRange(0, 5).Draw(rt, "index"), Value: rapid.SampledFrom(values).Draw(rt, "value"),
					ValueTwo: rapid.SampledFrom(values).Draw(rt, "value two"),
					Op: rapid.SampledFrom([]specs.LinuxSeccompOperator{
						specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual,
					}).Draw(rt, "operator"),
				})
			}
			config.Syscalls = append(config.Syscalls, call)
		}
		if err := check(config); err != nil {
			rt.Fatal(err)
		}
		host := rapid.SampledFrom(bothHosts).Draw(rt, "host")
		p := &Profile{config}
		program, err := p.Compile(nil, host)
		if err != nil {
			rt.Fatal(err)
		}
		arches, _ := p.architectures(host)
		random := rand.New(rand.NewPCG(1, 2))
		for _, arch := range arches {
			policy, err := p.policyFor(arch, nil, host)
			if err != nil {
				rt.Fatal(err)
			}
			for _, name := range append(used, "read", "removexattrat") {
				nr, ok := syscallNumbers()[arch][name]
				if !ok {
					continue
				}
				for range 40 {
					d := data{nr: nr + uint32(random.IntN(3)) - 1, arch: auditArches[arch]}
					if arch != specs.ArchX32 && d.nr >= x32Bit {
						continue
					}
					for i := range d.args {
						d.args[i] = values[random.IntN(len(values))]
						if arch == specs.ArchX86 || arch == specs.ArchARM {
							d.args[i] &= 0xffffffff
						}
					}
					if got, want := run(rt, program, d), policy.verdict(d.nr, d.args); got != want && (arch != specs.ArchX32 || d.nr >= x32Bit) {
						rt.Fatalf("%s: %+v: %#x, the profile says %#x", arch, d, got, want)
					}
				}
			}
		}
	})
}

// TestSyscallTable: a name of the default profile that we do not know would be refused
// although the profile allows it.
func TestSyscallTable(t *testing.T) {
	for arch, want := range map[specs.Arch]map[string]uint32{
		specs.ArchX86_64:  {"read": 0, "clone3": 435, "newfstatat": 262},
		specs.ArchX86:     {"read": 3, "socketcall": 102, "socket": 359},
		specs.ArchX32:     {"read": x32Bit, "rt_sigaction": x32Bit + 512, "pwritev2": x32Bit + 547},
		specs.ArchAARCH64: {"read": 63, "newfstatat": 79, "clone3": 435},
		specs.ArchARM:     {"read": 3, "set_tls": 0xf0005, "sync_file_range2": 341},
	} {
		for name, nr := range want {
			if got, ok := syscallNumbers()[arch][name]; !ok || got != nr {
				t.Errorf("%s on %s is %#x, want %#x", name, arch, got, nr)
			}
		}
	}
	foreign := "fstatat64 ipc s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr riscv_flush_icache riscv_hwprobe swapcontext sync_file_range2 getsid"
	for _, call := range seccomp.DefaultProfile().Syscalls {
		for _, name := range call.Names {
			known := false
			for _, numbers := range syscallNumbers() {
				_, here := numbers[name]
				known = known || here
			}
			if !known && !slices.Contains(strings.Fields(foreign), name) {
				t.Errorf("%s has no number anywhere", name)
			}
		}
	}
}
