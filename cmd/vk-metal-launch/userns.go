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

// userScratch is what a child in a user namespace mounts on: a directory that every host has
// and that root of any user namespace may reach.
const userScratch = "/dev/shm"

// launchMapped is cloning the child for a pod with a user namespace of its own. All that needs
// the host's rights is done here, in a mount namespace that ends with us.
func launchMapped(spec *launchspec.Spec, child channel) (int, *handoff, error) {
	unix.Umask(0)
	users, err := openUsers(spec)
	if err != nil {
		return 0, nil, err
	}
	self, err := readonlySelf() // of the mount namespace that we leave
	if err != nil {
		return 0, nil, err
	}
	ready, err := prepare(spec, users)
	if err != nil {
		return 0, nil, err
	}
	b := birth{
		joins:  [2]join{{users, unix.CLONE_NEWUSER}, {-1, 0}},
		parent: unix.CLONE_PARENT,
		flags:  cloneFlags(spec.Namespaces),
		fds:    [3]int{child.fd, -1, -1},
		self:   self,
	}
	if of := spec.Namespaces.PIDOf; of != nil {
		ns, err := openPIDNamespace(*of)
		if err != nil {
			return 0, nil, err
		}
		b.joins[1] = join{ns, unix.CLONE_NEWPID}
	}
	pid, err := b.bearWith(ready, stageChild)
	return pid, ready, err
}

// bearWith gives the child its handoff and lets it be born.
func (b *birth) bearWith(ready *handoff, name string) (int, error) {
	// The copies of us hold what is the host's: whoever may trace others in the pod's user
	// namespace may not trace them.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("make launcher undumpable: %w", err)
	}
	if err := ready.give(); err != nil {
		return 0, err
	}
	var err error
	if b.fds[2], err = ready.pack(); err != nil {
		return 0, err
	}
	if b.fds[0], err = unix.FcntlInt(uintptr(b.fds[0]), unix.F_DUPFD_CLOEXEC, firstHeld); err != nil {
		return 0, fmt.Errorf("hold channel: %w", err)
	}
	defer unix.Close(b.fds[0]) // only the child may keep it open
	return b.bear(name, handoffArg)
}

func openUsers(spec *launchspec.Spec) (int, error) {
	path := spec.Namespaces.User.Path
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open user namespace %s: %w", path, err)
	}
	return highFD(fd)
}

// prepare makes mounts and streams ready. A pause process needs none.
func prepare(spec *launchspec.Spec, users int) (*handoff, error) {
	ready := &handoff{Spec: spec, Root: -1, Dev: -1, Streams: [3]int{-1, -1, -1}}
	if spec.Pause {
		return ready, nil
	}
	if spec.Root.HostPath != "" {
		return nil, fmt.Errorf("root %s: host images cannot run in a user namespace (hostUsers: false)", spec.Root.HostPath)
	}
	var err error
	if ready.Sources, err = mappedSources(spec, users); err != nil {
		return nil, err
	}
	if err := ownMounts(); err != nil {
		return nil, err
	}
	if ready.Root, err = mappedRoot(spec, users); err != nil {
		return nil, err
	}
	if err := mappedImages(spec, ready.Sources, users); err != nil {
		return nil, err
	}
	if ready.Dev, err = makeDev(spec); err != nil {
		return nil, err
	}
	stdio, err := openStdio(spec)
	if err != nil {
		return nil, err
	}
	ready.Streams = stdio.fds
	return ready, nil
}

func mappedSources(spec *launchspec.Spec, users int) ([]handoffSource, error) {
	sources, err := openSources(spec)
	if err != nil {
		return nil, err
	}
	out := make([]handoffSource, len(sources))
	for i, src := range sources {
		out[i] = handoffSource{Tree: src.tree, Path: src.path, File: src.file}
		if src.tree < 0 {
			continue
		}
		mount := spec.Mounts[i]
		if err := mapIDs(src.tree, users, mount.Recursive); err != nil {
			return nil, fmt.Errorf("mount %s on %s: %w", describe(mount), mount.Target, err)
		}
		if mountAttrs(mount) != 0 {
			if err := restrictTree(src.tree, mount); err != nil {
				return nil, fmt.Errorf("mount %s on %s: %w", describe(mount), mount.Target, err)
			}
		}
	}
	return out, nil
}

