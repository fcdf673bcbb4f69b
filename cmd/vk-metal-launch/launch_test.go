//go:build linux

package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

const (
	testPasswd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:1234:2345::/srv/web:\nhomeless:x:7:8:::\n99:x:5:6::/odd:\nbad:x:-1:0::/:\n"
	testGroup  = "root:x:0:\nweb:x:2345:\nextra:x:3456:root,web\nmore:x:4567:web\nbroken:x\n98:x:0:\n"
)

func ptr(n uint32) *uint32 { return &n }

func TestLookupUser(t *testing.T) {
	for _, test := range []struct {
		name string
		in   launchspec.User
		want user
		err  string
	}{
		{"nobody named", launchspec.User{}, user{0, 0, []uint32{0, 3456}, "/root"}, ""},
		{"name", launchspec.User{Name: "web"}, user{1234, 2345, []uint32{2345, 3456, 4567}, "/srv/web"}, ""},
		{"number", launchspec.User{Name: "1234"}, user{1234, 2345, []uint32{2345, 3456, 4567}, "/srv/web"}, ""},
		{"a number that passwd has for a name", launchspec.User{Name: "99"}, user{99, 0, []uint32{0}, "/"}, ""},
		{"a group's number that group has for a name", launchspec.User{Name: "web:98"}, user{1234, 98, []uint32{98, 3456, 4567}, "/srv/web"}, ""},
		{"a number past all users", launchspec.User{Name: "4294967296"}, user{}, "unable to find user 4294967296: no matching entries in passwd file"},
		{"unknown number", launchspec.User{Name: "4242"}, user{4242, 0, []uint32{0}, "/"}, ""},
		{"group by name", launchspec.User{Name: "4242:extra"}, user{4242, 3456, []uint32{3456}, "/"}, ""},
		{"group by number", launchspec.User{Name: "web:77"}, user{1234, 77, []uint32{77, 3456, 4567}, "/srv/web"}, ""},
		{"empty group", launchspec.User{Name: "web:"}, user{1234, 2345, []uint32{2345, 3456, 4567}, "/srv/web"}, ""},
		{"UID beats name", launchspec.User{Name: "web", UID: ptr(0)}, user{0, 0, []uint32{0, 3456}, "/root"}, ""},
		{"UID leaves the image's group alone", launchspec.User{Name: "web:extra", UID: ptr(9)}, user{9, 0, []uint32{0}, "/"}, ""},
		{"GID beats everything", launchspec.User{Name: "web:extra", GID: ptr(9)}, user{1234, 9, []uint32{9, 3456, 4567}, "/srv/web"}, ""},
		{"own groups, sorted, once", launchspec.User{Name: "web", Groups: []uint32{9, 3456, 9}}, user{1234, 2345, []uint32{9, 2345, 3456, 4567}, "/srv/web"}, ""},
		{"strict", launchspec.User{Name: "web", Groups: []uint32{9}, StrictGroups: true}, user{1234, 2345, []uint32{9, 2345}, "/srv/web"}, ""},
		{"no home", launchspec.User{Name: "homeless"}, user{7, 8, []uint32{8}, "/"}, ""},
		{"unknown name", launchspec.User{Name: "ghost"}, user{}, "unable to find user ghost: no matching entries in passwd file"},
		{"unknown group", launchspec.User{Name: "web:ghost"}, user{}, "unable to find group ghost: no matching entries in group file"},
		{"entry with a bad number", launchspec.User{Name: "bad"}, user{}, "unable to find user bad: no matching entries in passwd file"},
		{"the number that means nobody", launchspec.User{Name: "4294967295"}, user{}, "unable to find user 4294967295: no matching entries in passwd file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := lookupUser(test.in, testPasswd, testGroup)
			if test.err != "" {
				if err == nil || err.Error() != test.err {
					t.Fatalf("error %v, want %s", err, test.err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(*got, test.want) {
				t.Errorf("%+v, %v, want %+v", got, err, test.want)
			}
		})
	}
}

func FuzzLookupUser(f *testing.F) {
	f.Add("web:extra", testPasswd, testGroup)
	f.Fuzz(func(t *testing.T, name, passwd, group string) {
		if u, err := lookupUser(launchspec.User{Name: name}, passwd, group); err == nil && (u.UID == 1<<32-1 || u.GID == 1<<32-1) {
			t.Fatalf("user %+v means nobody to the kernel", u)
		}
	})
}

func TestExitStatus(t *testing.T) {
	for _, test := range []struct {
		code, status      string
		exitCode, signal_ int
	}{
		{"exited", "0", 0, 0},
		{"exited", "255", 255, 0},
		{"killed", "KILL", 137, 9},
		{"dumped", "SEGV", 139, 11},
		{"killed", "TERM", 143, 15},
		{"killed", "RTMIN", 162, 34},
		{"killed", "RTMIN+3", 165, 37},
		{"killed", "63", 191, 63},
		{"", "", 137, 9},
	} {
		code, signal := exitStatus(test.code, test.status)
		if code != test.exitCode || signal != test.signal_ {
			t.Errorf("%s %s: %d, %d", test.code, test.status, code, signal)
		}
	}
}

func TestExitOf(t *testing.T) {
	dir := t.TempDir()
	spec := &launchspec.Spec{PodUID: "u", Container: "c", Attempt: 2, ErrorRecord: filepath.Join(dir, "start-error.json")}
	env := map[string]string{"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "127"}
	exit := exitOf(spec, filepath.Join(dir, "launch.json"), func(name string) string { return env[name] })
	if exit.ExitCode != 127 || exit.StartError != nil || exit.StartedAt == "" || exit.Attempt != 2 || exit.ServiceResult != "exit-code" {
		t.Errorf("without records: %+v", exit)
	}
	failure := launchspec.StartError{Reason: "StartError", Message: "no", Code: 126}
	if err := errors.Join(writeJSON(spec.ErrorRecord, failure), writeJSON(filepath.Join(dir, launchspec.ProcessFile), launchspec.Process{StartedAt: "then"})); err != nil {
		t.Fatal(err)
	}
	exit = exitOf(spec, filepath.Join(dir, "launch.json"), func(name string) string { return env[name] })
	if exit.ExitCode != 126 || exit.StartError == nil || *exit.StartError != failure || exit.StartedAt != "then" {
		t.Errorf("with records: %+v", exit)
	}
}

func TestCgroupFiles(t *testing.T) {
	for _, test := range []struct{ name, in, events, controllers string }{
		{"v1", "4:memory:/a/b.service\n2:cpu,cpuacct:/x\n1:name=systemd:/a/b.service\n0::/\n", "/m/memory/a/b.service/memory.oom_control", "memory cpu,cpuacct"},
		{"v2", "0::/a/b.service\n", "/m/a/b.service/memory.events", ""},
		{"v2, control process", "0::/a/b.service/.control\n", "/m/a/b.service/memory.events", ""},
		{"v2, v1 hierarchies that are not mounted", "4:memory:/\n0::/a/b.service\n", "/m/a/b.service/memory.events", "memory"},
		{"broken", "x\n", "", ""},
	} {
		if got := memoryEventsFile(test.in, "/m", strings.HasPrefix(test.name, "v2")); got != test.events {
			t.Errorf("%s: %s", test.name, got)
		}
		if got := strings.Join(v1Hierarchies(test.in), " "); got != test.controllers {
			t.Errorf("%s: controllers %s", test.name, got)
		}
	}
	if n := oomKills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"); n != 3 {
		t.Errorf("v1: %d kills", n)
	}
	if n := oomKills("low 0\nmax 5\noom 1\noom_kill 1\noom_group_kill 0\n"); n != 1 {
		t.Errorf("v2: %d kills", n)
	}
}

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"kernel.shm_rmid_forced":              "kernel/shm_rmid_forced",
		"net/ipv4/conf/eth0.1/rp_filter":      "net/ipv4/conf/eth0.1/rp_filter",
		"net.ipv4.conf.eth0/1.rp_filter":      "net/ipv4/conf/eth0.1/rp_filter",
		"../../etc":                           "//.//.etc", // and openat2 stays beneath /proc
		"net.ipv4.ip_unprivileged_port_start": "net/ipv4/ip_unprivileged_port_start",
	} {
		if got := sysctlPath(name); got != want {
			t.Errorf("sysctlPath(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestWithHome(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"A=b", "A=b HOME=/h"},
		{"HOME=/x A=b", "HOME=/x A=b"},
		{"HOME= A=b", "A=b HOME=/h"},
		{"", "HOME=/h"},
	} {
		var env [][]byte
		for _, entry := range strings.Fields(test.in) {
			env = append(env, []byte(entry))
		}
		if got := strings.Join(stringsOf(withHome(env, "/h")), " "); got != test.want {
			t.Errorf("%q: %q, want %q", test.in, got, test.want)
		}
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	other := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"run": 0o755, "data": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(other, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := other + ":" + dir
	for _, test := range []struct {
		name, want, err string
		code            int
	}{
		{"run", filepath.Join(dir, "run"), "", 0},
		{"none", "", `exec: "none": executable file not found in $PATH`, exitNotFound},
		{"data", "", `exec: "data": permission denied`, exitNotExecutable},
		{dir + "/none", "", `exec: "` + dir + `/none": stat ` + dir + `/none: no such file or directory`, exitNotFound},
		{dir + "/data", "", `exec: "` + dir + `/data": permission denied`, exitNotExecutable},
		{dir, "", `exec: "` + dir + `": is a directory: permission denied`, exitNotExecutable},
	} {
		got, err := lookPath(test.name, path)
		if got != test.want {
			t.Errorf("%s: %q", test.name, got)
		}
		if test.err != "" && (err == nil || err.Error() != test.err || toStartError(err).Code != test.code) {
			t.Errorf("%s: error %v, want %s with code %d", test.name, err, test.err, test.code)
		}
	}
}

// TestInRoot walks a root whose symlinks try to lead out of it.
func TestInRoot(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "root")
	for link, target := range map[string]string{
		"up": "../../../../..", "abs": "/", "dangling": "/made/here", "dots": "../../made2", "chain": "dangling/deep",
	} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Symlink(target, filepath.Join(dir, link))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openat2(fd, ".", unix.OpenHow{Flags: unix.O_PATH}); errors.Is(err, unix.ENOSYS) {
		t.Skip("needs openat2")
	}
	root := rootDir{fd: fd}
	for name, want := range map[string]string{
		"/a/b/c":          "a/b/c",
		"up/x":            "x",
		"abs/y":           "y",
		"dangling/z":      "made/here/z",
		"dots/w":          "made2/w",
		"chain":           "made/here/deep",
		"../../../out":    "out",
		"up/../../up/out": "out",
	} {
		got, err := root.mkdirAll(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		real, _ := os.Readlink("/proc/self/fd/" + itoa(got))
		if real != filepath.Join(dir, want) {
			t.Errorf("%s was made at %s, want %s", name, real, want)
		}
	}
	if _, err := root.mkdirAll("loop/x"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("loop: %v", err)
	}
	if file, err := root.makeFile("dangling/new/file"); err != nil {
		t.Error(err)
	} else if real, _ := os.Readlink("/proc/self/fd/" + itoa(file)); real != filepath.Join(dir, "made/here/new/file") {
		t.Errorf("file was made at %s", real)
	}
	entries, err := os.ReadDir(base)
	if err != nil || len(entries) != 1 {
		t.Errorf("something was made outside: %v, %v", entries, err)
	}
}

func TestCheckStrings(t *testing.T) {
	long := []byte("A=" + strings.Repeat("x", maxArgStrlen-2))
	for _, test := range []struct {
		name  string
		value []byte
		err   string
	}{
		{"longest", long, ""},
		{"too long", append(long, 'x'), `container "c": env "A" is 131072 bytes long, the kernel takes at most 131071`},
		{"NUL", []byte("A=\x00secret"), `container "c": env "A" contains a NUL byte`},
		{"no name", []byte("secret"), `container "c": env[0] is not of the form NAME=value`},
	} {
		err := checkStrings("c", "env", [][]byte{test.value})
		if (test.err == "") != (err == nil) || err != nil && err.Error() != test.err {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestOnlyTheNamedUnitsProcessIsJoined(t *testing.T) {
	const own = "9:memory:/x\n1:name=systemd:/k.slice/p.slice/vkm-a.service\n0::/k.slice/p.slice/vkm-a.service\n"
	for _, test := range []struct {
		own, theirs, unit string
		want              bool
	}{
		{own, "1:name=systemd:/k.slice/p.slice/vkm-b.service\n0::/\n", "vkm-b.service", true},
		{own, "1:name=systemd:/k.slice/p.slice/vkm-b.service/init.scope\n", "vkm-b.service", true},
		{own, "1:name=systemd:/k.slice/p.slice/vkm-b.service2\n", "vkm-b.service", false},
		{own, "1:name=systemd:/k.slice/q.slice/vkm-b.service\n", "vkm-b.service", false},
		{own, "1:name=systemd:/init.scope\n0::/k.slice/p.slice/vkm-b.service\n", "vkm-b.service", false},
		{own, "1:name=systemd:/k.slice/p.slice\n", "", false},
		{own, "", "vkm-b.service", false},
		{"", "", "vkm-b.service", false},
		{"0::/p.slice/vkm-a.service\n", "0::/p.slice/vkm-b.service\n", "vkm-b.service", true},
		{"0::/p.slice/vkm-a.service\n", "0::/p.slice/vkm-b.service (deleted)\n", "vkm-b.service", false},
	} {
		if got := besideUs(test.own, test.theirs, test.unit); got != test.want {
			t.Errorf("%q beside %q as %s: %v", test.theirs, test.own, test.unit, got)
		}
	}
}

// TestProgramIsHeldLow: beyond 64 descriptors the kernel makes the table bigger, and waits. What
// is open already stays.
func TestProgramIsHeldLow(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if firstHeld >= 64 {
		t.Errorf("descriptors are held from %d on", firstHeld)
	}
	seen := map[int]bool{}
	for range 2 {
		fd, err := readonlySelf()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if fd < firstHeld || seen[fd] {
			t.Errorf("held as %d", fd)
		}
		seen[fd] = true
		if err := unix.Access(descriptorPath(fd), unix.W_OK); !errors.Is(err, unix.EROFS) {
			t.Errorf("descriptor %d can be written: %v", fd, err)
		}
	}
}
