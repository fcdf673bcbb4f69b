//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/paths"
)

// hideHostState keeps a host image away from what is the host's alone: its run-time
// sockets (D-Bus, systemd), its temporary files, and the agent's state, which holds
// other pods' secrets.
func hideHostState(root rootDir) error {
	for _, name := range []string{"/run", "/tmp", "/var/tmp"} {
		if err := coverWith(root, name); err != nil {
			return fmt.Errorf("give the container its own %s: %w", name, err)
		}
	}
	layout := paths.Default()
	for _, name := range []string{layout.Lib, layout.Etc, layout.Kubelet, layout.Log} {
		if err := mask(root, name); err != nil {
			return fmt.Errorf("hide %s: %w", name, err)
		}
	}
	return nil
}

func coverWith(root rootDir, name string) error {
	target, err := root.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	mode := "mode=1777"
	if name == "/run" {
		mode = "mode=755"
	}
	own, err := newFS("tmpfs", mode, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	if name == "/run" {
		if err := unix.Mkdirat(own, "lock", 0o1777); err != nil {
			return err
		}
	}
	return attach(own, target)
}

// systemdRun is where systemd listens. A unit's main process that reaches notifySocket may
// speak for the unit (NotifyAccess=main): name another main process, say.
const (
	systemdRun   = "/run/systemd"
	notifySocket = systemdRun + "/notify"
)

// hideSystemd masks /run/systemd of the root, whatever brought it there.
func hideSystemd(root rootDir) error {
	if err := mask(root, systemdRun); err != nil {
		return fmt.Errorf("mask %s: %w", systemdRun, err)
	}
	return nil
}

// hideNotifySocket masks systemd's socket in a bind mount of a host directory above it.
func hideNotifySocket(root rootDir, source, target string) error {
	rel, err := filepath.Rel(source, notifySocket)
	if err != nil || !filepath.IsLocal(rel) {
		return nil //nolint:nilerr // no relative path: the socket is not below it
	}
	if err := mask(root, path.Join(target, rel)); err != nil {
		return fmt.Errorf("mask %s: %w", notifySocket, err)
	}
	return nil
}

// maxMimic bounds how many entries of a read-only directory are bound one by one.
const maxMimic = 1024

// mimic makes room for a mount point that is missing in a read-only root: it covers the
// deepest directory that exists with a tmpfs that shows the same entries. The host's own
// tree is not touched.
func (r rootDir) mimic(name string) error {
	dir, fd, err := r.deepest(name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := listDir(fd)
	if err != nil {
		return err
	}
	if len(names) > maxMimic {
		return fmt.Errorf("%s has %d entries, too many to make a mount point in it", dir, len(names))
	}
	entries, err := copyEntries(fd, names) // before the twin hides them
	if err != nil {
		return fmt.Errorf("copy entries of %s: %w", dir, err)
	}
	return attachTwin(fd, dir, entries, r.twins)
}

// attachTwin covers a directory with a tmpfs that shows the entries. It is added to twins,
// for sealTwins.
func attachTwin(target int, dir string, entries []mimicked, twins *[]int) error {
	twin, err := newFS("tmpfs", "mode=755", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return err
	}
	*twins = append(*twins, twin)
	if err := attach(twin, target); err != nil {
		return err
	}
	for _, entry := range entries {
		if err := entry.show(twin); err != nil {
			return fmt.Errorf("show %s: %w", path.Join(dir, entry.name), err)
		}
	}
	return nil
}

// sealTwins makes what mimic made read-only, like the root that it stands in for.
func (r rootDir) sealTwins() error {
	for _, twin := range *r.twins {
		if err := setAttr(twin, false, unix.MOUNT_ATTR_RDONLY, 0); err != nil {
			return fmt.Errorf("make stand-in directory read-only: %w", err)
		}
		unix.Close(twin)
	}
	return nil
}

// deepest opens the deepest existing directory on the way to name.
func (r rootDir) deepest(name string) (string, int, error) {
	for dir := path.Dir(path.Clean("/" + name)); ; dir = path.Dir(dir) {
		fd, err := r.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
		if err == nil {
			return dir, fd, nil
		}
		if !missing(err) || dir == "/" {
			return dir, -1, err
		}
	}
}

// mimicked is one entry of a directory that mimic covers: a symlink or a mount.
type mimicked struct {
	name, link string
	dir        bool
	tree       int
}

func copyEntries(dir int, names []string) ([]mimicked, error) {
	var out []mimicked
	for _, name := range names {
		var st unix.Stat_t
		err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		entry := mimicked{name: name, dir: st.Mode&unix.S_IFMT == unix.S_IFDIR, tree: -1}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			entry.link, _ = readLink(dir, name)
		} else if entry.tree, err = unix.OpenTree(dir, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|
			unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, err
		}
		out = append(out, entry)
	}
	return out, nil
}

func (m mimicked) show(twin int) error {
	if m.link != "" {
		return unix.Symlinkat(m.link, twin, m.name)
	}
	defer unix.Close(m.tree)
	var err error
	if m.dir {
		err = unix.Mkdirat(twin, m.name, 0o755)
	} else {
		err = unix.Mknodat(twin, m.name, unix.S_IFREG|0o644, 0)
	}
	if err != nil {
		return err
	}
	return unix.MoveMount(m.tree, "", twin, m.name, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func listDir(fd int) ([]string, error) {
	again, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(again), "directory")
	defer dir.Close()
	return dir.Readdirnames(-1)
}
