package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/sandbox"
)

// users makes a pod's user namespace and returns what puts an attempt into it.
func (m *machine) users() func(*attempt) {
	m.t.Helper()
	const uid = "users"
	manager := sandbox.New(m.layout)
	made, err := manager.Ensure(m.ctx, uid, sandbox.Options{Users: true})
	m.must(err)
	net := m.layout.Namespace(uid, "net")
	m.t.Cleanup(func() {
		_ = unix.Unmount(net, unix.MNT_DETACH)
		_ = manager.Remove(m.ctx, uid)
	})
	return func(a *attempt) {
		ns := &a.spec.Namespaces
		ns.User = &launchspec.UserNamespace{Path: made.Users.Path, First: made.Users.First, Size: sandbox.IDsPerPod}
		ns.Net, ns.IPC = net, made.IPC
		a.spec.Mounts = append(a.spec.Mounts, launchspec.Mount{Kind: launchspec.MountBind, Source: made.Shm, Target: "/dev/shm", NoExec: true})
	}
}

// TestMachineUsers: a container with a user namespace is systemd's as any other is.
func TestMachineUsers(t *testing.T) {
	m := newMachine(t)
	mapped := m.users()
	a := m.sleeper(mapped)
	first := a.spec.Namespaces.User.First

	t.Run("identity", func(t *testing.T) {
		want := fmt.Sprintf("0 %d 65536\n0\nroot\n0 0\n", first)
		if got := a.mustExec("sh", "-c", "echo $(cat /proc/self/uid_map); id -u; stat -c %U /; stat -c '%u %g' /dev/shm"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		state, _, err := m.manager.Get(m.ctx, a.unit.Name)
		m.must(err)
		var st unix.Stat_t
		m.must(unix.Stat("/proc/"+strconv.Itoa(state.MainPID), &st))
		if st.Uid != first {
			t.Errorf("the host sees user %d, want %d", st.Uid, first)
		}
	})
	t.Run("nothing else is left in the unit", func(t *testing.T) {
		m.eventually("there are three processes: it, its sleep, and us", func() bool { // its sleep may be late
			return strings.HasSuffix(a.mustExec("sh", "-c", "echo $$; set -- /proc/[0-9]*; echo $#"), "\n3\n")
		})
		m.eventually("no process of vk-metal is in the unit", func() bool { // that of the exec may be ending
			return !slices.ContainsFunc(namesIn(a.unit.Name), func(name string) bool { return strings.HasPrefix(name, "vk-metal") })
		})
	})
	t.Run("terminal", func(t *testing.T) { testTerminal(t, a) })
	t.Run("exec has the container's namespaces and limits", func(t *testing.T) {
		for _, script := range []string{
			"for n in user mnt pid uts ipc net cgroup; do readlink /proc/PID/ns/$n; done",
			"grep -e Cap -e Seccomp: -e NoNewPrivs -e Groups /proc/PID/status",
			"cat /proc/PID/limits",
			"cat /proc/PID/cgroup",
		} {
			own := a.mustExec("sh", "-c", strings.ReplaceAll(script, "PID", "self"))
			if init := a.mustExec("sh", "-c", strings.ReplaceAll(script, "PID", "1")); own != init {
				t.Errorf("%s: %q, the container has %q", script, own, init)
			}
		}
	})
	t.Run("ends", func(t *testing.T) {
		other := m.attempt("sh", "-c", "exit 7")
		mapped(other)
		other.mustStart()
		if exit := other.exit(); exit.ExitCode != 7 || exit.StartError != nil {
			t.Errorf("exit record %+v", exit)
		}
		wrong := m.attempt("bogus")
		mapped(wrong)
		if _, err := wrong.start(); err == nil {
			t.Error("a program that is not there was started")
		}
		if exit := wrong.exit(); exit.ExitCode != 127 || exit.StartError == nil {
			t.Errorf("exit record %+v", exit)
		}
		m.must(m.manager.Signal(m.ctx, a.unit.Name, syscall.SIGTERM, false))
		if exit := a.exit(); exit.ExitCode != 0 {
			t.Errorf("exit record %+v", exit)
		}
	})
}

// TestMachineUsersSharePID: a pause process keeps the PID namespace, which belongs to the
// user namespace.
func TestMachineUsersSharePID(t *testing.T) {
	m := newMachine(t)
	mapped := m.users()
	pause := m.attempt("none")
	mapped(pause)
	pause.spec.Pause, pause.spec.Args, pause.spec.Mounts = true, nil, nil
	pid := pause.mustStart().MainPID
	join := func(a *attempt) {
		mapped(a)
		a.unit.Slice = pause.unit.Slice
		a.spec.Namespaces.PIDOf = &launchspec.UnitProcess{Unit: pause.unit.Name, PID: pid}
	}
	one, two := m.sleeper(join), m.sleeper(join)
	m.eventually("three processes are seen", func() bool { // a child of theirs may not have become sleep yet
		return one.mustExec("sh", "-c", "ps -o pid,args | grep -cE '^ +1 /pause|sh -c [t]rap'") == "3\n"
	})
	if a, b := one.mustExec("readlink", "/proc/self/ns/user"), two.mustExec("readlink", "/proc/self/ns/user"); a != b {
		t.Errorf("user namespaces differ: %s %s", a, b)
	}
}

// TestMachineUsersIsolation: what the root of a user namespace sees of the kernel's file
// systems is what others see.
func TestMachineUsersIsolation(t *testing.T) {
	m := newMachine(t)
	mapped := m.users()
	script := `grep -E ' /(proc|sys|dev/pts|dev/mqueue)[ /]' /proc/self/mounts | cut -d' ' -f2,3 | sort -u; ls /dev | sort | tr '\n' ' ';
		ls /sys/fs/cgroup | sort | tr '\n' ' '; cut -d: -f3 /proc/self/cgroup | sort -u; cat /sys/class/net/lo/ifindex; ls /sys/class/net`
	with := m.sh(script, mapped)
	if without := m.sh(script, nil); with != without {
		t.Errorf("with a user namespace:\n%s\nwithout:\n%s", with, without)
	}
}

// namesIn are the processes of a unit.
func namesIn(unit string) []string {
	var names []string
	files, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, file := range files {
		if groups, _ := os.ReadFile(file); strings.Contains(string(groups), "/"+unit) {
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "comm"))
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return names
}

// TestMachineImageVolumes: an image that is a volume has its owners, in a user namespace as
// outside of one, and is only read.
func TestMachineImageVolumes(t *testing.T) {
	m := newMachine(t)
	mapped := m.users()
	layers := []string{filepath.Join(m.layout.Lib, "above"), filepath.Join(m.layout.Lib, "below")}
	for _, layer := range layers {
		m.must(os.MkdirAll(filepath.Join(layer, "sub"), 0o755))
		file := filepath.Join(layer, "sub", filepath.Base(layer))
		m.must(os.WriteFile(file, []byte(file+"\n"), 0o644))
		m.must(os.Chown(file, 1234, 100))
	}
	volume := launchspec.Mount{Kind: launchspec.MountImage, Readonly: true, NoExec: true, NoSuid: true, NoDev: true}
	whole, sub, single := volume, volume, volume
	whole.Lowers, whole.Target = layers, "/whole"
	sub.Lowers, sub.Target, sub.SubPath = layers, "/sub", "sub"
	single.Lowers, single.Target = layers[1:], "/single"
	images := func(a *attempt) { a.spec.Mounts = append(a.spec.Mounts, whole, sub, single) }
	const script = "stat -c '%n %u:%g' /whole/sub/* /sub/* /single/sub/*; touch /whole/x /sub/x /single/x 2>&1; echo $(cat /sub/*)"
	want := "/whole/sub/above 1234:100\n/whole/sub/below 1234:100\n/sub/above 1234:100\n/sub/below 1234:100\n/single/sub/below 1234:100\n"
	for _, path := range []string{"/whole/x", "/sub/x", "/single/x"} {
		want += "touch: " + path + ": Read-only file system\n"
	}
	want += layers[0] + "/sub/above " + layers[1] + "/sub/below\n"
	if got := m.sh(script, images); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := m.sh(script, func(a *attempt) { mapped(a); images(a) }); got != want {
		t.Errorf("in a user namespace %q, want %q", got, want)
	}
}
