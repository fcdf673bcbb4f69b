package images

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/mounts"
)

func TestHostImage(t *testing.T) {
	off := testManager(t, nil)
	_, err := off.Ensure(t.Context(), PullRequest{Ref: HostImage})
	wantReason(t, err, "ErrImagePull")
	if !strings.Contains(err.Error(), HostImagesKey) {
		t.Errorf("error %q does not name the setting", err)
	}
	on := testManager(t, func(o *Options) { o.HostImages = true })
	img, err := on.Ensure(t.Context(), PullRequest{Ref: HostImage, Policy: corev1.PullAlways})
	if err != nil || !img.Host || img.HostPath != "/" || len(img.Layers) > 0 {
		t.Errorf("host image %+v %v", img, err)
	}
	if got, ok, err := on.Get(t.Context(), img.Digest); !ok || err != nil || !got.Host {
		t.Errorf("Get: %+v %v %v", got, ok, err)
	}
}

func TestHostRootDirectory(t *testing.T) {
	tree, private := t.TempDir(), t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	inside := filepath.Join(private, "pods")
	socket := filepath.Join(t.TempDir(), "fifo")
	for _, err := range []error{os.Symlink(tree, link), os.Mkdir(inside, 0o755), unix.Mkfifo(socket, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m := testManager(t, func(o *Options) {
		o.HostImages, o.Private = true, []string{private}
		o.HostRoots = []HostRoot{
			{Name: "tree", Path: tree},
			{Name: "link", Path: link},
			{Name: "gone", Path: tree + "/none"},
			{Name: "secrets", Path: inside},
			{Name: "above", Path: filepath.Dir(private)},
			{Name: "fifo", Path: socket},
			{Name: "checked", Path: tree, Verity: "signed"},
		}
	})
	for _, name := range []string{"tree", "link"} {
		ref := "vk-metal.local/" + name
		img, err := m.Ensure(t.Context(), PullRequest{Ref: ref, Policy: corev1.PullAlways})
		if err != nil || !img.Host || img.HostPath != tree || img.Ref != ref || img.Digest != ref+":latest" {
			t.Errorf("%s: %+v %v", name, img, err)
		}
		if got, ok, err := m.Get(t.Context(), img.Digest); !ok || err != nil || got.HostPath != tree {
			t.Errorf("Get %s: %+v %v %v", name, got, ok, err)
		}
	}
	for name, problem := range map[string]string{
		"gone": "no such file", "secrets": "the node's own", "above": "the node's own", "fifo": "neither a directory",
		"checked": "verity is for disk images", "tree:v1": "this node has vk-metal.local/host:latest, vk-metal.local/tree:latest", "other": "does not exist",
	} {
		_, err := m.Ensure(t.Context(), PullRequest{Ref: "vk-metal.local/" + name})
		wantReason(t, err, "ErrImagePull")
		if !strings.Contains(err.Error(), problem) {
			t.Errorf("%s: %q does not say %q", name, err, problem)
		}
	}
}

// needTools skips, or fails where nothing may be skipped.
func needTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err == nil {
			continue
		}
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatalf("needs %s", tool)
		}
		t.Skipf("needs %s", tool)
	}
}

// privateMounts keeps the mounts of this test, and of what it starts, to itself.
func privateMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
}

// TestDiskImage runs from a bare file system and from a disk image with partitions.
func TestDiskImage(t *testing.T) {
	needRoot(t)
	needTools(t, "systemd-dissect", "systemd-repart", "mke2fs")
	for name, build := range map[string]func(*testing.T, string, string){"bare": bareImage, "partitions": partitionedImage} {
		t.Run(name, func(t *testing.T) {
			privateMounts(t)
			checkDiskImage(t, build)
		})
	}
}

func checkDiskImage(t *testing.T, build func(t *testing.T, file, content string)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk.raw")
	m := testManager(t, func(o *Options) {
		o.HostImages, o.HostMounts = true, filepath.Join(t.TempDir(), "roots")
		o.HostRoots = []HostRoot{{Name: "disk", Path: file}, {Name: "checked", Path: file, Verity: "hashed"}}
	})
	open := func(content string) string {
		t.Helper()
		img, err := m.Ensure(t.Context(), PullRequest{Ref: "vk-metal.local/disk"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(img.HostPath, unix.MNT_DETACH) })
		if got, err := os.ReadFile(filepath.Join(img.HostPath, "etc/motd")); err != nil || string(got) != content {
			t.Errorf("its file says %q (%v), want %q", got, err, content)
		}
		if err := os.WriteFile(filepath.Join(img.HostPath, "etc/motd"), nil, 0o644); err == nil {
			t.Error("the disk image can be written to")
		}
		return img.HostPath
	}
	build(t, file, "first")
	first := open("first")
	if again := open("first"); again != first {
		t.Errorf("mounted again, on %s", again)
	}
	if _, err := m.Ensure(t.Context(), PullRequest{Ref: "vk-metal.local/checked"}); err == nil || !strings.Contains(err.Error(), "verity: hashed") {
		t.Errorf("without verity: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	build(t, file, "second")
	if second := open("second"); second == first {
		t.Error("the old disk image is still in use")
	}
	if mounted, err := mounts.IsMountPoint(first); mounted || err != nil {
		t.Errorf("the old disk image is still mounted (%v)", err)
	}
}

// osTree is a root that systemd-dissect takes for an operating system's.
func osTree(t *testing.T, content string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"usr/lib/os-release": "ID=test\n", "etc/motd": content} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func bareImage(t *testing.T, file, content string) {
	t.Helper()
	command(t, "mke2fs", "-q", "-t", "ext4", "-d", osTree(t, content), file, "16M")
}

func partitionedImage(t *testing.T, file, content string) {
	t.Helper()
	definitions := t.TempDir()
	partition := "[Partition]\nType=root\nFormat=ext4\nSizeMinBytes=16M\nSizeMaxBytes=16M\nCopyFiles=" + osTree(t, content) + ":/\n"
	if err := os.WriteFile(filepath.Join(definitions, "root.conf"), []byte(partition), 0o644); err != nil {
		t.Fatal(err)
	}
	command(t, "systemd-repart", "--definitions="+definitions, "--empty=create", "--size=32M", "--dry-run=no", "--discard=no", file)
}

func command(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
}
