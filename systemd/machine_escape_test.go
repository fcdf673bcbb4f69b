package systemd

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// layer makes one more image layer, on top of the others, of symlinks (and a script).
func (m *machine) layer(links map[string]string) string {
	m.t.Helper()
	dir, err := os.MkdirTemp(m.layout.Lib, "layer-")
	m.must(err)
	m.must(os.Chmod(dir, 0o755))
	for name, target := range links {
		m.must(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		m.must(os.Symlink(target, filepath.Join(dir, name)))
	}
	return dir
}

func onTop(layer string) func(*attempt) {
	return func(a *attempt) { a.spec.Root.Lowers = append([]string{layer}, a.spec.Root.Lowers...) }
}

// TestMachineLauncherIsNotOverwritten lets the launcher start programs that lead back to
// it by /proc/self/exe while the container tries to write to whatever is executed
// (CVE-2019-5736).
func TestMachineLauncherIsNotOverwritten(t *testing.T) {
	m := newMachine(t)
	sum := func() [32]byte {
		data, err := os.ReadFile(m.manager.opts.Launcher)
		m.must(err)
		return sha256.Sum256(data)
	}
	before := sum()
	m.file("bin/evil", "#!/proc/self/exe\n", 0o755)
	a := m.attempt("sh", "-c", `trap 'exit 0' TERM; (while :; do for e in /proc/[0-9]*/exe; do echo x >> $e; done; done) 2>/dev/null & while :; do sleep 1; done`)
	a.spec.Capabilities = append(a.spec.Capabilities, "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE")
	a.mustStart()
	for range 20 {
		// However it ends: the kernel runs the launcher in the script's place.
		_, _, _, _ = a.exec(nil, "/bin/evil", "-c", "true")
		_, _, _, _ = a.exec(nil, "/proc/self/exe")
	}
	if sum() != before {
		t.Fatal("the launcher of the host was overwritten")
	}
}

// TestMachineNoDescriptorLeadsOut: a working directory, or a program, by way of a descriptor
// that the launcher has open on the host (CVE-2024-21626).
func TestMachineNoDescriptorLeadsOut(t *testing.T) {
	m := newMachine(t)
	for _, fd := range []int{3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 200, 201} {
		for _, self := range []string{"self", "1", "thread-self"} {
			dir := fmt.Sprintf("/proc/%s/fd/%d", self, fd)
			a := m.attempt("sh", "-c", "ls ../..")
			a.spec.Dir = dir
			if _, err := a.start(); err == nil {
				t.Errorf("it started in %s", dir)
			}
		}
	}
	sleeper := m.sleeper(nil)
	for fd := 3; fd < 16; fd++ {
		_, out, _, err := sleeper.exec(nil, "ls", fmt.Sprintf("/proc/self/fd/%d/etc/debian_version", fd))
		if err == nil && !strings.Contains(out, "No such file") && strings.Contains(out, "debian_version\n") {
			t.Errorf("descriptor %d shows the host: %q", fd, out)
		}
	}
}

// TestMachineImageCannotMoveTheKernelsFiles: /proc, /sys and /dev of an image that are symlinks
// into a volume (CVE-2019-19921, CVE-2023-27561), and a null device that is none
// (CVE-2025-31133).
func TestMachineImageCannotMoveTheKernelsFiles(t *testing.T) {
	m := newMachine(t)
	for _, name := range []string{"proc", "sys", "dev"} {
		layer := m.layer(map[string]string{name: "/tmp"})
		a := m.attempt("true")
		onTop(layer)(a)
		if _, err := a.start(); err == nil || !strings.Contains(err.Error(), "a symlink is not allowed") {
			t.Errorf("/%s as a symlink: %v", name, err)
		}
	}
	layer := m.layer(map[string]string{"dev/null": "/etc/passwd", "dev/console": "/etc/passwd", "dev/pts": "/etc", "dev/shm": "/etc"})
	got := m.sh("stat -c %t:%T /proc/keys /dev/null; cat /proc/keys /dev/null | wc -c; stat -f -c %T /dev/shm; head -n 1 /etc/passwd", func(a *attempt) {
		onTop(layer)(a)
		a.spec.MaskedPaths = []string{"/proc/keys"}
	})
	if want := "1:3\n1:3\n0\ntmpfs\nroot:x:0:0:root:/root:/bin/sh\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestMachineMasksHoldAgainstVolumes: mount points that an image or a volume turns into
// symlinks to files of the kernel (CVE-2025-52881, CVE-2019-16884, CVE-2023-28642).
func TestMachineMasksHoldAgainstVolumes(t *testing.T) {
	m := newMachine(t)
	volume := filepath.Join(m.layout.Lib, "volume")
	m.must(os.MkdirAll(volume, 0o755))
	for link, target := range map[string]string{"attr": "/proc/self/attr", "core": "/proc/sys/kernel/core_pattern"} {
		layer := m.layer(map[string]string{link: target})
		a := m.attempt("true")
		onTop(layer)(a)
		a.spec.Mounts = []launchspec.Mount{{Kind: launchspec.MountBind, Source: volume, Target: "/" + link}}
		if target != "/proc/self/attr" {
			m.must(os.WriteFile(filepath.Join(volume, "file"), nil, 0o644))
			a.spec.Mounts[0].Source, a.spec.Mounts[0].File = filepath.Join(volume, "file"), true
		}
		if _, err := a.start(); err == nil || !strings.Contains(err.Error(), "it is inside /proc") {
			t.Errorf("a volume by a symlink on %s: %v", target, err)
		}
	}
}

// TestMachineExchangedSymlinks swaps a directory of a shared volume and a symlink to the host's
// root all the time, as a container that shares the volume could, while others are started whose
// sub-path or whose mount point it is (CVE-2017-1002101, CVE-2021-25741, CVE-2021-30465).
func TestMachineExchangedSymlinks(t *testing.T) {
	m := newMachine(t)
	volume, other := filepath.Join(m.layout.Lib, "volume"), filepath.Join(m.layout.Lib, "other")
	m.must(os.MkdirAll(filepath.Join(volume, "sub"), 0o755))
	m.must(os.MkdirAll(other, 0o755))
	m.must(os.WriteFile(filepath.Join(volume, "sub/marker"), []byte("volume\n"), 0o644))
	m.must(os.WriteFile(filepath.Join(m.layout.Lib, "marker"), []byte("host\n"), 0o644))
	m.must(os.Symlink(m.layout.Lib, filepath.Join(volume, "swap")))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(volume, "sub"), unix.AT_FDCWD, filepath.Join(volume, "swap"), unix.RENAME_EXCHANGE)
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	seen := map[string]int{}
	for range 30 {
		a := m.attempt("cat", "/v/marker")
		a.spec.Mounts = []launchspec.Mount{{Kind: launchspec.MountBind, Source: volume, Target: "/v", SubPath: "sub"}}
		out := a.capture()
		if _, err := a.start(); err != nil {
			seen["refused"]++
			continue
		}
		seen[out()]++
	}
	if seen["host\n"] > 0 || seen["volume\n"]+seen["refused"] != 30 {
		t.Errorf("sub-paths led to %v", seen)
	}
	t.Logf("sub-paths: %v", seen)
	for range 30 {
		a := m.attempt("true")
		a.spec.Mounts = []launchspec.Mount{
			{Kind: launchspec.MountBind, Source: volume, Target: "/v"},
			{Kind: launchspec.MountBind, Source: other, Target: "/v/sub/made"},
		}
		_, _ = a.start() // refused or not, nothing may be made outside of the volume
	}
	if _, err := os.Lstat(filepath.Join(m.layout.Lib, "made")); err == nil {
		t.Error("a mount point was made on the host")
	}
}

// TestMachineNothingInherited: capabilities by inheritance (CVE-2022-24769), cgroups that can
// be written to (CVE-2022-0492), the host's groups (CVE-2023-25173), the launcher's environment.
func TestMachineNothingInherited(t *testing.T) {
	m := newMachine(t)
	got := m.sh(`grep -E '^Cap(Inh|Amb)' /proc/self/status | tr -d '\t' | tr '\n' ' '; id -G; env | cut -d= -f1 | sort | tr '\n' ' '; echo
		f=$(ls -d /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent 2>/dev/null | head -n 1); [ -z "$f" ] || echo x > $f; mount -t cgroup -o rdma x /tmp`,
		func(a *attempt) { a.spec.User.StrictGroups = true })
	want := "CapInh:0000000000000000 CapAmb:0000000000000000 0\nHOME PATH PWD SHLVL \n"
	if !strings.HasPrefix(got, want) || strings.Count(got, "\n") > 4 || !strings.Contains(got, "ermission denied") && !strings.Contains(got, "not permitted") {
		t.Errorf("got %q, want %q and refusals", got, want)
	}
}
