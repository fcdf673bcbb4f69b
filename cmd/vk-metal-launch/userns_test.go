//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/sandbox"
)

// workload is the argument that makes this test program a container's workload, or the
// program that runs one: it has the launcher in it.
const workload = "-workload"

// waiting makes it one that does nothing until it is killed.
const waiting = "-waiting"

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 2 && os.Args[1] == waiting:
		_ = unix.Pause()
	case len(os.Args) == 2 && os.Args[1] == workload:
		os.Exit(lookAround())
	case len(os.Args) > 1 && (os.Args[1] == "run" || os.Args[1] == "record" || os.Args[1] == stageChild || os.Args[1] == "exec" || os.Args[1] == stageExecChild):
		main()
	}
	os.Exit(m.Run())
}

// seen is what a workload finds out about itself.
type seen struct {
	UIDMap, GIDMap string
	UID, GID       int
	Groups         []int
	Owners         map[string]string
	Caps           string
	Errors         map[string]string
	OpenFiles      uint64 // the soft limit
	First          string // the command of process 1
}

func lookAround() int {
	s := seen{
		UIDMap: words("/proc/self/uid_map"), GIDMap: words("/proc/self/gid_map"), UID: os.Getuid(), GID: os.Getgid(),
		Owners: map[string]string{}, Errors: map[string]string{},
	}
	s.Groups, _ = os.Getgroups()
	for _, name := range []string{"/", "/app", "/dev", "/dev/null", "/dev/fd", "/dev/pts", "/vol", "/vol/file", "/etc", "/proc/self/", "/made"} {
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			s.Owners[name] = err.Error()
			continue
		}
		s.Owners[name] = fmt.Sprintf("%d:%d", st.Uid, st.Gid)
	}
	for what, do := range map[string]func() error{
		"write root":   func() error { return os.WriteFile("/made-by-workload", nil, 0o600) },
		"write volume": func() error { return os.WriteFile("/vol/made", nil, 0o600) },
		"write null":   func() error { return os.WriteFile("/dev/null", []byte("x"), 0) },
		"mount":        func() error { return unix.Mount("x", "/tmp", "tmpfs", 0, "") },
		"mount proc":   func() error { return unix.Mount("x", "/tmp", "proc", 0, "") },
		"remount":      func() error { return unix.Mount("", "/ro", "", unix.MS_BIND|unix.MS_REMOUNT, "") },
		"mknod":        func() error { return unix.Mknod("/tmp-node", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1))) },
		"chroot":       func() error { return unix.Chroot("/") },
		"host clock":   func() error { return unix.Settimeofday(&unix.Timeval{}) },
		"host name":    func() error { return unix.Sethostname([]byte("other")) },
		"sysctl":       func() error { return os.WriteFile("/proc/sys/kernel/core_pattern", []byte("x"), 0) },
		"stdout again": func() error {
			f, err := os.OpenFile("/dev/stdout", os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			return f.Close()
		},
	} {
		if err := do(); err != nil {
			s.Errors[what] = err.Error()
		}
	}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if after, ok := strings.CutPrefix(line, "CapEff:"); ok {
			s.Caps = strings.TrimSpace(after)
		}
	}
	init, _ := os.ReadFile("/proc/1/comm")
	s.First = strings.TrimSpace(string(init))
	s.OpenFiles = softFiles()
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		return 3
	}
	return 0
}

// softFiles is what this program was started with.
func softFiles() uint64 {
	restoreOpenFiles()
	var limit unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	return limit.Cur
}

func words(name string) string {
	data, _ := os.ReadFile(name)
	return strings.Join(strings.Fields(string(data)), " ")
}

// mapped is a pod with a user namespace, whose containers are run without systemd.
type mapped struct {
	t     testing.TB
	dir   string
	users *sandbox.Users
	spec  launchspec.Spec
}

