package diskuse

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func file(t *testing.T, path string, size int) {
	t.Helper()
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
}

func bytesOf(t *testing.T, dir string, enough int64) int64 {
	t.Helper()
	n, err := Tree(t.Context(), dir, enough)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTreeCountsWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	empty := bytesOf(t, dir, -1)
	file(t, filepath.Join(dir, "a"), 1<<20)
	one := bytesOf(t, dir, -1) - empty
	if one < 1<<20 || one > 2<<20 {
		t.Fatalf("a file of 1 MiB takes %d", one)
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr", filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	if again := bytesOf(t, dir, -1) - empty; again > one+8192 {
		t.Errorf("with two links to it %d, before %d", again, one)
	}
	if none := bytesOf(t, filepath.Join(dir, "none"), -1); none != 0 {
		t.Errorf("what is not there takes %d", none)
	}
}

func TestTreeStopsAtEnough(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b", "c", "d"} {
		file(t, filepath.Join(dir, name), 1<<20)
	}
	if n := bytesOf(t, dir, 1<<20); n <= 1<<20 || n > 3<<20 {
		t.Errorf("stopped at %d", n)
	}
}

// TestTreeCannotBeHiddenByItsDepth nests directories beyond the longest path.
func TestTreeCannotBeHiddenByItsDepth(t *testing.T) {
	fd, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	top, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 200)
	for range 40 { // 8,000 characters
		if err := unix.Mkdirat(fd, name, 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
		fd = next
	}
	deep, err := unix.Openat(fd, "hidden", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(deep, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	_, _ = unix.Close(deep), unix.Close(fd)
	if n := bytesOf(t, top, -1); n < 1<<20 {
		t.Errorf("measured %d", n)
	}
}

func TestTreeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Tree(ctx, t.TempDir(), -1); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestMeasureCountsInodes(t *testing.T) {
	dir := t.TempDir()
	for i := range 5 {
		file(t, filepath.Join(dir, strconv.Itoa(i)), 0)
	}
	if err := os.Link(filepath.Join(dir, "0"), filepath.Join(dir, "again")); err != nil {
		t.Fatal(err)
	}
	if used, err := Measure(t.Context(), dir); err != nil || used.Inodes != 6 || used.Bytes != bytesOf(t, dir, -1) {
		t.Errorf("%+v %v", used, err)
	}
}
