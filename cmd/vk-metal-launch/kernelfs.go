//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

const kernelAttrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// mountKernelFS mounts /proc, /dev and /sys with what lies in them and returns /proc. It
// sets root.null.
func mountKernelFS(root *rootDir, spec *launchspec.Spec, dev int) (int, error) {
	proc, err := newFS("proc", "", kernelAttrs)
	if err != nil {
		return -1, err
	}
	if err := attachReal(*root, proc, "proc"); err != nil {
		return -1, err
	}
	if err := mountDev(root, dev, spec); err != nil {
		return -1, err
	}
	return proc, mountSys(*root, spec.Privileged)
}

// attachReal attaches a mount to a directory that no image may redirect by a symlink.
func attachReal(root rootDir, mount int, name string) error {
	if fd, err := root.open(name, unix.O_PATH|unix.O_DIRECTORY); err == nil {
		unix.Close(fd)
	} else if fd, err = root.mkdirAll(name); err == nil {
		unix.Close(fd)
	} else {
		return fmt.Errorf("make mount point /%s: %w", name, err)
	}
	target, err := root.openReal(name)
	if err != nil {
		return fmt.Errorf("open mount point /%s (a symlink is not allowed): %w", name, err)
	}
	defer unix.Close(target)
	if err := attach(mount, target); err != nil {
		return fmt.Errorf("mount /%s: %w", name, err)
	}
	return nil
}

// mountSys mounts sysfs, which shows the joined network namespace, and the container's cgroups.
func mountSys(root rootDir, writable bool) error {
	attrs := kernelAttrs
	if !writable {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	sys, err := newFS("sysfs", "", attrs)
	if err != nil {
		return err
	}
	defer unix.Close(sys)
	if err := attachReal(root, sys, "sys"); err != nil {
		return err
	}
	return mountCgroups(root, "/sys/fs/cgroup", !writable)
}

// mountCgroups shows the container's own cgroups: this process is in a cgroup namespace
// whose roots are the unit's. On a hybrid host it shows the v1 controllers only, as
// programs tell the version by the mount.
func mountCgroups(root rootDir, target string, readonly bool) error {
	attrs := kernelAttrs
	if readonly {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return fmt.Errorf("read own cgroups: %w", err)
	}
	hierarchies := v1Hierarchies(string(data))
	if unified() || len(hierarchies) == 0 {
		return mountAt(root, target, "cgroup2", "", attrs)
	}
	base, err := newFS("tmpfs", "mode=755,size=64k", kernelAttrs)
	if err != nil {
		return err
	}
	defer unix.Close(base)
	dir, err := root.mkdirAll(target)
	if err != nil {
		return fmt.Errorf("make mount point %s: %w", target, err)
	}
	defer unix.Close(dir)
	if err := attach(base, dir); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	if err := mountHierarchies(base, hierarchies, attrs); err != nil {
		return err
	}
	if !readonly {
		return nil
	}
	return setAttr(base, false, unix.MOUNT_ATTR_RDONLY, 0)
}

// unified says whether the host's controllers are on cgroup v2. The kernel may list v1
// hierarchies that the host does not mount; it is the mount that counts.
func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

func mountHierarchies(base int, hierarchies []string, attrs int) error {
	for _, controllers := range hierarchies {
		if err := mountAt(rootDir{fd: base}, controllers, "cgroup", controllers, attrs); err != nil {
			return err
		}
		names := strings.Split(controllers, ",")
		for _, name := range names {
			if len(names) == 1 {
				break
			}
			if err := unix.Symlinkat(controllers, base, name); err != nil {
				return fmt.Errorf("name controller %s: %w", name, err)
			}
		}
	}
	return nil
}

// v1Hierarchies takes the controllers of each v1 hierarchy from /proc/self/cgroup; named
// hierarchies (systemd's own) are not controllers.
func v1Hierarchies(data string) []string {
	var out []string
	for line := range strings.Lines(data) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && fields[1] != "" && !strings.HasPrefix(fields[1], "name=") {
			out = append(out, fields[1])
		}
	}
	return out
}

// mountAt makes a file system and mounts it at a directory, made if it is missing.
func mountAt(root rootDir, target, kind, options string, attrs int) error {
	fd, err := newFS(kind, options, attrs)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	dir, err := root.mkdirAll(target)
	if err != nil {
		return fmt.Errorf("make mount point %s: %w", target, err)
	}
	defer unix.Close(dir)
	if err := attach(fd, dir); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// applySysctls writes through /proc's own mount: nothing in the image can stand in for it
// (CVE-2025-52881).
func applySysctls(proc int, sysctls map[string]string) error {
	for name, value := range sysctls {
		file := "sys/" + sysctlPath(name)
		fd, err := openat2(proc, file, unix.OpenHow{
			Flags:   unix.O_WRONLY | unix.O_TRUNC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		})
		if err != nil {
			return fmt.Errorf("open sysctl %q: %w", name, err)
		}
		_, err = unix.Write(fd, []byte(value))
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("set sysctl %q to %q: %w", name, value, err)
		}
	}
	return nil
}

// sysctlPath follows sysctl(8): with a slash before any dot, slashes separate; else dots
// do and a slash stands for a dot in a name.
func sysctlPath(name string) string {
	sep := strings.IndexAny(name, "./")
	if sep < 0 || name[sep] == '/' {
		return name
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}