func newMapped(t testing.TB) *mapped {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	layout := paths.Layout{Run: t.TempDir()}
	manager := sandbox.New(layout)
	made, err := manager.Ensure(t.Context(), "u1", sandbox.Options{Users: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(layout.Namespace("u1", "net"), unix.MNT_DETACH)
		_ = manager.Remove(t.Context(), "u1")
	})
	m := &mapped{t: t, dir: t.TempDir(), users: made.Users}
	for _, dir := range []string{"run", "layer/tmp", "layer/etc", "layer2", "rw/upper", "rw/work", "vol", "ro"} {
		m.must(os.MkdirAll(filepath.Join(m.dir, dir), 0o755))
	}
	m.must(os.Chmod(m.dir, 0o700)) // nobody but the host's root gets through
	self, err := os.ReadFile("/proc/self/exe")
	m.must(err)
	m.must(os.WriteFile(filepath.Join(m.dir, "layer/app"), self, 0o755))
	m.must(os.WriteFile(filepath.Join(m.dir, "vol/file"), nil, 0o640))
	m.must(os.Chown(filepath.Join(m.dir, "vol/file"), 0, 200))
	m.spec = launchspec.Spec{
		Version: launchspec.Version, Container: "c", Args: [][]byte{[]byte("/app"), []byte(workload)}, Dir: "/made/here", Hostname: "box",
		Root: launchspec.Root{
			Lowers: []string{filepath.Join(m.dir, "layer2"), filepath.Join(m.dir, "layer")},
			Upper:  filepath.Join(m.dir, "rw/upper"), Work: filepath.Join(m.dir, "rw/work"),
		},
		Mounts: []launchspec.Mount{
			{Kind: launchspec.MountBind, Source: filepath.Join(m.dir, "vol"), Target: "/vol", Recursive: true},
			{Kind: launchspec.MountBind, Source: filepath.Join(m.dir, "ro"), Target: "/ro", Readonly: true},
		},
		MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
		Namespaces: launchspec.Namespaces{
			User: &launchspec.UserNamespace{Path: made.Users.Path, First: made.Users.First, Size: sandbox.IDsPerPod},
			Net:  layout.Namespace("u1", "net"), IPC: made.IPC,
		},
		Capabilities: []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SYS_CHROOT"},
		ErrorRecord:  filepath.Join(m.dir, "error.json"),
	}
	return m
}

func (m *mapped) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// start runs the launcher until the workload runs and returns its process. The launcher makes
// it a sibling of its own: a child of ours, as it is systemd's on a node.
func (m *mapped) start() (int, error) {
	m.t.Helper()
	m.must(writeJSON(m.specPath(), m.spec))
	socket := filepath.Join(m.t.TempDir(), "notify")
	notified, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	m.must(err)
	m.must(unix.Bind(notified, &unix.SockaddrUnix{Name: socket}))
	main := make(chan int, 1)
	go func() {
		defer close(main)
		hearNotify(notified, main)
	}()
	launcher := exec.CommandContext(m.t.Context(), "/proc/self/exe", "run", m.specPath())
	launcher.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	var failure strings.Builder
	launcher.Stderr = &failure
	err = launcher.Run()
	m.must(unix.Shutdown(notified, unix.SHUT_RDWR))
	pid := <-main
	unix.Close(notified)
	if pid > 0 {
		m.t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL); _, _ = unix.Wait4(pid, nil, 0, nil) })
	}
	if err != nil || failure.Len() > 0 {
		return pid, errors.Join(err, errors.New(failure.String()))
	}
	return pid, nil
}

func (m *mapped) specPath() string { return filepath.Join(m.dir, "run/launch.json") }

