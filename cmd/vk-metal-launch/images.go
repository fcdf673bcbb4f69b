//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// openImages fills in the sources that are images: their layers are put together in the
// scratch space, which goes with the host's tree. What is mounted are copies of that.
func openImages(spec *launchspec.Spec, scratch string, sources []source) error {
	for i, mount := range spec.Mounts {
		if mount.Kind != launchspec.MountImage {
			continue
		}
		var err error
		if sources[i], err = openImage(mount, filepath.Join(scratch, "image-"+strconv.Itoa(i)), spec.MountLabel); err != nil {
			return fmt.Errorf("open image of mount %s: %w", mount.Target, err)
		}
	}
	return nil
}

func openImage(mount launchspec.Mount, dir, label string) (source, error) {
	if err := os.MkdirAll(filepath.Join(dir, "root"), 0o755); err != nil {
		return source{}, err
	}
	if err := mountOverlay(launchspec.Root{Lowers: mount.Lowers}, dir, label); err != nil {
		return source{}, err
	}
	fd, err := unix.Open(filepath.Join(dir, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return source{}, err
	}
	defer func() { unix.Close(fd) }()
	if mount.SubPath != "" {
		sub, err := openBeneath(fd, mount.SubPath)
		if err != nil {
			return source{}, fmt.Errorf("open sub-path %q: %w", mount.SubPath, err)
		}
		unix.Close(fd)
		fd = sub
	}
	src := source{path: dir}
	if src.file, err = isFile(fd); err != nil {
		return source{}, err
	}
	if src.tree, err = cloneTree(fd, false); err != nil {
		return source{}, fmt.Errorf("copy mount: %w", err)
	}
	return src, setAttr(src.tree, false, unix.MOUNT_ATTR_RDONLY, unix.MS_PRIVATE)
}
