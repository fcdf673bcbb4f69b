//go:build linux

package selinux

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeXattrs keeps labels by the real paths of what has them.
type fakeXattrs struct {
	t      *testing.T
	labels map[string]string
	writes int
	err    error
}

func (f *fakeXattrs) path(fd string) string {
	f.t.Helper()
	path, err := os.Readlink(fd)
	if err != nil {
		f.t.Fatal(err)
	}
	return path
}

func (f *fakeXattrs) host() *Host {
	return &Host{xattrs: xattrs{
		get: func(path string) (string, error) {
			label, has := f.labels[f.path(path)]
			if !has {
				return "", unix.ENODATA
			}
			return label, nil
		},
		set: func(path, label string) error {
			f.writes++
			f.labels[f.path(path)] = label
			return f.err
		},
	}}
}

// tree is a directory with a directory, a file, a FIFO and a symlink that leads out.
func tree(t *testing.T) (dir, outside string) {
	t.Helper()
	top := t.TempDir()
	dir, outside = filepath.Join(top, "volume"), filepath.Join(top, "outside")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "sub"), 0o755), os.Mkdir(outside, 0o755),
		os.WriteFile(filepath.Join(dir, "sub", "file"), nil, 0o600), os.WriteFile(filepath.Join(outside, "file"), nil, 0o600),
		os.Symlink(outside, filepath.Join(dir, "link")), unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir, outside
}

func TestRelabel(t *testing.T) {
	dir, _ := tree(t)
	fake := &fakeXattrs{t: t, labels: map[string]string{filepath.Join(dir, "sub"): "wanted"}}
	host := fake.host()
	if err := host.Relabel(dir, "wanted", true); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, name := range []string{"", "sub", "sub/file", "link", "fifo"} {
		want[filepath.Join(dir, name)] = "wanted"
	}
	if !maps.Equal(fake.labels, want) {
		t.Errorf("labels %v, want %v", fake.labels, want)
	}
	if fake.writes != len(want)-1 {
		t.Errorf("%d writes, want none where the label is right", fake.writes)
	}
	if err := host.Relabel(dir, "other", false); err != nil || fake.labels[dir] != "other" || fake.labels[filepath.Join(dir, "sub")] != "wanted" {
		t.Errorf("of the directory alone: %v, %v", fake.labels, err)
	}
	if err := host.Relabel(filepath.Join(dir, "fifo"), "other", true); err != nil || fake.labels[filepath.Join(dir, "fifo")] != "other" {
		t.Errorf("of a FIFO, which nobody opens: %v, %v", fake.labels, err)
	}
}

func TestFileSystemsWithoutLabels(t *testing.T) {
	dir, _ := tree(t)
	for _, tc := range []struct {
		kernel error
		want   error
	}{{unix.ENOTSUP, nil}, {unix.ENOENT, nil}, {unix.EROFS, unix.EROFS}, {unix.EINVAL, unix.EINVAL}} {
		fake := &fakeXattrs{t: t, labels: map[string]string{}, err: tc.kernel}
		if err := fake.host().Relabel(dir, "wanted", true); !errors.Is(err, tc.want) {
			t.Errorf("%v: %v, want %v", tc.kernel, err, tc.want)
		}
	}
}
