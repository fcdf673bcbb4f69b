//go:build linux

package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// IDs of pods with a user namespace of their own. A pod has IDsPerPod of the host's user and
// group IDs, which nobody else has while it lives. systemd and the distributions give nothing
// away between the two bounds (systemd's docs/UIDS-GIDS.md: containers end below the first,
// the foreign range begins at the second).
const (
	IDsPerPod = 1 << 16
	firstID   = 0x70000000
	endID     = 0x7FFE0000
	maxClaims = (endID - firstID) / IDsPerPod
)

// Users is a pod's user namespace.
type Users struct {
	Path  string
	First uint32 // the host's ID of the pod's root
}

// ensureUsers makes the pod's user namespace with an IPC and a network namespace that belong
// to it, or finds them again.
func (m *Manager) ensureUsers(podUID string) (*Users, error) {
	first, err := m.claim(podUID)
	if err != nil {
		return nil, fmt.Errorf("claim IDs: %w", err)
	}
	u := &Users{Path: m.layout.Namespace(podUID, "user"), First: first}
	kinds := []string{"user", "ipc", "net"}
	whole := true
	for _, kind := range kinds {
		whole = whole && isType(m.layout.Namespace(podUID, kind), unix.NSFS_MAGIC)
	}
	if whole {
		return u, nil
	}
	// A part of them belongs to no user namespace that anybody could join.
	for _, kind := range kinds {
		if err := unmount(m.layout.Namespace(podUID, kind), os.Remove); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(u.Path), 0o700); err != nil {
		return nil, err
	}
	return u, withNamespaces(first, func(pid int) error {
		for _, kind := range kinds {
			if err := bindNamespace(pid, kind, m.layout.Namespace(podUID, kind)); err != nil {
				return err
			}
		}
		return nil
	})
}

func bindNamespace(pid int, kind, path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	from := filepath.Join("/proc", strconv.Itoa(pid), "ns", kind)
	return os.NewSyscallError("mount", unix.Mount(from, path, "", unix.MS_BIND, ""))
}

// withNamespaces calls use with a process that is in new namespaces and will never run: it is
// traced, which stops it at its execve (ptrace(2)), and killed afterwards.
func withNamespaces(first uint32, use func(pid int) error) (err error) {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(first), Size: IDsPerPod}}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"vk-metal-namespaces"}, &syscall.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
			UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
			Ptrace: true,
		},
	})
	if err != nil {
		return fmt.Errorf("make user namespace: %w", err)
	}
	defer func() { err = errors.Join(err, end(pid)) }()
	return use(pid)
}

func end(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("end process of namespaces: %w", err)
	}
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for process of namespaces: %w", err)
		case status.Exited() || status.Signaled():
			return nil
		}
	}
}

// claim takes IDs for a pod, or finds those that it has. A claim is a file that is named by its
// number and says whose it is; it appears whole, by link(2), which fails where one is already.
func (m *Manager) claim(podUID string) (first uint32, err error) {
	m.claims.Lock()
	defer m.claims.Unlock()
	dir := m.layout.UserIDs()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	taken, own, err := readClaims(dir, podUID)
	if err != nil || own >= 0 {
		return idOf(own), err
	}
	draft := filepath.Join(dir, ".draft")
	if err := writeNew(draft, podUID); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.Remove(draft)) }()
	for i := range m.maxClaims {
		n := (m.nextClaim + i) % m.maxClaims
		if taken[n] {
			continue
		}
		if err := os.Link(draft, filepath.Join(dir, strconv.Itoa(n))); err != nil {
			return 0, err
		}
		m.nextClaim = n + 1 // IDs are used again as late as possible
		return idOf(n), nil
	}
	return 0, fmt.Errorf("all %d ranges are taken", m.maxClaims)
}

// writeNew never writes into a file that is there: a draft that a killed call left is a claim's
// other name.
func writeNew(path, text string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	return errors.Join(err, file.Close())
}

func idOf(claim int) uint32 { return firstID + uint32(claim)*IDsPerPod } //nolint:gosec // below maxClaims

// readClaims says which numbers are taken and which one is the pod's, -1 for none.
func readClaims(dir, podUID string) (taken map[int]bool, own int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, -1, err
	}
	taken, own = map[int]bool{}, -1
	for _, entry := range entries {
		n, err := strconv.Atoi(entry.Name())
		if err != nil || n < 0 || n >= maxClaims {
			continue
		}
		taken[n] = true
		holder, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, -1, err
		}
		if strings.TrimSpace(string(holder)) == podUID {
			own = n
		}
	}
	return taken, own, nil
}

// release gives the pod's IDs back; nothing of it runs any more.
func (m *Manager) release(podUID string) error {
	m.claims.Lock()
	defer m.claims.Unlock()
	dir := m.layout.UserIDs()
	_, own, err := readClaims(dir, podUID)
	if errors.Is(err, fs.ErrNotExist) || err == nil && own < 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(filepath.Join(dir, strconv.Itoa(own)))
}
