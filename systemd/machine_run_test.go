package systemd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/seccomp"
)

func TestMachineExitCodes(t *testing.T) {
	m := newMachine(t)
	for _, test := range []struct {
		name, script string
		code, signal int
	}{
		{"zero at once", "exit 0", 0, 0},
		{"one at once", "exit 1", 1, 0},
		{"42 at once", "exit 42", 42, 0},
		{"42 later", "usleep 30000; exit 42", 42, 0},
		{"SEGV", "ulimit -c 0; kill -SEGV $$; sh -c 'ulimit -c 0; kill -SEGV $$'; exit $?", 139, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := m.attempt("sh", "-c", test.script)
			a.mustStart()
			exit := a.exit()
			if exit.ExitCode != test.code || exit.Signal != test.signal || exit.StartError != nil {
				t.Errorf("exit record %+v, want code %d signal %d", exit, test.code, test.signal)
			}
		})
	}
}

func TestMachineStartErrors(t *testing.T) {
	m := newMachine(t)
	for _, test := range []struct {
		command, message string
		code             int
	}{
		{"missing", `exec: "missing": executable file not found in $PATH`, 127},
		{"/bin/missing", `exec: "/bin/missing": stat /bin/missing: no such file or directory`, 127},
		{"/bin/notexec", `exec: "/bin/notexec": permission denied`, 126},
		{"/bin/notbinary", `exec: "/bin/notbinary": exec format error`, 126},
	} {
		t.Run(test.command, func(t *testing.T) {
			a := m.attempt(test.command)
			_, err := a.start()
			var failure *StartError
			if !errors.As(err, &failure) || failure.Record == nil {
				t.Fatalf("error %v, want a StartError with the launcher's record", err)
			}
			if !strings.HasSuffix(failure.Record.Message, test.message) || failure.Record.Code != test.code {
				t.Errorf("record %+v, want code %d and %s", failure.Record, test.code, test.message)
			}
			if exit := a.exit(); exit.ExitCode != test.code {
				t.Errorf("exit code %d, want %d", exit.ExitCode, test.code)
			}
		})
	}
}

// TestMachineExitCodesNeverLost ends containers as fast as possible: neither the exit code
// nor the record may get lost between the launcher, systemd and the workload.
func TestMachineExitCodesNeverLost(t *testing.T) {
	m := newMachine(t)
	codes := []int{0, 1, 42, 139}
	var group sync.WaitGroup
	for worker := range 4 {
		group.Add(1)
		go func() {
			defer group.Done()
			for round := range 30 {
				want := codes[(worker+round)%len(codes)]
				a := m.attempt("sh", "-c", fmt.Sprintf("exit %d", want))
				if _, err := a.start(); err != nil {
					t.Errorf("start: %v", err)
					return
				}
				if exit := a.exit(); exit.ExitCode != want || exit.StartError != nil {
					t.Errorf("exit record %+v, want code %d", exit, want)
				}
			}
		}()
	}
	group.Wait()
}

func TestMachineSignals(t *testing.T) {
	m := newMachine(t)
	t.Run("TERM reaches the main process only", func(t *testing.T) {
		a := m.attempt("sh", "-c", "trap 'echo main; exit 9' TERM; sh -c 'trap \"echo child >&2\" TERM; while :; do sleep 1000 & wait $!; done' & wait $!")
		output := a.capture()
		a.mustStart()
		m.eventually("both are there", func() bool { return strings.Contains(a.mustExec("ps"), "sleep 1000") })
		m.must(m.manager.Signal(m.ctx, a.unit.Name, syscall.SIGTERM, false))
		if exit := a.exit(); exit.ExitCode != 9 {
			t.Errorf("exit record %+v", exit)
		}
		if got := output(); got != "main\n" {
			t.Errorf("output %q", got)
		}
	})
	t.Run("KILL", func(t *testing.T) {
		a := m.sleeper(nil)
		m.must(m.manager.Signal(m.ctx, a.unit.Name, syscall.SIGKILL, true))
		if exit := a.exit(); exit.ExitCode != 137 || exit.Signal != 9 || exit.OOMKilled {
			t.Errorf("exit record %+v", exit)
		}
		m.must(m.manager.Signal(m.ctx, a.unit.Name, syscall.SIGKILL, true)) // gone is success
	})
	t.Run("the launcher leaves default dispositions and an empty mask", func(t *testing.T) {
		got := m.sh("", func(a *attempt) { a.spec.Args = bytesOf("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status") })
		if got != "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n" {
			t.Errorf("%q", got)
		}
	})
}

