//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// scratchOf is the spec's own directory: it is there for certain, and what lies in it has been
// opened when it is mounted on.
func scratchOf(specPath string) string { return filepath.Dir(specPath) }

func (st *stage) buildRoot() error {
	if st.ready != nil {
		return buildMapped(st.ready)
	}
	return buildRoot(st.spec, st.scratch)
}

// buildRoot makes the container's root file system and pivots into it. Mount sources are
// opened first: later the host's tree is a slave, and then gone.
func buildRoot(spec *launchspec.Spec, scratch string) error {
	sources, err := openSources(spec)
	if err != nil {
		return err
	}
	host, err := openHostRoot(spec)
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("detach mounts from the host: %w", err)
	}
	if err := mountScratch(scratch); err != nil {
		return err
	}
	twins := new([]int)
	if err := mountRoot(spec, host, scratch, twins); err != nil {
		return err
	}
	if err := openImages(spec, scratch, sources); err != nil {
		return err
	}
	fd, err := unix.Open(filepath.Join(scratch, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open container root: %w", err)
	}
	root := rootDir{fd: fd, twins: twins, scratch: scratch}
	dev, err := makeDev(spec)
	if err != nil {
		return err
	}
	if err := populate(root, spec, sources, dev); err != nil {
		return err
	}
	return pivot(fd)
}

// populate mounts everything into the root, in the order that a container runtime does.
func populate(root rootDir, spec *launchspec.Spec, sources []source, dev int) error {
	proc, err := mountKernelFS(&root, spec, dev)
	if err != nil {
		return err
	}
	if err := applySysctls(proc, spec.Sysctls); err != nil {
		return err
	}
	if spec.Root.HostPath != "" {
		if err := hideHostState(root); err != nil {
			return err
		}
	}
	for i, mount := range spec.Mounts {
		if err := applyMount(root, mount, sources[i], spec.MountLabel); err != nil {
			return fmt.Errorf("mount %s on %s: %w", describe(mount), mount.Target, err)
		}
	}
	if err := placeDevices(root, spec); err != nil {
		return err
	}
	if err := makeWorkDir(root, spec); err != nil {
		return err
	}
	if err := hideSystemd(root); err != nil {
		return err
	}
	if err := runHooks(spec, root.scratch); err != nil {
		return err
	}
	if err := root.sealTwins(); err != nil {
		return err
	}
	if spec.Root.Readonly {
		if err := setAttr(root.fd, false, unix.MOUNT_ATTR_RDONLY, 0); err != nil {
			return fmt.Errorf("make root read-only: %w", err)
		}
	}
	return restrictPaths(root, spec)
}

func mountScratch(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size=1m"); err != nil {
		return fmt.Errorf("mount scratch space on %s: %w", dir, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "root"), 0o755); err != nil {
		return fmt.Errorf("make mount point of root: %w", err)
	}
	return nil
}

func mountRoot(spec *launchspec.Spec, host *hostTree, scratch string, twins *[]int) error {
	if host == nil {
		return mountOverlay(spec.Root, scratch, spec.MountLabel)
	}
	target, err := unix.Open(filepath.Join(scratch, "root"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open mount point of root: %w", err)
	}
	defer unix.Close(target)
	if err := host.attach(target, twins); err != nil {
		return fmt.Errorf("mount root %s: %w", spec.Root.HostPath, err)
	}
	return nil
}

// mountOverlay names every layer by a short symlink in the scratch directory: mount
// options are limited to one page (128 layers of real paths would not fit), and no
// character of a path needs escaping. All files in it have the label, if there is one, whatever
// theirs is in the layers, which containers of other labels share.
func mountOverlay(root launchspec.Root, scratch, label string) error {
	if root.Upper == "" && len(root.Lowers) == 1 && label == "" {
		return bindLayer(root.Lowers[0], scratch)
	}
	if err := os.Chdir(scratch); err != nil {
		return fmt.Errorf("enter scratch space: %w", err)
	}
	names := make([]string, len(root.Lowers))
	for i, lower := range root.Lowers {
		names[i] = strconv.Itoa(i)
		if err := os.Symlink(lower, names[i]); err != nil {
			return fmt.Errorf("name layer: %w", err)
		}
	}
	if root.Upper == "" && len(names) == 1 { // overlayfs wants two
		if err := os.Mkdir("empty", 0o755); err != nil {
			return fmt.Errorf("make empty layer: %w", err)
		}
		names = append(names, "empty")
	}
	options := "lowerdir=" + strings.Join(names, ":")
	if root.Upper != "" {
		if err := errors.Join(os.Symlink(root.Upper, "u"), os.Symlink(root.Work, "w")); err != nil {
			return fmt.Errorf("name writable layer: %w", err)
		}
		options += ",upperdir=u,workdir=w"
	}
	if label != "" {
		options += contextOption + strconv.Quote(label)
	}
	if err := unix.Mount("overlay", "root", "overlay", 0, options); err != nil {
		return fmt.Errorf("mount overlay of %d layers, upper %s: %w", len(names), root.Upper, err)
	}
	return os.Chdir("/")
}

// bindLayer is an overlay of one layer without an upper, which overlayfs refuses.
func bindLayer(layer, scratch string) error {
	target := filepath.Join(scratch, "root")
	if err := unix.Mount(layer, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount layer %s: %w", layer, err)
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make layer %s read-only: %w", layer, err)
	}
	return nil
}

// pivot makes the new root the root of the mount namespace and drops the host's: what
// setns finds later is the container's.
func pivot(root int) error {
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("enter container root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot to container root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's root: %w", err)
	}
	return os.Chdir("/")
}
