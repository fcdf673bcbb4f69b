//go:build linux

// Package sandbox makes what a pod's containers share besides the network: the IPC
// namespace and /dev/shm, and the user namespace of pods that have one of their own, with
// the network namespace that belongs to it. All are mounts below the pod's directory in
// /run, so they live through agent restarts and end with the machine. It must not know
// containers, units or the API.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/mounts"
	"github.com/vk-metal/vk-metal/internal/paths"
)

// DefaultShmSize is what container runtimes give /dev/shm.
const DefaultShmSize = 64 << 20

// Manager makes and removes sandboxes.
type Manager struct {
	layout paths.Layout

	claims    sync.Mutex // guards the claims of IDs, which are files
	nextClaim int
	maxClaims int
}

// New makes a Manager; it touches nothing.
func New(layout paths.Layout) *Manager { return &Manager{layout: layout, maxClaims: maxClaims} }

// Paths of one pod's sandbox. Users is nil where the pod has the host's.
type Paths struct {
	IPC, Shm string
	Users    *Users
}

// Options of one pod's sandbox.
type Options struct {
	ShmSize int64 // bytes of /dev/shm; 0 takes DefaultShmSize
	// Users asks for a user namespace. The pod's network namespace is made with it: nothing
	// else may have made one before.
	Users bool
}

// Ensure makes the pod's IPC namespace, its /dev/shm and what else o asks for, or finds them
// again; a half-made sandbox is completed.
func (m *Manager) Ensure(ctx context.Context, podUID string, o Options) (Paths, error) {
	if err := ctx.Err(); err != nil {
		return Paths{}, err
	}
	p, size := m.paths(podUID), o.ShmSize
	if o.Users {
		var err error
		if p.Users, err = m.ensureUsers(podUID); err != nil {
			return Paths{}, fmt.Errorf("make user namespace of pod %s: %w", podUID, err)
		}
	}
	if err := ensureNamespace(p.IPC); err != nil {
		return Paths{}, fmt.Errorf("make ipc namespace of pod %s: %w", podUID, err)
	}
	if size <= 0 {
		size = DefaultShmSize
	}
	if err := ensureShm(p.Shm, size); err != nil {
		return Paths{}, fmt.Errorf("make /dev/shm of pod %s: %w", podUID, err)
	}
	return p, nil
}

// Remove undoes Ensure; it is idempotent and safe without it.
func (m *Manager) Remove(_ context.Context, podUID string) error {
	p := m.paths(podUID)
	err := errors.Join(unmount(p.IPC, os.Remove), unmount(p.Shm, os.Remove), unmount(m.layout.Namespace(podUID, "user"), os.Remove))
	if err == nil {
		err = m.release(podUID)
	}
	if err != nil {
		return fmt.Errorf("remove sandbox of pod %s: %w", podUID, err)
	}
	return nil
}

func (m *Manager) paths(podUID string) Paths {
	return Paths{IPC: m.layout.Namespace(podUID, "ipc"), Shm: filepath.Join(m.layout.PodRun(podUID), "shm")}
}

// ensureNamespace binds a new IPC namespace to path. The thread that makes it is thrown
// away: the goroutine ends without unlocking it.
func ensureNamespace(path string) error {
	if isType(path, unix.NSFS_MAGIC) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	result := make(chan error, 1)
	go bindNewNamespace(path, result)
	return <-result
}

// bindNewNamespace never runs on the process's first thread: that one cannot be thrown
// away, and /proc/self shows its namespaces.
func bindNewNamespace(path string, result chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		inner := make(chan error, 1)
		go bindNewNamespace(path, inner)
		err := <-inner // this thread is ours until then
		runtime.UnlockOSThread()
		result <- err
		return
	}
	if err := unix.Unshare(unix.CLONE_NEWIPC); err != nil {
		result <- os.NewSyscallError("unshare", err)
		return
	}
	own := "/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/ns/ipc"
	result <- os.NewSyscallError("mount", unix.Mount(own, path, "", unix.MS_BIND, ""))
}

func ensureShm(path string, size int64) error {
	if mounted, err := mounts.IsMountPoint(path); err != nil || mounted {
		return err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	options := "mode=1777,size=" + strconv.FormatInt(size, 10)
	return os.NewSyscallError("mount", unix.Mount("shm", path, "tmpfs", flags, options))
}

func isType(path string, magic int64) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == magic
}

// unmount takes every mount from path and removes it.
func unmount(path string, remove func(string) error) error {
	for range 8 {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not a mount point
		}
		if err != nil {
			return &os.PathError{Op: "umount", Path: path, Err: err}
		}
	}
	if err := remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
