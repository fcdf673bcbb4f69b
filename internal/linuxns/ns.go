// Package linuxns opens network namespaces and acts inside them: netlink sockets,
// functions on a thread of the namespace, and wake-ups from the kernel's multicast
// groups. It owns no kernel object and knows nothing of pods or routes.
package linuxns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Self is the path of the network namespace of the calling thread.
const Self = "/proc/thread-self/ns/net"

// NS is an open network namespace. Close releases the descriptor, not the namespace.
type NS struct{ f *os.File }

// Open opens the namespace bound at path; the empty path is the process's own.
func Open(path string) (*NS, error) {
	if path == "" {
		path = "/proc/self/ns/net"
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if !isNSFS(int(f.Fd())) {
		_ = f.Close()
		return nil, fmt.Errorf("open network namespace: %s is not one: %w", path, unix.EINVAL)
	}
	return &NS{f: f}, nil
}

// Bound reports whether a namespace is bound at path (false for a missing or plain file).
func Bound(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

func isNSFS(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// FD is the namespace's descriptor, valid until Close.
func (n *NS) FD() int { return int(n.f.Fd()) }

// Close releases the descriptor.
func (n *NS) Close() error { return n.f.Close() }

// Netlink opens an rtnetlink handle in the namespace. The caller closes it.
func (n *NS) Netlink(families ...int) (*netlink.Handle, error) {
	if len(families) == 0 {
		families = []int{unix.NETLINK_ROUTE}
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(n.FD()), families...)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return h, nil
}

// Do runs fn on a thread that is inside the namespace. fn must not start goroutines
// that rely on it.
func (n *NS) Do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

// onThread runs fn on a locked thread and takes the thread back to the namespace it
// came from. A thread that cannot go back is left locked, so that the runtime ends it.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(Self)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer home.Close()
		err = fn()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Create makes a new namespace bound at path, with its parent directories (0700). It
// is idempotent: a bound namespace is kept, and what a killed call left is completed.
func Create(path string) error {
	if Bound(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make directory for network namespace: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o400)
	if err != nil {
		return fmt.Errorf("make file for network namespace: %w", err)
	}
	_ = f.Close()
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		if err := unix.Mount(Self, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind network namespace at %s: %w", path, err)
		}
		return nil
	})
}

// Remove unbinds what is bound at path, however often, and removes the file.
// Missing is success. The kernel destroys the namespace once nobody uses it.
func Remove(path string) error {
	for Bound(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unbind network namespace at %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("remove file of network namespace: %w", err)
	}
	return nil
}
