//go:build linux

// Package selinux says what SELinux the host has, keeps the levels that tell pods apart, and labels
// files. It must not know pods beyond their UIDs; the launcher does the confining.
package selinux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"

	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/walk"
)

// attribute is where the kernel keeps a file's label (inode_setxattr of SELinux).
const attribute = "security.selinux"

// Host is the SELinux of a host.
type Host struct {
	levels   *Levels
	defaults func() (process, file string)
	xattrs   xattrs
}

// xattrs are the system calls of labels, on what a path leads to.
type xattrs struct {
	get func(path string) (string, error)
	set func(path, label string) error
}

// New makes a Host, or returns nil where the kernel has no SELinux or no policy is loaded. dir is
// where levels are kept, which must end with the machine.
func New(dir string) *Host {
	if !selinux.GetEnabled() {
		return nil
	}
	return &Host{
		levels: NewLevels(dir),
		defaults: sync.OnceValues(func() (string, string) {
			process, file := selinux.ContainerLabels()
			selinux.ReleaseLabel(process) // the levels are ours
			return process, file
		}),
		xattrs: xattrs{get: getLabel, set: setLabel},
	}
}

// Defaults are the labels of containers' processes and of their files that the policy names
// (contexts/lxc_contexts); their levels mean nothing. Both are empty where it names none.
func (h *Host) Defaults() (process, file string) {
	process, file = h.defaults()
	if process == "" {
		return "", ""
	}
	return process, file
}

// Check says whether the policy knows a label.
func (h *Host) Check(label string) error {
	if err := selinux.SecurityCheckContext(label); err != nil {
		return fmt.Errorf("the host's SELinux policy refuses the label %q: %w", label, err)
	}
	return nil
}

// Level is the pod's own level, which no other pod has until Release. It is kept.
func (h *Host) Level(podUID string) (string, error) { return h.levels.Of(podUID) }

// Release gives the pod's level back; idempotent.
func (h *Host) Release(podUID string) error { return h.levels.Release(podUID) }

// Label reads a file's label, "" for none.
func (h *Host) Label(path string) (string, error) {
	label, err := h.xattrs.get(path)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read label of %s: %w", path, err)
	}
	return label, nil
}

// Relabel labels a file, or a directory with all that is in it. File systems that take no labels,
// such as NFS and those that are mounted with one for all their files, are left as they are.
func (h *Host) Relabel(path, label string, recursive bool) error {
	visit := func(f *os.File) error { return h.relabel(f, label) }
	err := h.relabelPath(path, recursive, visit)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("label %s %q: %w", path, label, err)
	}
	return nil
}

func (h *Host) relabelPath(path string, recursive bool, visit func(*os.File) error) error {
	// Opened so, a FIFO waits for nobody.
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	top := os.NewFile(uintptr(fd), path)
	defer top.Close()
	if info, err := top.Stat(); err != nil || !recursive || !info.IsDir() {
		return errors.Join(err, visit(top))
	}
	return walk.Bottom(path, visit)
}

// relabel writes nothing where the label is the one that is wanted. A file that has gone has no label
// to be changed.
func (h *Host) relabel(f *os.File, label string) error {
	path := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	have, err := h.xattrs.get(path)
	if err == nil && have == label {
		return nil
	}
	if err := h.xattrs.set(path, label); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &os.PathError{Op: "setxattr", Path: f.Name(), Err: err}
	}
	return nil
}

// maxLabel bounds a label in bytes; the kernel's bound is a page.
const maxLabel = 4096

func getLabel(path string) (string, error) {
	buf := make([]byte, maxLabel)
	n, err := unix.Getxattr(path, attribute, buf)
	if err != nil {
		return "", err
	}
	if n > 0 && buf[n-1] == 0 { // as the kernel itself writes it
		n--
	}
	return string(buf[:n]), nil
}

func setLabel(path, label string) error { return unix.Setxattr(path, attribute, []byte(label), 0) }
