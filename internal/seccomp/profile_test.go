package seccomp

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/moby/profiles/seccomp"
)

func TestParseSaysWhatIsWrong(t *testing.T) {
	for profile, want := range map[string]string{
		``:                                      "decode JSON",
		`[]`:                                    "decode JSON",
		`{}`:                                    "defaultAction is missing",
		`{"defaultAction": "SCMP_ACT_ALLOW"}{}`: "there is more behind the profile",
		`{"defaultAction": "allow"}`:            `defaultAction: "allow" is not an action`,
		`{"defaultAction": "SCMP_ACT_NOTIFY"}`:  "SCMP_ACT_NOTIFY is not supported",
		`{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}`:                                                                                 "errnoRet 5000 is not an error number",
		`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["x86"]}`:                                                                                `"x86" is not an architecture`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{}]}`:                                                     "exclude each other",
		`{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}`:                                                     "flags[0]",
		`{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"}`:                                                                                "listenerPath",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [null]}`:                                                                                      "syscalls[0]: it is null",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO"}]}`:                                                              "names is missing",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "a", "names": ["b"]}]}`:                                                             "name and names",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_NOTIFY"}]}`:                                             "syscalls[0]: a: action: SCMP_ACT_NOTIFY",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]}`: "index: 6",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [{"op": "=="}]}]}`:                      `"==" is not an operator`,
	} {
		if _, err := Parse([]byte(profile)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", profile, err, want)
		}
	}
}

func TestConditionsOfRules(t *testing.T) {
	profile, err := Parse([]byte(`{
		"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 22,
		"archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}],
		"syscalls": [
			{"names": ["getpid"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_CHOWN"]}},
			{"names": ["getuid"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_CHOWN"]}},
			{"names": ["getgid"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
			{"names": ["geteuid"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}},
			{"names": ["getegid"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "6.2"}},
			{"name": "gettid", "action": "SCMP_ACT_LOG"},
			{"names": ["no_such_call"], "action": "SCMP_ACT_LOG"}
		]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		caps   []string
		kernel seccomp.KernelVersion
		want   string
	}{
		{nil, seccomp.KernelVersion{}, "getuid geteuid gettid"},
		{[]string{"CAP_CHOWN"}, seccomp.KernelVersion{Kernel: 6, Major: 1}, "getpid getegid gettid"},
		{nil, seccomp.KernelVersion{Kernel: 7}, "getuid geteuid gettid"},
	} {
		host := Host{Arch: "amd64", Kernel: test.kernel}
		program, err := profile.Compile(test.caps, host)
		if err != nil {
			t.Fatal(err)
		}
		var passed []string
		for _, name := range strings.Fields("getpid getuid getgid geteuid getegid gettid read") {
			nr := syscallNumbers()["SCMP_ARCH_X86_64"][name]
			switch verdict := run(t, program, data{nr: nr, arch: auditArches["SCMP_ARCH_X86_64"]}); verdict {
			case verdictAllow, verdictLog:
				passed = append(passed, name)
			case verdictErrno | 22:
			default:
				t.Errorf("%s: %#x", name, verdict)
			}
		}
		if got := strings.Join(passed, " "); got != test.want {
			t.Errorf("%v on %v: %s, want %s", test.caps, test.kernel, got, test.want)
		}
	}
}

func TestFlags(t *testing.T) {
	for profile, want := range map[string]uint32{
		`{"defaultAction": "SCMP_ACT_ALLOW"}`:                                              4,
		`{"defaultAction": "SCMP_ACT_ALLOW", "flags": []}`:                                 0,
		`{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}`:        2,
		`{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_TSYNC"]}`:      0,
		`{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}`: 4,
	} {
		p, err := Parse([]byte(profile))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Flags(); got != want {
			t.Errorf("%s: %d, want %d", profile, got, want)
		}
	}
}

// FuzzParse: whatever a file holds, it is refused or makes a program that always ends in a verdict.
func FuzzParse(f *testing.F) {
	def, err := json.Marshal(seccomp.DefaultProfile())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(def)
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":1,"op":"SCMP_CMP_LE","value":7}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		for _, host := range bothHosts {
			program, err := p.Compile([]string{"CAP_SYS_ADMIN"}, host)
			if err != nil {
				continue
			}
			for _, arch := range native[host.Arch] {
				for nr := uint32(0); nr < 520; nr += 13 {
					run(t, program, data{nr: nr, arch: auditArches[arch]})
				}
			}
		}
	})
}