// hearNotify is systemd's part: it takes the main process's number and lifts barriers.
func hearNotify(socket int, main chan<- int) {
	for {
		data, fd, err := channel{socket}.receiveFD()
		if err != nil {
			return // it is shut down
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		if number, ok := strings.CutPrefix(string(data), "MAINPID="); ok {
			pid, _ := strconv.Atoi(number)
			main <- pid
		}
	}
}

// run runs the container and returns what it saw.
func (m *mapped) run() (seen, error) {
	m.t.Helper()
	fifo := filepath.Join(m.dir, "stdout")
	m.must(unix.Mkfifo(fifo, 0o600))
	reader, err := os.OpenFile(fifo, os.O_RDWR, 0)
	m.must(err)
	defer reader.Close()
	m.spec.Stdout = fifo
	if _, err := m.start(); err != nil {
		return seen{}, err
	}
	var s seen
	return s, json.NewDecoder(reader).Decode(&s)
}

// exec runs one more process, as the agent would.
func (m *mapped) exec(pid int, args ...string) seen {
	m.t.Helper()
	ours, theirs, err := newChannels()
	m.must(err)
	file := os.NewFile(uintptr(theirs.fd), "control")
	launcher := exec.CommandContext(m.t.Context(), "/proc/self/exe", append([]string{"exec", m.specPath(), strconv.Itoa(pid), "pipe"}, args...)...)
	launcher.ExtraFiles = []*os.File{file}
	var out bytes.Buffer
	launcher.Stdout, launcher.Stderr = &out, os.Stderr
	m.must(launcher.Start())
	file.Close()
	defer unix.Close(ours.fd)
	for started := false; !started; {
		data, err := ours.receiveBytes()
		m.must(err)
		var message launchspec.ExecMessage
		m.must(json.Unmarshal(data, &message))
		if message.Error != nil {
			m.t.Fatal(message.Error.Message)
		}
		if started = message.Started; !started {
			m.must(ours.release())
		}
	}
	m.must(launcher.Wait())
	var s seen
	m.must(json.Unmarshal(out.Bytes(), &s))
	return s
}

const refused, readOnly = "operation not permitted", "read-only file system"

// checkInside checks what root of the user namespace, or user of it, sees.
func (m *mapped) checkInside(got seen) {
	m.t.Helper()
	ids := fmt.Sprintf("0 %d 65536", m.users.First)
	if got.UIDMap != ids || got.GIDMap != ids {
		m.t.Errorf("maps of IDs: %s and %s, want %s", got.UIDMap, got.GIDMap, ids)
	}
	for name, want := range map[string]string{
		"/": "0:0", "/app": "0:0", "/dev": "0:0", "/dev/null": "0:0", "/dev/fd": "0:0", "/vol": "0:0",
		"/vol/file": "0:200", "/etc": "0:0", "/made": "0:0", "/proc/self/": fmt.Sprintf("%d:%d", got.UID, got.GID),
	} {
		if got.Owners[name] != want {
			m.t.Errorf("%s belongs to %s, want %s", name, got.Owners[name], want)
		}
	}
}

func (m *mapped) checkErrors(got seen, want map[string]string) {
	m.t.Helper()
	for what, problem := range got.Errors {
		if want[what] == "" || !strings.HasSuffix(problem, want[what]) {
			m.t.Errorf("%s: %s, want %q", what, problem, want[what])
		}
	}
	for what := range want {
		if got.Errors[what] == "" {
			m.t.Errorf("%s is allowed", what)
		}
	}
}

func TestContainerInUserNamespace(t *testing.T) {
	m := newMapped(t)
	got, err := m.run()
	if err != nil {
		t.Fatal(err)
	}
	m.checkInside(got)
	if got.UID != 0 || got.Caps != "0000000000040003" || got.First != "app" {
		t.Errorf("the workload is user %d with capabilities %s under %s", got.UID, got.Caps, got.First)
	}
	m.checkErrors(got, map[string]string{
		"mount": refused, "mount proc": refused, "remount": refused, "mknod": refused, "host clock": refused,
		"host name": refused, "sysctl": readOnly,
	})
	for name, want := range map[string]uint32{"vol/made": 0, "rw/upper/made-by-workload": m.users.First, "rw/upper/made/here": m.users.First} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(m.dir, name), &st); err != nil || st.Uid != want {
			t.Errorf("%s is the host's user %d's (%v), want %d", name, st.Uid, err, want)
		}
	}
}