func TestMachineOOM(t *testing.T) {
	m := newMachine(t)
	memory := uint64(32 << 20)
	a := m.attempt("sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1; exit 3")
	a.unit.Resources.MemoryMax = &memory
	a.mustStart()
	if exit := a.exit(); !exit.OOMKilled {
		t.Errorf("exit record %+v, want OOMKilled", exit)
	}
	main := m.attempt("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
	main.unit.Resources.MemoryMax = &memory
	main.mustStart()
	if exit := main.exit(); !exit.OOMKilled || exit.ExitCode != 137 || exit.Signal != 9 {
		t.Errorf("exit record %+v, want OOMKilled and 137", exit)
	}
}

func TestMachineLimits(t *testing.T) {
	m := newMachine(t)
	shares, memory, tasks := uint64(512), uint64(64<<20), uint64(77)
	a := m.sleeper(func(a *attempt) {
		a.unit.Resources = Resources{CPUShares: &shares, MemoryMax: &memory, TasksMax: &tasks}
	})
	files := []string{"memory/memory.limit_in_bytes", "pids/pids.max", "cpu/cpu.shares"}
	want := "67108864\n77\n512\n"
	if m.manager.cgroup == cgroupV2 {
		files, want = []string{"memory.max", "pids.max", "cpu.weight"}, "67108864\n77\n59\n"
	}
	read := append([]string{"cat"}, files...)
	for i := range files {
		read[i+1] = "/sys/fs/cgroup/" + files[i]
	}
	if got := a.mustExec(read...); got != want {
		t.Errorf("limits inside are %q, want %q", got, want)
	}
	if _, _, errs, err := a.exec(nil, "sh", "-c", "echo 1 > "+read[1]); err != nil || !strings.Contains(errs, "Read-only") {
		t.Errorf("limits can be written: %q, %v", errs, err)
	}
	more := uint64(96 << 20)
	m.must(m.manager.SetResources(m.ctx, a.unit.Name, Resources{MemoryMax: &more}))
	if got := a.mustExec(read[:2]...); got != "100663296\n" {
		t.Errorf("limit after the change is %q", got)
	}
	m.eventually("both processes are there, with their memory and time", func() bool {
		stats, err := m.manager.Stats(m.ctx, a.unit.Name)
		m.must(err)
		return stats.MemoryUsage > 0 && stats.CPUUsage > 0 && stats.Processes >= 2 && stats.MemoryLimit == more
	})
	if stats, err := m.manager.Stats(m.ctx, a.unit.Slice); err != nil || stats.MemoryUsage == 0 || stats.CPUUsage == 0 {
		t.Errorf("stats of slice %+v, %v", stats, err)
	}
	group, err := m.manager.Cgroup(m.ctx, a.unit.Name)
	if err != nil || !strings.HasSuffix(group.Path, "/"+a.unit.Name) || len(group.PIDs) < 2 {
		t.Errorf("cgroup of the unit %+v, %v", group, err)
	}
	if group.CPU.Shares < shares*9/10 || group.CPU.Shares > shares*11/10 || group.CPU.Quota != 0 || group.CPU.Period == 0 {
		t.Errorf("CPU limits %+v", group.CPU)
	}
}

// TestMachineHugePages: what systemd does not limit is limited all the same, and a new limit of
// systemd's does not undo it.
func TestMachineHugePages(t *testing.T) {
	m := newMachine(t)
	a := m.attempt("sleep", "1000")
	a.spec.HugePages = []launchspec.HugePages{{Size: "2MB", Container: 4 << 20, Pod: 8 << 20}}
	started := a.mustStart()
	root := ""
	for _, dir := range []string{cgroupMount, cgroupMount + "/unified"} {
		if data, err := os.ReadFile(dir + "/cgroup.controllers"); err == nil && slices.Contains(strings.Fields(string(data)), "hugetlb") {
			root = dir
		}
	}
	if root == "" {
		t.Log("nothing counts huge pages in this machine: the container has started without")
		return
	}
	more := uint64(96 << 20)
	m.must(m.manager.SetResources(m.ctx, a.unit.Name, Resources{MemoryMax: &more}))
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", started.MainPID))
	m.must(err)
	_, group, _ := strings.Cut(strings.TrimSpace("\n"+string(data)), "0::")
	group, _, _ = strings.Cut(group, "\n")
	for dir, want := range map[string]string{root + group: "4194304\n", root + filepath.Dir(group): "8388608\n"} {
		if got, err := os.ReadFile(dir + "/hugetlb.2MB.max"); err != nil || string(got) != want {
			t.Errorf("limit in %s: %q, %v; want %q", dir, got, err, want)
		}
	}
}

// TestMachineOwnCgroups starts containers in new and old slices: each must be in a cgroup
// of its own in every controller that systemd manages.
func TestMachineOwnCgroups(t *testing.T) {
	m := newMachine(t)
	for range 20 {
		a := m.attempt("sleep", "1000")
		started := a.mustStart()
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", started.MainPID))
		m.must(err)
		for line := range strings.Lines(string(data)) {
			fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if m.manager.cgroup == cgroupV2 && fields[1] != "" {
				continue
			}
			switch fields[1] {
			case "cpu", "cpu,cpuacct", "memory", "pids", "devices", "":
				if !strings.HasSuffix(fields[2], "/"+a.unit.Name) {
					t.Errorf("not in its own cgroup: %s", line)
				}
			}
		}
	}
}

func TestMachineInside(t *testing.T) {
	m := newMachine(t)
	script := func(script string, change func(*launchspec.Spec)) string {
		return m.sh(script, func(a *attempt) {
			if change != nil {
				change(a.spec)
			}
		})
	}
	for _, test := range []struct {
		name, script, want string
		change             func(*launchspec.Spec)
	}{
		{"pid 1 and hostname", "echo $$; hostname", "1\nbox\n", nil},
		{
			"capabilities of root", "grep Cap /proc/self/status | cut -f2",
			"0000000000000000\n00000000a80425fb\n00000000a80425fb\n00000000a80425fb\n0000000000000000\n", nil,
		},
		{
			"capabilities of others", "grep Cap /proc/self/status | cut -f2",
			"0000000000000000\n0000000000000000\n0000000000000000\n00000000a80425fb\n0000000000000000\n",
			func(s *launchspec.Spec) { s.User.Name = "web" },
		},
		{
			"no capabilities", "grep Cap /proc/self/status | cut -f2", strings.Repeat("0000000000000000\n", 5),
			func(s *launchspec.Spec) { s.Capabilities = nil },
		},
		{
			"no new privileges", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n",
			func(s *launchspec.Spec) { s.NoNewPrivileges = true },
		},
		{
			"user by name", "id; echo $HOME", "uid=1234(web) gid=2345(web) groups=2345(web),3456(extra)\n/srv/web\n",
			func(s *launchspec.Spec) { s.User.Name = "web" },
		},
		{
			"user by number and group by name", "id", "uid=99 gid=3456(extra) groups=3456(extra)\n",
			func(s *launchspec.Spec) { s.User.Name = "99:extra" },
		},
		{
			"user who is nobody", "id; echo $HOME", "uid=4242 gid=0(root) groups=0(root),77\n/\n",
			func(s *launchspec.Spec) {
				s.User = launchspec.User{UID: new(uint32), Groups: []uint32{77}}
				*s.User.UID = 4242
			},
		},
		{
			"strict groups", "id", "uid=1234(web) gid=2345(web) groups=2345(web)\n",
			func(s *launchspec.Spec) { s.User = launchspec.User{Name: "web", StrictGroups: true} },
		},
		{"working directory is made", "pwd; stat -c %a .", "/a/new/dir\n755\n", func(s *launchspec.Spec) { s.Dir = "/a/new/dir" }},
		{"umask", "umask", "0022\n", nil},
		{
			"read-only root", "touch /x 2>&1; touch /dev/shm/x && echo ok", "touch: /x: Read-only file system\nok\n",
			func(s *launchspec.Spec) { s.Root.Readonly = true },
		},
		{"root is written to its own layer", "echo hi > /x; cat /x", "hi\n", nil},
		{
			"masked paths", "cat /proc/meminfo | wc -c; ls /proc/tty | wc -l", "0\n0\n",
			func(s *launchspec.Spec) { s.MaskedPaths = []string{"/proc/meminfo", "/proc/tty", "/proc/none"} },
		},
		{
			"read-only paths", "echo 1 > /proc/sys/vm/swappiness", "sh: can't create /proc/sys/vm/swappiness: Read-only file system\n",
			func(s *launchspec.Spec) { s.ReadonlyPaths = []string{"/proc/sys"} },
		},
		{
			"sysctls", "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start", "1\n80\n",
			func(s *launchspec.Spec) {
				s.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "80"}
			},
		},
		{
			"rlimits", "ulimit -n; ulimit -Hn", "123\n456\n",
			func(s *launchspec.Spec) { s.Rlimits = []launchspec.Rlimit{{Type: "NOFILE", Soft: 123, Hard: 456}} },
		},
		{"descriptors", "ls /proc/self/fd | tr '\\n' ' '", "0 1 2 3 ", nil}, // 3 is ls's own
		{
			"standard output can be opened again by a user", "echo again > /dev/stdout; echo more > /proc/self/fd/2", "again\nmore\n",
			func(s *launchspec.Spec) { s.User.Name = "web" },
		},
		{
			"environment is exact", "cat /proc/self/environ | tr '\\0' '|'", "A=$HOME %n\nnew|PATH=/bin|B=\xff\"'|HOME=/root|",
			func(s *launchspec.Spec) {
				s.Args = bytesOf("cat", "/proc/self/environ")
				s.Env = bytesOf("A=$HOME %n\nnew", "PATH=/bin", "B=\xff\"'")
			},
		},
		{"v1 controllers only, or v2", "stat -f -c %T /sys/fs/cgroup; mount | grep -c cgroup2", cgroupView(m), nil},
		{"sysfs is read-only", "touch /sys/x 2>&1 | grep -c -i 'read-only'", "1\n", nil},
		{"bare network", "ls /sys/class/net", "lo\n", nil},
		{
			"seccomp", "grep Seccomp: /proc/self/status", "Seccomp:\t2\n",
			func(s *launchspec.Spec) { s.SeccompBPF = []byte{6, 0, 0, 0, 0, 0, 0xff, 0x7f} },
		}, // ret ALLOW
		{
			"seccomp leaves no capability behind", "grep -E '^(CapEff|CapBnd|Seccomp):' /proc/self/status | tr '\\n' ' '; unshare -U true 2>&1",
			"CapEff:\t0000000000000001 CapBnd:\t0000000000000001 Seccomp:\t2 unshare: unshare(0x10000000): Operation not permitted\n",
			defaultSeccomp,
		},
		{
			"nor for a user", "grep -E '^(CapEff|CapPrm|Seccomp):' /proc/self/status | tr '\\n' ' '",
			"CapPrm:\t0000000000000000 CapEff:\t0000000000000000 Seccomp:\t2 ",
			func(s *launchspec.Spec) { defaultSeccomp(s); s.User.Name = "web" },
		},
		{
			"seccomp with no_new_privs", "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr '\\n' ' '", "NoNewPrivs:\t1 Seccomp:\t2 ",
			func(s *launchspec.Spec) { defaultSeccomp(s); s.NoNewPrivileges = true },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := script(test.script, test.change)
			if test.name == "environment is exact" {
				got = strings.ReplaceAll(got, "\x00", "|")
			}
			if got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

// defaultSeccomp gives a container with one capability the default profile.
func defaultSeccomp(s *launchspec.Spec) {
	s.Capabilities = []string{"CAP_CHOWN"}
	s.SeccompBPF, _ = seccomp.Default().Compile(s.Capabilities, seccomp.HostOf(runtime.GOARCH, ""))
	s.SeccompFlags = seccomp.Default().Flags()
}

func cgroupView(m *machine) string {
	if m.manager.cgroup == cgroupV2 {
		return "UNKNOWN\n1\n" // to busybox
	}
	return "tmpfs\n0\n"
}

func TestMachineArgumentLimits(t *testing.T) {
	m := newMachine(t)
	longest := strings.Repeat("x", 131071)
	if got := m.sh("echo ${#LONG}", func(a *attempt) {
		a.spec.Env = append(a.spec.Env, []byte("LONG="+longest[5:]))
	}); got != "131066\n" {
		t.Errorf("longest environment entry: %q", got)
	}
	for _, test := range []struct {
		name, want string
		change     func(*launchspec.Spec)
	}{
		{"argument too long", `container "c": args[1] is 131072 bytes long`, func(s *launchspec.Spec) { s.Args = bytesOf("true", longest+"x") }},
		{"environment too long", `container "c": env "LONG" is 131076 bytes long`, func(s *launchspec.Spec) { s.Env = bytesOf("LONG=" + longest) }},
		{"NUL in argument", `container "c": args[1] contains a NUL byte`, func(s *launchspec.Spec) { s.Args = bytesOf("true", "a\x00b") }},
		{"NUL in environment", `container "c": env "A" contains a NUL byte`, func(s *launchspec.Spec) { s.Env = bytesOf("A=\x00") }},
		{"unknown user", "unable to find user nobody-here: no matching entries in passwd file", func(s *launchspec.Spec) { s.User.Name = "nobody-here" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := m.attempt("true")
			test.change(a.spec)
			_, err := a.start()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %s", err, test.want)
			}
			if exit := a.exit(); exit.ExitCode != 128 {
				t.Errorf("exit record %+v", exit)
			}
		})
	}
}

func TestMachineMounts(t *testing.T) {
	m := newMachine(t)
	volume := filepath.Join(m.layout.Lib, "volume")
	secret := filepath.Join(m.layout.Lib, "secret")
	m.must(os.MkdirAll(filepath.Join(volume, "sub"), 0o755))
	m.must(os.WriteFile(filepath.Join(volume, "file"), []byte("in volume\n"), 0o644))
	m.must(os.WriteFile(filepath.Join(volume, "sub/file"), []byte("in sub\n"), 0o644))
	m.must(os.WriteFile(secret, []byte("host secret\n"), 0o644))
	for link, target := range map[string]string{"escape": "../secret", "absolute": secret, "loop": "loop", "inner": "sub/file"} {
		m.must(os.Symlink(target, filepath.Join(volume, link)))
	}
	// The image's own symlinks point out of the root.
	m.must(os.Symlink("../../../../../../"+m.layout.Lib, filepath.Join(m.root, "out")))
	m.must(os.Symlink("/nowhere/target", filepath.Join(m.root, "dangling")))
	bind := func(target, sub string, change func(*launchspec.Mount)) func(*attempt) {
		return func(a *attempt) {
			mount := launchspec.Mount{Kind: launchspec.MountBind, Source: volume, Target: target, SubPath: sub}
			if change != nil {
				change(&mount)
			}
			a.spec.Mounts = append(a.spec.Mounts, mount)
		}
	}
	asFile := func(mount *launchspec.Mount) { mount.File = true }
	for _, test := range []struct {
		name, script, want string
		change             func(*attempt)
	}{
		{"missing target is made", "cat /a/b/c/file", "in volume\n", bind("/a/b/c", "", nil)},
		{"file", "cat /etc/conf/file", "in volume\n", bind("/etc/conf/file", "file", asFile)},
		{"sub-path", "cat /v/file", "in sub\n", bind("/v", "sub", nil)},
		{"sub-path through an inner symlink", "cat /v", "in sub\n", bind("/v", "inner", nil)},
		{"symlink in the image stays inside", "cat /out/x/file; ls -d " + m.layout.Lib + "/x", "in volume\n" + m.layout.Lib + "/x\n", bind("/out/x", "", nil)},
		{"dangling symlink is made inside", "cat /nowhere/target/file", "in volume\n", bind("/dangling", "", nil)},
		{
			"read-only", "echo x > /v/file; cat /v/file", "sh: can't create /v/file: Read-only file system\nin volume\n",
			bind("/v", "", func(mount *launchspec.Mount) { mount.Readonly = true }),
		},
		{"noexec nosuid nodev", "mount | grep -c '/v .*nosuid,nodev,noexec'", "1\n", bind("/v", "", func(mount *launchspec.Mount) {
			mount.NoExec, mount.NoSuid, mount.NoDev = true, true, true
		})},
		{"tmpfs", "df -k /t | tail -1 | awk '{print $2}'; stat -c %a /t", "1024\n1777\n", func(a *attempt) {
			a.spec.Mounts = []launchspec.Mount{{Kind: launchspec.MountTmpfs, Target: "/t", Options: "size=1m,mode=1777"}}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := m.sh(test.script, test.change); got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
	for _, test := range []struct {
		name, want string
		change     func(*attempt)
	}{
		{"sub-path out of the volume", "it leads out of the volume", bind("/v", "escape", asFile)},
		{"sub-path by an absolute symlink", "it leads out of the volume", bind("/v", "absolute", asFile)},
		{"sub-path with dots", "it leads out of the volume", bind("/v", "sub/../../secret", asFile)},
		{"sub-path in a loop", "too many levels of symbolic links", bind("/v", "loop", asFile)},
		{"inside /proc", "it is inside /proc", bind("/proc/sys/kernel", "", nil)},
		{"the root", "cannot be a mount point", bind("/", "", nil)},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := m.attempt("true")
			test.change(a)
			if _, err := a.start(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %s", err, test.want)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(m.layout.Lib, "x")); err == nil {
		t.Error("a mount point was made outside of the root")
	}
}

func TestMachinePropagation(t *testing.T) {
	m := newMachine(t)
	volume := filepath.Join(m.layout.Lib, "shared")
	m.must(os.MkdirAll(filepath.Join(volume, "point"), 0o755))
	m.must(unix.Mount(volume, volume, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(volume, unix.MNT_DETACH) })
	m.must(unix.Mount("", volume, "", unix.MS_SHARED, ""))
	started := map[string]*attempt{}
	for _, kind := range []string{"", "rslave", "rshared"} {
		started[kind] = m.sleeper(func(a *attempt) {
			a.spec.Capabilities = append(a.spec.Capabilities, "CAP_SYS_ADMIN")
			a.spec.Mounts = []launchspec.Mount{{Kind: launchspec.MountBind, Source: volume, Target: "/v", Recursive: true, Propagation: kind}}
		})
	}
	point := filepath.Join(volume, "point")
	m.must(unix.Mount("tmpfs", point, "tmpfs", 0, ""))
	m.must(os.WriteFile(filepath.Join(point, "here"), nil, 0o644))
	for kind, want := range map[string]string{"": "", "rslave": "here\n", "rshared": "here\n"} {
		if got := started[kind].mustExec("ls", "/v/point"); got != want {
			t.Errorf("propagation %q: host mount shows %q inside, want %q", kind, got, want)
		}
	}
	m.must(unix.Unmount(point, 0))
	for kind, want := range map[string]int64{"": unix.EXT4_SUPER_MAGIC, "rslave": unix.EXT4_SUPER_MAGIC, "rshared": unix.TMPFS_MAGIC} {
		started[kind].mustExec("mount", "-t", "tmpfs", "tmpfs", "/v/point")
		var st unix.Statfs_t
		m.must(unix.Statfs(point, &st))
		if st.Type != want {
			t.Errorf("propagation %q: container's mount on the host has type %#x, want %#x", kind, st.Type, want)
		}
		if kind == "rshared" {
			started[kind].mustExec("umount", "/v/point")
		}
	}
}

// TestMachineForgedNotify has a container tell systemd that it is somebody else. It gets
// no socket; even with the host's /run the socket is not there.
func TestMachineForgedNotify(t *testing.T) {
	m := newMachine(t)
	a := m.sleeper(func(a *attempt) {
		a.spec.Mounts = []launchspec.Mount{
			{Kind: launchspec.MountBind, Source: "/run", Target: "/run", Recursive: true},
			{Kind: launchspec.MountBind, Source: "/", Target: "/host", Recursive: true},
		}
	})
	before, _, err := m.manager.Get(m.ctx, a.unit.Name)
	m.must(err)
	if got := a.mustExec("sh", "-c", "ls /run/systemd; echo $NOTIFY_SOCKET; test -S /host/run/systemd/notify || echo none"); got != "\nnone\n" {
		t.Errorf("the container sees %q", got)
	}
	after, _, err := m.manager.Get(m.ctx, a.unit.Name)
	m.must(err)
	if after.MainPID != before.MainPID {
		t.Errorf("main process changed from %d to %d", before.MainPID, after.MainPID)
	}
}

// TestMachineOnlyTheMainProcessIsHeard: a process of a container that sees the host's
// processes comes to systemd's socket by the root of one without capabilities, and nobody
// listens to it.
func TestMachineOnlyTheMainProcessIsHeard(t *testing.T) {
	m := newMachine(t)
	a := m.sleeper(func(a *attempt) { a.spec.Namespaces.HostPID = true })
	foreign := exec.CommandContext(m.ctx, "setpriv", "--bounding-set=-all", "sleep", "1000")
	m.must(foreign.Start())
	t.Cleanup(func() { _ = foreign.Process.Kill(); _ = foreign.Wait() })
	told := func() string {
		values, err := m.manager.properties(m.ctx, a.unit.Name, [2]string{serviceIface, "MainPID"}, [2]string{serviceIface, "StatusText"})
		m.must(err)
		return fmt.Sprint(values)
	}
	before := told()
	forge := fmt.Sprintf("NOTIFY_SOCKET=/run/systemd/notify systemd-notify STATUS=forged MAINPID=%d && echo sent", foreign.Process.Pid)
	root := fmt.Sprintf("/proc/%d/root", foreign.Process.Pid)
	m.eventually("a process without capabilities", func() bool {
		_, out, _, err := a.exec(nil, "ls", root+"/run/systemd/notify")
		return err == nil && out != ""
	})
	// It returns once systemd has read what it said (BARRIER=1).
	if got := a.mustExec("chroot", root, "/bin/sh", "-c", forge); got != "sent\n" {
		t.Errorf("the container says %q", got)
	}
	if after := told(); after != before {
		t.Errorf("the unit was %s and is %s", before, after)
	}
}

func TestMachineHostImage(t *testing.T) {
	m := newMachine(t)
	host := func(a *attempt) {
		a.spec.Root = launchspec.Root{HostPath: "/", Readonly: true}
		a.spec.Env = bytesOf("PATH=/usr/bin:/bin:/usr/sbin")
		a.spec.Mounts = []launchspec.Mount{
			{Kind: launchspec.MountBind, Source: m.root + "/etc", Target: "/var/run/secrets/kubernetes.io/serviceaccount", Readonly: true},
			{Kind: launchspec.MountBind, Source: m.root + "/etc/group", Target: "/etc/new/dir/file", File: true},
			{Kind: launchspec.MountBind, Source: m.root + "/etc/group", Target: "/etc/hosts", File: true},
		}
	}
	version, err := os.ReadFile("/etc/debian_version")
	m.must(err)
	got := m.sh(`exec 2>&1; touch /etc/x; ls /run/systemd; ls /var/lib/vk-metal; head -1 /etc/new/dir/file; head -1 /etc/hosts;
		ls /run/secrets/kubernetes.io/serviceaccount; touch /tmp/x && echo tmp; cat /etc/debian_version; grep -c root /etc/shadow`, host)
	want := "touch: cannot touch '/etc/x': Read-only file system\nls: cannot access '/run/systemd': No such file or directory\n" +
		"root:x:0:\nroot:x:0:\ngroup\npasswd\ntmp\n" + string(version) + "1\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	// A root that lacks a directory at its top.
	got = m.sh(`exec 2>&1; touch /x; ls /new/deep; ls -d /etc /bin /proc; cat /etc/debian_version; touch /tmp/x && echo tmp`, func(a *attempt) {
		host(a)
		a.spec.Mounts = append(a.spec.Mounts, launchspec.Mount{Kind: launchspec.MountBind, Source: m.root + "/etc", Target: "/new/deep", Readonly: true})
	})
	want = "touch: cannot touch '/x': Read-only file system\ngroup\npasswd\n/bin\n/etc\n/proc\n" + string(version) + "tmp\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for _, made := range []string{"/etc/new", "/new"} {
		if _, err := os.Stat(made); err == nil {
			t.Errorf("the mount point %s was made on the host", made)
		}
	}
}

// TestMachineSharedNamespaces joins two containers of a pod: one network, one IPC
// namespace, one /dev/shm.
func TestMachineSharedNamespaces(t *testing.T) {
	m := newMachine(t)
	dir := filepath.Join(m.layout.Run, "ns")
	shm := filepath.Join(m.layout.Run, "shm")
	m.must(os.MkdirAll(dir, 0o700))
	m.must(os.MkdirAll(shm, 0o1777))
	ns := launchspec.Namespaces{Net: filepath.Join(dir, "net"), IPC: filepath.Join(dir, "ipc")}
	for _, file := range []string{ns.Net, ns.IPC} {
		m.must(os.WriteFile(file, nil, 0o600))
	}
	out, err := exec.Command("unshare", "--net="+ns.Net, "--ipc="+ns.IPC, "true").CombinedOutput()
	if err != nil {
		t.Fatalf("make namespaces: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(ns.Net, unix.MNT_DETACH); _ = unix.Unmount(ns.IPC, unix.MNT_DETACH) })
	join := func(a *attempt) {
		a.spec.Namespaces = ns
		a.spec.Mounts = []launchspec.Mount{{Kind: launchspec.MountBind, Source: shm, Target: "/dev/shm"}}
	}
	one, two := m.sleeper(join), m.sleeper(join)
	one.mustExec("sh", "-c", "echo shared > /dev/shm/x")
	if got := two.mustExec("cat", "/dev/shm/x"); got != "shared\n" {
		t.Errorf("/dev/shm of the other shows %q", got)
	}
	for _, kind := range []string{"net", "ipc"} {
		a, b := one.mustExec("readlink", "/proc/self/ns/"+kind), two.mustExec("readlink", "/proc/self/ns/"+kind)
		if a != b {
			t.Errorf("%s namespaces differ: %s %s", kind, a, b)
		}
	}
	if one.mustExec("readlink", "/proc/self/ns/pid") == two.mustExec("readlink", "/proc/self/ns/pid") {
		t.Error("PID namespaces are the same")
	}
}

func TestMachineSharedPID(t *testing.T) {
	m := newMachine(t)
	one := m.sleeper(nil)
	state, _, err := m.manager.Get(m.ctx, one.unit.Name)
	m.must(err)
	of := &launchspec.UnitProcess{Unit: one.unit.Name, PID: state.MainPID}
	samePod := func(a *attempt) { a.unit.Slice = one.unit.Slice } // nobody else's is joined
	two := m.sleeper(func(a *attempt) { samePod(a); a.spec.Namespaces.PIDOf = of })
	if a, b := one.mustExec("readlink", "/proc/self/ns/pid"), two.mustExec("readlink", "/proc/self/ns/pid"); a != b {
		t.Errorf("PID namespaces differ: %s %s", a, b)
	}
	m.eventually("two processes are seen", func() bool { // a child of theirs may not have become sleep yet
		return two.mustExec("sh", "-c", "ps -o args | grep -c '^sh -c trap'") == "2\n"
	})
	other := m.attempt("sh", "-c", "exit 5")
	samePod(other)
	other.spec.Namespaces.PIDOf = of
	other.mustStart()
	if exit := other.exit(); exit.ExitCode != 5 {
		t.Errorf("exit record %+v", exit)
	}
	stranger := m.attempt("true")
	stranger.spec.Namespaces.PIDOf = of
	if _, err := stranger.start(); err == nil {
		t.Error("a container of another pod joined")
	}
	for name, wrong := range map[string]launchspec.UnitProcess{
		"another unit's process": {Unit: two.unit.Name, PID: state.MainPID},
		"nobody's":               {Unit: one.unit.Name, PID: 1 << 22},
		"the host's first":       {Unit: one.unit.Name, PID: 1},
	} {
		refused := m.attempt("true")
		samePod(refused)
		refused.spec.Namespaces.PIDOf = &wrong
		if _, err := refused.start(); err == nil {
			t.Errorf("%s was joined", name)
		}
	}
}

// TestMachinePause has two containers live under a pause process.
func TestMachinePause(t *testing.T) {
	m := newMachine(t)
	pause := m.attempt("none")
	pause.spec.Pause, pause.spec.Args = true, nil
	pid := pause.mustStart().MainPID
	var status []byte
	m.eventually("it is called pause", func() (ok bool) {
		var err error
		status, err = os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		m.must(err)
		return strings.HasPrefix(string(status), "Name:\tpause\n")
	})
	for _, line := range []string{"Uid:\t65535\t65535", "Gid:\t65535\t65535", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), line) {
			t.Errorf("the pause process lacks %q:\n%s", line, status)
		}
	}
	t.Logf("memory of a pause process:\n%s", rollup(pid))
	join := func(a *attempt) {
		a.unit.Slice = pause.unit.Slice
		a.spec.Namespaces.PIDOf = &launchspec.UnitProcess{Unit: pause.unit.Name, PID: pid}
	}
	one := m.sleeper(join)
	two := m.sleeper(func(a *attempt) { join(a); a.spec.Capabilities = append(a.spec.Capabilities, "CAP_SYS_PTRACE") })
	m.eventually("three processes are seen", func() bool { // a child of theirs may not have become sleep yet
		return one.mustExec("sh", "-c", "ps -o pid,args | grep -cE '^ +1 /pause|sh -c [t]rap'") == "3\n"
	})
	one.mustExec("sh", "-c", "kill -9 1; kill 1; sh -c 'sh -c \"sleep 0.01\" & exit' ; :")
	m.eventually("no zombie is left", func() bool { return !strings.Contains(one.mustExec("ps", "-o", "stat,args"), "Z") })
	if _, _, errs, err := one.exec(nil, "ls", "/proc/1/root/"); err != nil || !strings.Contains(errs, "Permission denied") {
		t.Errorf("the root of the pause process can be seen: %q, %v", errs, err)
	}
	if got := two.mustExec("sh", "-c", "ls -A /proc/1/root/; readlink /proc/1/root; ls -l /proc/1/fd | grep -vc -e null -e total -e eventpoll -e eventfd -e pipe; :"); got != "/\n0\n" {
		t.Errorf("to CAP_SYS_PTRACE the pause process shows %q", got)
	}
	m.must(m.manager.Signal(m.ctx, pause.unit.Name, syscall.SIGKILL, false))
	if exit := one.exit(); exit.Signal != 9 {
		t.Errorf("without its namespace a container ended with %+v", exit)
	}
	two.exit()
	if exit := pause.exit(); exit.Signal != 9 || exit.Container != pause.spec.Container {
		t.Errorf("the pause process ended with %+v", exit)
	}
}

// rollup is the memory of a process; a test prints it.
func rollup(pid int) string {
	data, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	var lines []string
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "Rss:") || strings.HasPrefix(line, "Pss:") || strings.HasPrefix(line, "Private_Dirty:") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

func TestMachineManyLayers(t *testing.T) {
	m := newMachine(t)
	a := m.attempt("sh", "-c", "cat /layers/*")
	var want strings.Builder
	var lowers []string
	for i := range 120 {
		dir := filepath.Join(m.layout.Lib, "layer with, odd:name-"+strings.Repeat("x", 100), strconv.Itoa(i))
		m.must(os.MkdirAll(filepath.Join(dir, "layers"), 0o755))
		line := fmt.Sprintf("%03d\n", i)
		m.must(os.WriteFile(filepath.Join(dir, "layers", strings.TrimSpace(line)), []byte(line), 0o644))
		want.WriteString(line)
		lowers = append(lowers, dir)
	}
	lowers = append(lowers, m.root)
	a.spec.Root.Lowers = lowers
	output := a.capture()
	a.mustStart()
	if got := output(); got != want.String() {
		t.Errorf("got %d bytes, want %d", len(got), want.Len())
	}
}

func TestMachineDevices(t *testing.T) {
	m := newMachine(t)
	got := m.sh("mknod /tmp/mem c 1 1 && cat /tmp/mem >/dev/null; echo ok > /dev/null; head -c1 /dev/zero | wc -c; ls /dev/pts; test -c /dev/ptmx && echo ptmx", nil)
	if got != "cat: can't open '/tmp/mem': Operation not permitted\n1\nptmx\nptmx\n" {
		t.Errorf("default devices: %q", got)
	}
	got = m.sh("ls -l /dev/mine | cut -c1-10; stat -c %u:%g /dev/mine", func(a *attempt) {
		a.spec.Devices = []launchspec.Device{{Path: "/dev/mine", Type: "c", Major: 1, Minor: 3, Mode: 0o640, UID: 5, GID: 6}}
	})
	if got != "crw-r-----\n5:6\n" {
		t.Errorf("own device: %q", got)
	}
}

// TestMachineStrict: a strict unit's container starts and cannot do what the filters forbid.
func TestMachineStrict(t *testing.T) {
	m := newMachine(t)
	script := `echo runs; linux32 true && echo personality; :`
	if got := m.sh(script, func(a *attempt) { a.unit.Strict = true }); !strings.HasPrefix(got, "runs\n") || strings.Contains(got, "personality\n") {
		t.Errorf("strict: %q", got)
	}
	if got := m.sh(script, nil); got != "runs\npersonality\n" {
		t.Errorf("plain: %q", got)
	}
}
