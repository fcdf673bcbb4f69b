package diskuse

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// quotaDirectory names a directory to test in, on a file system with project quota; without it
// one is made and mounted.
const quotaDirectory = "VK_METAL_TEST_QUOTA"

// quotaFS is a file system that counts by project. The test is skipped where the kernel's own
// configuration says that it has none.
func quotaFS(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv(quotaDirectory); dir != "" {
		tmp, err := os.MkdirTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(tmp) })
		return tmp
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if bytes.Contains(kernelConfig(t), []byte("\n# CONFIG_QFMT_V2 is not set\n")) {
		t.Skip("the kernel is built without quota (CONFIG_QFMT_V2)")
	}
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "mounted")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20), os.Mkdir(at, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-O", "quota,project", image}, {"mount", "-o", "loop,prjquota", image, at}} {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

func kernelConfig(t *testing.T) []byte {
	t.Helper()
	packed, err := os.Open("/proc/config.gz")
	if err != nil {
		return nil
	}
	defer packed.Close()
	r, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	config, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// same waits until the file system has counted what a walk finds: XFS counts a file that was
// removed until it has been tidied up.
func same(t *testing.T, dir string) Usage {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		counted, ok := tracked(t.Context(), dir)
		if !ok {
			t.Fatalf("%s is not counted", dir)
		}
		found, err := walked(t.Context(), dir, -1)
		if err == nil && counted == found {
			return counted
		}
		if time.Now().After(deadline) {
			t.Fatalf("counted %+v, found %+v, %v", counted, found, err)
		}
	}
}

func syncFS(t *testing.T, dir string) {
	t.Helper()
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := unix.Syncfs(int(fd.Fd())); err != nil {
		t.Fatal(err)
	}
}

// TestProjects: each tree that is tracked is counted for itself, whatever is in it.
func TestProjects(t *testing.T) {
	top := quotaFS(t)
	one, two := filepath.Join(top, "one"), filepath.Join(top, "two")
	for _, dir := range []string{one, two} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := Track(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(one+"/a/b/c", 0o755); err != nil {
		t.Fatal(err)
	}
	file(t, one+"/a/b/c/large", 3<<20)
	file(t, one+"/small", 10)
	file(t, two+"/other", 1<<20)
	if err := os.Link(one+"/small", one+"/a/again"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", one+"/link"); err != nil {
		t.Fatal(err)
	}
	syncFS(t, top)
	if used := same(t, one); used.Bytes < 3<<20 || used.Inodes != 7 {
		t.Errorf("it takes %+v", used)
	}
	before := same(t, two)
	if err := os.Remove(one + "/a/b/c/large"); err != nil {
		t.Fatal(err)
	}
	syncFS(t, top)
	if used := same(t, one); used.Bytes >= 1<<20 {
		t.Errorf("without the file it takes %+v", used)
	}
	if now := same(t, two); now != before {
		t.Errorf("the other takes %+v, before %+v", now, before)
	}
	renamed := filepath.Join(top, "renamed")
	if err := os.Rename(two, renamed); err != nil {
		t.Fatal(err)
	}
	same(t, renamed)
	if used, err := Measure(t.Context(), renamed); err != nil || used != before {
		t.Errorf("measured %+v, %v", used, err)
	}
	if err := Tracks(top); err != nil {
		t.Error(err)
	}
}

// TestProjectsOfOthers: a project that an administrator has given is nobody's figure of ours.
func TestProjectsOfOthers(t *testing.T) {
	dir := quotaFS(t)
	fd, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := ioctl(fd, setXattr, &fsxattr{Project: 7, Xflags: inheritProject}); err != nil {
		t.Fatal(err)
	}
	file(t, dir+"/file", 1<<20)
	if used, ok := tracked(t.Context(), dir); ok {
		t.Errorf("project 7 is taken for the directory's own: %+v", used)
	}
}

// TestWithoutQuota: a file system that counts nothing says so, and is walked.
func TestWithoutQuota(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, err := range []error{Track(dir), Tracks(dir)} {
		if !errors.Is(err, ErrNoQuota) {
			t.Errorf("%v, want %v", err, ErrNoQuota)
		}
	}
	file(t, dir+"/file", 1<<20)
	if used, err := Measure(t.Context(), dir); err != nil || used.Bytes < 1<<20 || used.Inodes != 2 {
		t.Errorf("it takes %+v, %v", used, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}