// ownMounts gives us a mount namespace of our own, whose copy the child will have, with
// scratch space in it and a /proc and a /sys on which nothing is mounted: the kernel lets the
// root of a user namespace mount these two only where it sees them whole, so that masks do
// not come off (mount_too_revealing in fs/namespace.c). A host may have them covered.
func ownMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("detach mounts from the host: %w", err)
	}
	if err := unix.Mount("tmpfs", userScratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("mount scratch space on %s: %w", userScratch, err)
	}
	for _, kind := range []string{"proc", "sysfs"} {
		dir := filepath.Join(userScratch, kind)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
		if err := unix.Mount(kind, dir, kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", kind, err)
		}
	}
	return os.Mkdir(filepath.Join(userScratch, "root"), 0o755)
}

// mappedRoot is an overlay of ID-mapped layers. The writable layer holds the host's IDs: the
// overlay writes its own directories there as the host's root, which has no place in the map.
func mappedRoot(spec *launchspec.Spec, users int) (int, error) {
	root, first := spec.Root, int(firstID(spec))
	mapped := root
	var err error
	if mapped.Lowers, err = mapLayers(root.Lowers, userScratch, users); err != nil {
		return -1, err
	}
	if root.Upper != "" {
		if err := os.Chown(root.Upper, first, first); err != nil {
			return -1, fmt.Errorf("give writable layer to the user namespace: %w", err)
		}
	}
	if err := mountOverlay(mapped, userScratch, spec.MountLabel); err != nil {
		return -1, err
	}
	fd, err := unix.Open(filepath.Join(userScratch, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open container root: %w", err)
	}
	defer unix.Close(fd)
	tree, err := cloneTree(fd, false)
	if err != nil {
		return -1, fmt.Errorf("hold container root: %w", err)
	}
	return tree, nil
}

// mappedImages fills in the sources that are images, of ID-mapped layers.
func mappedImages(spec *launchspec.Spec, sources []handoffSource, users int) error {
	for i, mount := range spec.Mounts {
		if mount.Kind != launchspec.MountImage {
			continue
		}
		src, err := mappedImage(mount, filepath.Join(userScratch, "image-"+strconv.Itoa(i)), users, spec.MountLabel)
		if err != nil {
			return fmt.Errorf("open image of mount %s: %w", mount.Target, err)
		}
		sources[i] = handoffSource{Tree: src.tree, Path: src.path, File: src.file}
	}
	return nil
}

func mappedImage(mount launchspec.Mount, dir string, users int, label string) (source, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return source{}, err
	}
	var err error
	if mount.Lowers, err = mapLayers(mount.Lowers, dir, users); err != nil {
		return source{}, err
	}
	src, err := openImage(mount, dir, label)
	if err != nil {
		return source{}, err
	}
	return src, setAttr(src.tree, false, mountAttrs(mount), 0)
}

// mapLayers mounts ID-mapped copies of layers in dir and returns where.
func mapLayers(layers []string, dir string, users int) ([]string, error) {
	mapped := make([]string, len(layers))
	for i, layer := range layers {
		mapped[i] = filepath.Join(dir, "layer"+strconv.Itoa(i))
		if err := bindMapped(layer, mapped[i], users); err != nil {
			return nil, fmt.Errorf("mount layer %s: %w", layer, err)
		}
	}
	return mapped, nil
}

func bindMapped(source, target string, users int) error {
	fd, err := unix.Open(source, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	tree, err := cloneTree(fd, false)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := mapIDs(tree, users, false); err != nil {
		return err
	}
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// buildMapped is buildRoot of what the launcher has made ready.
func buildMapped(ready *handoff) error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("detach mounts from the host: %w", err)
	}
	target, err := unix.Open(filepath.Join(userScratch, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open mount point of root: %w", err)
	}
	defer unix.Close(target)
	if err := attach(ready.Root, target); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	root := rootDir{fd: ready.Root, twins: new([]int)}
	if err := populate(root, ready.Spec, ready.sources(), ready.Dev); err != nil {
		return err
	}
	return pivot(ready.Root)
}

// giveStreams makes streams, which the host's root owns, the container's user's.
func giveStreams(spec *launchspec.Spec, streams []int, user uint32) error {
	if size := spec.Namespaces.User.Size; user >= size {
		return fmt.Errorf("user %d is not in the user namespace, which has %d", user, size)
	}
	for _, fd := range streams {
		if fd < 0 {
			continue
		}
		if err := giveStream(fd, firstID(spec)+user); err != nil {
			return err
		}
	}
	return nil
}