// TestCapabilitiesStayInside: what a container may do as root with all capabilities is done
// to its own namespaces.
func TestCapabilitiesStayInside(t *testing.T) {
	m := newMapped(t)
	m.spec.Privileged, m.spec.Capabilities, m.spec.MaskedPaths, m.spec.ReadonlyPaths = true, nil, nil, nil
	got, err := m.run()
	if err != nil {
		t.Fatal(err)
	}
	m.checkInside(got)
	m.checkErrors(got, map[string]string{"mknod": refused, "host clock": refused, "sysctl": "permission denied"})
}

func TestUserInUserNamespace(t *testing.T) {
	m := newMapped(t)
	uid, gid := uint32(1000), uint32(1001)
	m.spec.User = launchspec.User{UID: &uid, GID: &gid, Groups: []uint32{200}}
	got, err := m.run()
	if err != nil {
		t.Fatal(err)
	}
	m.checkInside(got)
	if got.UID != 1000 || got.GID != 1001 || !slices.Equal(got.Groups, []int{200, 1001}) || got.Caps != strings.Repeat("0", 16) {
		t.Errorf("the workload is %d:%d %v with capabilities %s", got.UID, got.GID, got.Groups, got.Caps)
	}
	if problem := got.Errors["stdout again"]; problem != "" {
		t.Errorf("the user cannot open its own stdout: %s", problem)
	}
	if got.Errors["write volume"] == "" {
		t.Error("the user writes to a volume of root's")
	}
}

// TestExecInUserNamespace: it joins the container whole, with the limits that the container
// was started with.
func TestExecInUserNamespace(t *testing.T) {
	m := newMapped(t)
	m.spec.Args[1] = []byte(waiting)
	restore := limitFiles(t, 1000)
	pid, err := m.start()
	restore()
	if err != nil {
		t.Fatal(err)
	}
	got := m.exec(pid, "/app", workload)
	m.checkInside(got)
	if got.UID != 0 || got.First != "app" || got.Caps != "0000000000040003" {
		t.Errorf("exec is user %d with capabilities %s under %s", got.UID, got.Caps, got.First)
	}
	if got.OpenFiles != 1000 {
		t.Errorf("exec may open %d files, the container 1000", got.OpenFiles)
	}
}

// limitFiles sets the soft limit that our children get; what it returns sets another again.
func limitFiles(t *testing.T, soft uint64) (restore func()) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	set := func(soft uint64) {
		if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, &syscall.Rlimit{Cur: soft, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
	}
	set(soft)
	return func() { set(before.Max) }
}

func TestUserNamespaceRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*launchspec.Spec)
		want   string
	}{
		"host image":   {func(s *launchspec.Spec) { s.Root = launchspec.Root{HostPath: "/"} }, "host images cannot run in a user namespace"},
		"procfs":       {func(s *launchspec.Spec) { s.Mounts[0].Source = "/proc" }, "mount /proc on /vol: map its IDs for hostUsers: false: the file system cannot be mounted ID-mapped"},
		"missing":      {func(s *launchspec.Spec) { s.Namespaces.User.Path += "x" }, "open user namespace"},
		"no such user": {func(s *launchspec.Spec) { s.User.UID = new(uint32(65536)) }, "user 65536 is not in the user namespace, which has 65536"},
		"no program":   {func(s *launchspec.Spec) { s.Args[0] = []byte("bogus") }, `exec: "bogus": executable file not found in $PATH`},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMapped(t)
			test.change(&m.spec)
			if _, err := m.run(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// BenchmarkLaunch is from the launcher's start to the workload's, without systemd.
func BenchmarkLaunch(b *testing.B) {
	for name, change := range map[string]func(*launchspec.Spec){
		"own users":    func(*launchspec.Spec) {},
		"host's users": func(s *launchspec.Spec) { s.Namespaces.User = nil },
	} {
		b.Run(name, func(b *testing.B) {
			m := newMapped(b)
			m.spec.Args[1] = []byte(waiting)
			change(&m.spec)
			for b.Loop() {
				pid, err := m.start()
				m.must(err)
				m.must(unix.Kill(pid, unix.SIGKILL))
			}
		})
	}
}
